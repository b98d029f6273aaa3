"""Gives MkDocs the addresses of the site and of the repository, once somebody owns them."""

import pathlib
import re
import runpy

ADDRESSES = pathlib.Path(__file__).parents[1] / "optax_clr/_documentation.py"
IN_COLAB = "https://colab.research.google.com/github/"


def on_config(config):
    names = runpy.run_path(str(ADDRESSES))  # importing the package would import JAX
    config.site_url = names["DOCUMENTATION"]
    if names["REPOSITORY"]:
        config.repo_url = names["REPOSITORY"]
        config.repo_name = config.site_name
        config.edit_uri = "edit/main/docs/pages/"
        # For the links to the code: templates/python/material/source_link.html.jinja.
        options = config.plugins["mkdocstrings"].config.handlers["python"]["options"]
        options["extra"] = {"repository": names["REPOSITORY"]}
    return config


def on_page_markdown(markdown, config, **_):
    """Say under a page that is a notebook too how to open it, if Colab can."""
    notebook = re.search(r"also a notebook, `(.*?)` in the repository", markdown)
    repository = (config.repo_url or "").removeprefix("https://github.com/").strip("/")
    if not notebook or repository.count("/") != 1:
        return markdown
    return f"{markdown}\n[Open it in Colab]({IN_COLAB}{repository}/blob/main/{notebook[1]}).\n"
