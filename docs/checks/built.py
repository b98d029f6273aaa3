"""Checks the built site: links, anchors, what it would fetch from elsewhere, raw markup.

    mkdocs build --strict --config-file docs/mkdocs.yml --site-dir FOLDER
    python docs/checks/built.py FOLDER

Every link inside the site must lead to a file and to an anchor in it; no picture, script or style
may come from another host; each public name must have its heading, and below it an example that is
shown as code. Prints what is wrong and exits with 1.
"""

import html.parser
import importlib
import pathlib
import re
import sys
import urllib.parse

# Markup of Markdown and reStructuredText that no reader should see, outside of code.
RAW = re.compile(r":\w+:`|`_|\.\. \w+::|\$\$|\\\(|\\\[|\?\?\?|!!!|\]\[|\]\(|```|--8<--|\*\*")
HIDDEN = {"code", "pre", "script", "style", "math"}
EMPTY = {"area", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}
# One line each, with the example in the docstring of their class.
WITHOUT_EXAMPLE = {"index", "fraction", "is_end", "start", "length", "total_steps"}


class Page(html.parser.HTMLParser):
    """The links of a page, its anchors, its sources, its text, and the code below each heading."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.repeated, self.links, self.sources = set(), set(), [], []
        self.text, self.code, self.open = [], {}, []
        self.name = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in EMPTY:
            self.open.append(tag)
        if attributes.get("id") in self.anchors:
            self.repeated.add(attributes["id"])
        if attributes.get("id"):
            self.anchors.add(attributes["id"])
        if "doc-heading" in (attributes.get("class") or ""):
            self.name = attributes["id"]
            self.code[self.name] = ""
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        elif "src" in attributes or (tag == "link" and attributes.get("rel") != "canonical"):
            self.sources.append(attributes.get("src") or attributes["href"])

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        if "pre" in self.open and self.name:
            self.code[self.name] += data
        if not HIDDEN & {*self.open}:
            self.text.append(data)


def pages_of(site):
    return {
        path.relative_to(site).as_posix(): Page(path.read_text())
        for path in sorted(site.rglob("*.html"))
    }


def broken_links(site, pages):
    for name, page in pages.items():
        # Links of this page are meant from the root of the host, as it is shown for any address.
        folder = site if name == "404.html" else (site / name).parent
        for link in page.links + page.sources:
            target = urllib.parse.urlsplit(link)
            if target.scheme or target.netloc:
                continue
            path = urllib.parse.unquote(target.path)
            if name == "404.html":
                path = path.lstrip("/")
            file = (folder / path).resolve() if path else (site / name).resolve()
            if file.is_dir():
                file = file / "index.html"
            if not file.is_file():
                yield f"{name}: no file at {link}"
            elif target.fragment and file.suffix == ".html":
                linked = pages[file.relative_to(site.resolve()).as_posix()]
                if urllib.parse.unquote(target.fragment) not in linked.anchors | {"__comments"}:
                    yield f"{name}: no anchor at {link}"


def repeated_anchors(pages):
    for name, page in pages.items():
        for anchor in page.repeated:
            yield f"{name}: more than one element has the id {anchor}"


def sources_elsewhere(pages):
    for name, page in pages.items():
        for source in page.sources:
            if urllib.parse.urlsplit(source).netloc:
                yield f"{name}: {source} comes from another host"


def raw_markup(pages):
    for name, page in pages.items():
        text = " ".join(page.text)
        for found in RAW.finditer(text):
            around = " ".join(text[max(found.start() - 40, 0) : found.end() + 40].split())
            yield f"{name}: raw markup in: {around}"


def names_without_example(pages):
    code = {name: text for page in pages.values() for name, text in page.code.items()}
    for name in public_names():
        if name not in code:
            yield f"no page documents {name}"
        elif ">>>" not in code[name] and name.rpartition(".")[2] not in WITHOUT_EXAMPLE:
            yield f"{name} has no example that is shown as code"


def public_names():
    library = importlib.import_module("optax_clr")
    for name in library.__all__:
        value = getattr(library, name)
        if isinstance(value, type):
            yield f"optax_clr.{name}"
            for member, function in vars(value).items():
                if not member.startswith("_") and callable(function):
                    yield f"optax_clr.{name}.{member}"
        elif callable(value):
            yield f"optax_clr.{name}"
        else:  # a module
            own = getattr(value, "__all__", [])
            yield from (f"optax_clr.{name}.{member}" for member in own if member[0].islower())


def main():
    site = pathlib.Path(sys.argv[1])
    pages = pages_of(site)
    faults = [
        *broken_links(site, pages),
        *repeated_anchors(pages),
        *sources_elsewhere(pages),
        *raw_markup(pages),
        *names_without_example(pages),
    ]
    print(*faults, f"{len(pages)} pages checked: {len(faults)} faults", sep="\n")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
