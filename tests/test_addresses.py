"""Where everything links: to nowhere while nobody owns the addresses, to the right place after."""

import ast
import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import types

import pytest

from optax_clr._documentation import DOCUMENTATION, REPOSITORY, TITLES, see

ROOT = pathlib.Path(__file__).parents[1]
METADATA = runpy.run_path(str(ROOT / ".ci/metadata.py"))
README = (ROOT / "README.md").read_text()
NOBODY, OWNED = ("", ""), ("https://documentation.example/", "https://repository.example/project/")
STATES = pytest.mark.parametrize(("documentation", "repository"), [NOBODY, OWNED])


@pytest.mark.parametrize("address", [DOCUMENTATION, REPOSITORY])
def test_addresses_are_empty_or_whole(address):
    assert re.fullmatch(r"(https://\S+/)?", address)


def test_no_file_has_an_address_of_the_project_but_the_one_that_should():
    source = ROOT / "optax_clr/_documentation.py"
    folders = ("optax_clr", "docs", "tests", "examples", ".ci", ".github")
    files = [path for name in folders for path in (ROOT / name).rglob("*") if path.is_file()]
    files += [path for path in ROOT.iterdir() if path.is_file()]
    for path in {*files} - {source}:
        if path.suffix not in (".pyc", ".png", ".npz", ".gif", ".gz"):
            found = re.findall(r"https?://[^\s\"')>]*optax[-_.]?clr", path.read_text())
            assert not found, f"{path} has {found}"


# Messages.


def places_of_messages():
    """Every place that a message of the library names."""
    for path in sorted((ROOT / "optax_clr").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "see":
                yield ast.literal_eval(node.args[0])


PLACES = sorted(set(places_of_messages()))


def headings(page):
    """The headings of a page, by the anchors that the site gives them."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-"): heading for heading in found}


@pytest.mark.parametrize("place", PLACES)
def test_messages_name_pages_and_headings_that_exist(place):
    name, _, anchor = place.partition("/")
    page = ROOT / f"docs/pages/{name}.md"
    assert page.read_text().startswith(f"# {TITLES[name]}\n")
    assert f" {TITLES[name]}: {name}.md\n" in (ROOT / "docs/mkdocs.yml").read_text()
    if anchor:
        assert anchor.removeprefix("#") in headings(page)


def test_every_page_with_a_title_is_named_by_a_message():
    assert TITLES.keys() == {place.partition("/")[0] for place in PLACES}


def test_how_a_message_names_a_page():
    few = "See 'Read a range test', too few steps, in the documentation."
    assert see("reading/#too-few-steps", "") == few
    assert see("first-test/", "") == "See 'First range test', in the documentation."
    assert see("reading/#too-few-steps", "https://d.example/") == (
        "See https://d.example/reading/#too-few-steps"
    )


@STATES
def test_the_messages_of_the_library(tmp_path, documentation, repository):
    shutil.copytree(ROOT / "optax_clr", tmp_path / "optax_clr")
    source = tmp_path / "optax_clr/_documentation.py"
    text = re.sub(r'DOCUMENTATION = ".*"', f'DOCUMENTATION = "{documentation}"', source.read_text())
    source.write_text(re.sub(r'REPOSITORY = ".*"', f'REPOSITORY = "{repository}"', text))
    program = (
        "import numpy as np, optax, optax_clr\n"
        "try: optax_clr.lr_range_test(lambda p, b: p, 0.0, optax.sgd(0.1), [1.0])\n"
        "except TypeError as error: print(error)\n"
        "rows = np.ones(2, np.float32)\n"
        "try: optax_clr.RangeTestResult(rows, rows, rows, np.int32(2)).suggest()\n"
        "except optax_clr.RangeTestError as error: print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    printed = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path, env=environment, capture_output=True, check=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    assert printed[0].endswith(f" {see('first-test/', documentation)}")
    assert printed[1].endswith(f" {see('reading/#too-few-steps', documentation)}")


def test_pages_show_messages_as_they_are_without_addresses():
    whole = {see(place, "") for place in PLACES}
    shown = [
        re.sub(r"\s+", " ", sentence)
        for page in (ROOT / "docs/pages").glob("*.md")
        for sentence in re.findall(r"See\s+'[^`]*?in\s+the\s+documentation\.", page.read_text())
    ]
    assert len(shown) >= 5
    assert set(shown) <= whole


# The site.


@STATES
def test_the_site_has_its_addresses(tmp_path, monkeypatch, documentation, repository):
    addresses = tmp_path / "addresses.py"
    addresses.write_text(f"DOCUMENTATION = {documentation!r}\nREPOSITORY = {repository!r}\n")
    on_config = runpy.run_path(str(ROOT / "docs/addresses.py"))["on_config"]
    monkeypatch.setitem(on_config.__globals__, "ADDRESSES", addresses)
    handlers = {"python": {"options": {}}}
    mkdocstrings = types.SimpleNamespace(config=types.SimpleNamespace(handlers=handlers))
    config = types.SimpleNamespace(
        site_name="optax_clr", site_url=None, repo_url=None, plugins={"mkdocstrings": mkdocstrings}
    )
    on_config(config)
    assert config.site_url == documentation
    assert config.repo_url == (repository or None)
    assert handlers["python"]["options"] == (
        {"extra": {"repository": repository}} if repository else {}
    )
    assert not re.search(r"^(site|repo)_url", (ROOT / "docs/mkdocs.yml").read_text(), re.MULTILINE)


def test_a_notebook_can_be_opened_in_colab_once_it_is_on_github():
    add_link = runpy.run_path(str(ROOT / "docs/addresses.py"))["on_page_markdown"]
    page = "This page is also a notebook, `docs/notebooks/a.ipynb` in the repository."
    added = {
        url: add_link(page, types.SimpleNamespace(repo_url=url)).removeprefix(page)
        for url in (None, "https://repository.example/project/", "https://github.com/a/b/")
    }
    assert added.pop("https://github.com/a/b/").strip() == (
        "[Open it in Colab](https://colab.research.google.com/github/a/b/blob/main/docs/notebooks/a.ipynb)."
    )
    assert set(added.values()) == {""}


# What a package index shows. .ci/run renders it; here is what it is made of.


def index_readme(documentation, repository, readme=README):
    return METADATA["index_readme"](readme, "1.2.3", documentation, repository)


def targets(markdown):
    return re.findall(r"\]\(([^()\s]*)\)", markdown)


def words(markdown):
    """The words that are seen: without the targets of links, marks of pictures and emphasis."""
    return re.sub(r"\]\([^()\s]*\)|[][!*]", "", markdown).split()


@STATES
def test_an_index_shows_the_readme_without_relative_links(documentation, repository):
    shown = index_readme(documentation, repository)
    assert all(target.startswith("https://") for target in targets(shown))
    ours = README
    if repository:
        ours = ours.replace(METADATA["INSTALL_FROM_CLONE"], "pip install optax-clr")
        ours = ours.replace("\n\n", "\n\nCI\n", 1)
    assert words(shown) == words(ours)


def test_an_index_without_addresses_links_to_others_alone():
    others = {target for target in targets(README) if target.startswith("https://")}
    assert {*targets(index_readme("", ""))} == others


def test_an_index_with_addresses_shows_all_links_and_the_picture():
    shown = index_readme(*OWNED)
    assert len(targets(shown)) == len(targets(README)) + 2  # the badge of CI and its link
    assert "](https://documentation.example/images/digits.png)" in shown
    assert "actions/workflows/ci.yml/badge.svg)](https://repository.example/project/" in shown


@pytest.mark.parametrize(
    ("path", "of_documentation", "of_repository"),
    [
        ("docs/pages/faq.md", "D/faq/", "R/blob/v1.2.3/docs/pages/faq.md"),
        ("docs/pages/faq.md#a-b", "D/faq/#a-b", "R/blob/v1.2.3/docs/pages/faq.md#a-b"),
        ("docs/pages/images/a.png", "D/images/a.png", "R/raw/v1.2.3/docs/pages/images/a.png"),
        ("docs/benchmarks/README.md", "", "R/blob/v1.2.3/docs/benchmarks/README.md"),
        ("LICENSE", "", "R/blob/v1.2.3/LICENSE"),
    ],
)
def test_the_address_of_a_file(path, of_documentation, of_repository):
    address = METADATA["absolute"]
    assert address(path, "1.2.3", "D/", "R/") == (of_documentation or of_repository)
    assert address(path, "1.2.3", "", "R/") == of_repository
    assert address(path, "1.2.3", "D/", "") == of_documentation
    assert address(path, "1.2.3", "", "") == ""


def test_links_in_the_metadata():
    assert METADATA["urls"]("", "") == {}
    assert METADATA["urls"]("D/", "") == {"Documentation": "D/"}
    assert METADATA["urls"]("D/", "R/") == {
        "Documentation": "D/",
        "Source": "R/",
        "Issues": "R/issues",
        "Changelog": "R/blob/main/CHANGELOG.md",
    }


def test_the_build_takes_the_addresses_from_the_library():
    assert METADATA["addresses"]() == (DOCUMENTATION, REPOSITORY)


def test_the_readme_has_an_install_line_that_an_index_can_replace():
    assert {METADATA["INSTALL_FROM_CLONE"], "pip install optax-clr"} & {*README.splitlines()}


# In the repository.


@pytest.mark.parametrize(
    "page",
    ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md",
     "docs/benchmarks/README.md", "docs/study/README.md", "tests/tools/README.md"],
)  # fmt: skip
def test_links_work_in_the_repository(page):
    page = ROOT / page
    for target in targets(page.read_text()):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            linked = page.parent / path
            assert linked.exists(), target
            assert not anchor or anchor in headings(linked), target
