"""Check what a package index shows of a wheel.

    python .ci/index_page.py dist/optax_clr-0.1.0-py3-none-any.whl

Renders the README in the wheel's metadata as the index does, and compares it with the README of
the repository: the same words, pictures or their descriptions, and code, and no relative link.
"""

import html.parser
import pathlib
import runpy
import sys
import zipfile

import readme_renderer.markdown

ROOT = pathlib.Path(__file__).parents[1]
METADATA = runpy.run_path(str(ROOT / ".ci/metadata.py"))


class Page(html.parser.HTMLParser):
    """The text, code blocks, links and sources of pictures of a page."""

    def __init__(self, text):
        super().__init__()
        self.text, self.in_code = "", False
        self.code, self.links, self.pictures = [], [], []
        page = readme_renderer.markdown.render(text)
        if page is None:
            raise SystemExit("the README cannot be rendered: pip install readme_renderer[md]")
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [attributes["href"]] if "href" in attributes else []
        if tag == "img":
            self.pictures.append(attributes["src"])
            self.text += attributes["alt"]
        if tag == "pre":
            self.in_code = True
            self.code.append("")

    def handle_endtag(self, tag):
        self.in_code = self.in_code and tag != "pre"

    def handle_data(self, data):
        if self.in_code:
            self.code[-1] += data
        else:
            self.text += data


def metadata_of(wheel):
    """Return the text of the wheel's METADATA."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return archive.read(name).decode()


def check(holds, complaint):
    if not holds:
        raise SystemExit(f"the index would show it wrong: {complaint}")


def main(wheel):
    text = metadata_of(wheel)
    headers, _, readme = text.partition("\n\n")
    print(headers)
    check("\nDescription-Content-Type: text/markdown" in headers, "the README is not Markdown")

    shown, ours = Page(readme), Page((ROOT / "README.md").read_text(encoding="utf-8"))
    print(f"\n{len(shown.code)} blocks of code; pictures and links:")
    print(*shown.pictures, *shown.links, sep="\n")
    for address in (*shown.pictures, *shown.links):
        absolute = address.startswith(("https://", "#"))  # or a heading of the page itself
        check(absolute, f"{address} leads nowhere")
    has_repository = "\nProject-URL: Source, " in headers
    words = shown.text.split()
    if has_repository:
        words.remove("CI")  # the one badge that only an index shows
    check(words == ours.text.split(), "words differ from the README's")
    install = METADATA["INSTALL_FROM_CLONE"], f"pip install {METADATA['NAME']}"
    code = [block.replace(*install) if has_repository else block for block in ours.code]
    check(shown.code == code, "code differs from the README's")


if __name__ == "__main__":
    main(sys.argv[1])
