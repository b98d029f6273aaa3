"""Everything the documentation says is run: docstring examples, and the code blocks of pages."""

import doctest
import importlib
import pathlib
import pkgutil
import re
import runpy
import textwrap

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_clr

MODULES = [f"optax_clr.{module.name}" for module in pkgutil.iter_modules(optax_clr.__path__)]
ROOT = pathlib.Path(__file__).parents[1]

# Optax, which the examples use, relies on promotion and on rank broadcasting.
pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_docstrings(name):
    public = {key: value for key, value in vars(optax_clr).items() if not key.startswith("_")}
    names = {**public, "jax": jax, "jnp": jnp, "optax": optax, "optax_clr": optax_clr}
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    module = importlib.import_module(name)
    for case in finder.find(module, extraglobs=names):
        runner.run(case)
    assert runner.failures == 0


# One line each: the docstring of their class has the example.
QUERIES = {"index", "fraction", "is_end", "start", "length", "power_and_complement"}


def public_functions():
    for name, value in vars(optax_clr).items():
        if name.startswith("_") or not callable(value):
            continue
        yield name, value
        if isinstance(value, type):
            for attribute, member in vars(value).items():
                if not attribute.startswith("_") and callable(member) and attribute not in QUERIES:
                    yield f"{name}.{attribute}", member
    for name in optax_clr.peer_rules.__all__:
        yield f"peer_rules.{name}", getattr(optax_clr.peer_rules, name)


@pytest.mark.parametrize(("name", "value"), list(public_functions()))
def test_every_public_name_has_an_example(name, value):
    assert ">>>" in value.__doc__


PAGES = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/pages/**/*.md")}
# The tests of the page of recipes run it, test_recipes.py.
RUN_HERE = sorted(PAGES - {"docs/pages/recipes.md"})
FIRST = {"docs/pages/first-test.md", "docs/pages/schedules.md"}


@pytest.mark.parametrize(
    "page",
    ["README.md", *(page if page in FIRST else pytest.param(page, marks=pytest.mark.slow)
                    for page in RUN_HERE)],
)  # fmt: skip
def test_the_code_blocks_of_pages_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    if page == "README.md":  # begins with three lines of the program below them
        assert blocks.pop(0) in blocks[0]
    names = {}
    for block in blocks:
        exec(compile(textwrap.dedent(block), str(page), "exec"), names)


def test_every_public_name_is_on_an_api_page_and_listed():
    names = {name for name in vars(optax_clr) if not name.startswith("_")}
    pages = "".join(path.read_text() for path in (ROOT / "docs/pages/api").glob("*.md"))
    assert set(re.findall(r"^::: optax_clr\.(\w+)", pages, re.MULTILINE)) == names
    listed = (ROOT / "docs/pages/api.md").read_text()
    assert set(re.findall(r"\[optax_clr\.(\w+)", listed)) == names


def test_the_notebooks_are_those_of_the_pages():
    folder = ROOT / "docs/notebooks"
    made = runpy.run_path(str(folder / "make.py"))
    assert {path.name for path in folder.glob("*.ipynb")} == set(made["NOTEBOOKS"])
    for name, page in made["NOTEBOOKS"].items():
        expected = made["notebook"]((ROOT / "docs/pages" / page).read_text())
        assert (folder / name).read_text() == expected, "run docs/notebooks/make.py"


FAULTS = {
    "broken_links": '<a href="missing/">',
    "repeated_anchors": '<p id="a"></p><p id="a"></p>',
    "sources_elsewhere": '<script src="https://cdn.example/a.js"></script>',
    "raw_markup": "<p>The rate :math:`h` of :func:`f`.</p>",
}


@pytest.mark.parametrize("check", FAULTS)
def test_the_check_of_the_built_site_finds(check, tmp_path):
    checks = runpy.run_path(str(ROOT / "docs/checks/built.py"))
    site_too = [tmp_path] if check == "broken_links" else []
    whole = '<h1 id="top">Page</h1><a href="#top"></a><code>:math:`h`</code>'
    for text, expected in ((whole, 0), (whole + FAULTS[check], 1)):
        (tmp_path / "index.html").write_text(text)
        found = list(checks[check](*site_too, checks["pages_of"](tmp_path)))
        assert bool(found) == expected


def test_the_check_of_the_built_site_finds_names_without_an_example():
    checks = runpy.run_path(str(ROOT / "docs/checks/built.py"))
    found = list(checks["names_without_example"]({}))
    assert "no page documents optax_clr.lr_range_test" in found
    assert "no page documents optax_clr.waves.cosine" in found
    page = checks["Page"]('<h2 id="optax_clr.lr_range_test" class="doc doc-heading">a</h2><p>b</p>')
    assert "optax_clr.lr_range_test has no example that is shown as code" in list(
        checks["names_without_example"]({"": page})
    )
