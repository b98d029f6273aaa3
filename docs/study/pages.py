"""Tables and sentences of the pages that scripts of the study make, between two comments.

<!-- rivals: rows -->
(made by the script, which is how `filled` finds it)
<!-- end -->
"""

from __future__ import annotations

import argparse
import pathlib
import re
from collections.abc import Callable

PAGES = pathlib.Path(__file__).parents[1] / "pages"
PART = re.compile(r"(<!-- (\w+): ([\w -]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
# Of a cell, the spaces within an interval and within counts of tasks: no line ends there.
WITHIN = re.compile(r"(?<=\d,) (?=\d[\d.]*\])|(?<=\d) (?=/ \d)|(?<=\d /) (?=\d)")


def filled(text: str, script: str, sections: dict[str, list[str]]) -> str:
    """Return the text of a page, with the parts that a script makes made anew."""

    def part(match):
        begin, owner, name, _, end = match.groups()
        if owner != script:
            return match.group()
        lines = [unbroken(line) if line.startswith("|") else line for line in sections[name]]
        return "\n".join([begin.rstrip("\n"), "", *lines, "", end])

    return PART.sub(part, text)


def unbroken(line: str) -> str:
    """Return a line of a table that is broken only between the parts of its cells."""
    return WITHIN.sub("&nbsp;", line)


def fill(page: str, script: str, sections: dict[str, list[str]]) -> None:
    """Make the parts of a page anew, in its file."""
    path = PAGES / page
    path.write_text(filled(path.read_text(), script, sections))


def run_study(
    description: str | None,
    page: str,
    script: str,
    *,
    quick: Callable[[], None],
    measure: Callable[[], None],
    sections: Callable[[], dict[str, list[str]]],
) -> None:
    """Do what the command line of a script with one stored table asks for: print it, by default."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choices = ("report", "page", "measure")
    parser.add_argument("what", nargs="?", default="report", choices=choices)
    parser.add_argument("--quick", action="store_true", help="a minute, and nothing is stored")
    arguments = parser.parse_args()
    if arguments.quick:
        quick()
    elif arguments.what == "measure":
        measure()
    elif arguments.what == "page":
        fill(page, script, sections())
    else:
        print(*sections()["table"], sep="\n")
