"""What a package index shows: the README and the addresses, in the metadata of the wheel.

Hatchling calls this in every build. The README links to files of the repository, where an index
has none: each link gets its address, or while nobody owns one, becomes plain text.
"""

import pathlib
import re
import runpy

ROOT = pathlib.Path(__file__).parents[1]
NAME = "optax-clr"
# In the README of the repository; an index has the package itself.
INSTALL_FROM_CLONE = "pip install .  # in a clone of the repository"


def addresses():
    """Return the addresses of the documentation and of the repository, without importing JAX."""
    names = runpy.run_path(str(ROOT / "optax_clr/_documentation.py"))
    return names["DOCUMENTATION"], names["REPOSITORY"]


def urls(documentation, repository):
    """Return the links beside the README."""
    links = {"Documentation": documentation} if documentation else {}
    if repository:
        links["Source"] = repository
        links["Issues"] = f"{repository}issues"
        links["Changelog"] = f"{repository}blob/main/CHANGELOG.md"
    return links


def absolute(path, version, documentation, repository):
    """Return the address of a file of the repository, or "" where it has none."""
    page = re.fullmatch(r"docs/pages/(.*?)(\.md)?(#.*)?", path)
    if page and documentation:
        return documentation + page[1] + ("/" if page[2] else "") + (page[3] or "")
    if repository:
        form = "raw" if path.endswith(".png") else "blob"
        return f"{repository}{form}/v{version}/{path}"  # a release has the tag of its version
    return ""


def index_readme(readme, version, documentation, repository):
    """Return the README with no relative link, as an index shows it."""

    def link(match):
        mark, text, path = match.groups()
        address = absolute(path, version, documentation, repository)
        if address:
            return f"{mark}[{text}]({address})"
        return f"*{text}*" if mark else text  # of a picture its description

    # The text of a link may hold a picture, a badge; that of a picture holds no brackets.
    text = r"(?:[^][]|!\[[^][]*\]\([^()\s]*\))*"
    readme = re.sub(rf"(!?)\[({text})\]\((?!https?:|#)([^()\s]*)\)", link, readme)
    if repository:
        workflow = f"{repository}actions/workflows/ci.yml"
        badge = f"[![CI]({workflow}/badge.svg)]({workflow})"
        readme = readme.replace("\n\n", f"\n\n{badge}\n", 1)
        readme = readme.replace(f"\n{INSTALL_FROM_CLONE}\n", f"\npip install {NAME}\n")
    return readme


def get_metadata_hook():
    """Return the class that Hatchling calls; not above, since only a build has Hatchling."""
    from hatchling.metadata.plugin.interface import MetadataHookInterface

    class Addresses(MetadataHookInterface):
        def update(self, metadata):
            readme = (ROOT / "README.md").read_text(encoding="utf-8")
            text = index_readme(readme, metadata["version"], *addresses())
            metadata["readme"] = {"content-type": "text/markdown", "text": text}
            metadata["urls"] = urls(*addresses())

    return Addresses
