"""Makes the notebooks of this folder from pages of the documentation, so that they say the same.

    python docs/notebooks/make.py              # writes them
    python docs/notebooks/make.py --execute    # runs those that are written, as CI does

Text becomes Markdown cells, with links into docs/pages; code becomes cells of code; what the page
shows as printed is left out, since the notebook prints it.
"""

import json
import pathlib
import re
import sys

FOLDER = pathlib.Path(__file__).parent
PAGES = FOLDER.parent / "pages"
NOTEBOOKS = {
    "first_range_test.ipynb": "first-test.md",
    "sweeps.ipynb": "sweeps.md",
    "language_model.ipynb": "language-models.md",
}
BLOCK = re.compile(r"```(\w+)\n(.*?)```\n", re.DOTALL)
INSTALL = (
    "# In a fresh environment, such as Colab's, install the library first: from a clone of its\n"
    '# repository, pip install ".[examples]".'
)


def notebook(page):
    """Return the notebook of a page, as text."""
    cells = [cell("code", INSTALL)]
    # Text, language and code take turns; the languages that are neither are parts of the text.
    parts = BLOCK.split(page)
    text = parts[0]
    for language, code, after in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        if language == "python":
            cells += [cell("markdown", text), cell("code", code)]
            text = after
        else:
            shown = "" if language == "text" else f"```{language}\n{code}```\n"
            text += shown + after
    cells.append(cell("markdown", text))
    cells = [made for made in cells if made["source"]]
    for number, made in enumerate(cells):
        made["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def cell(kind, source):
    if kind == "markdown":
        source = re.sub(r"\]\((?!https?:|#)", "](../pages/", source)
    made = {"cell_type": kind, "id": "", "metadata": {}}
    if kind == "code":
        made |= {"execution_count": None, "outputs": []}
    return made | {"source": source.strip().splitlines(keepends=True)}


def execute(path):
    import nbformat
    from nbclient import NotebookClient

    NotebookClient(nbformat.read(path, as_version=4), timeout=600).execute()
    print(f"{path.name}: runs")


def main():
    for name, page in NOTEBOOKS.items():
        if sys.argv[1:] == ["--execute"]:
            execute(FOLDER / name)
        else:
            (FOLDER / name).write_text(notebook((PAGES / page).read_text()))


if __name__ == "__main__":
    main()
