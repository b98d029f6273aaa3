"""Gives MkDocs the addresses of the site and of the repository, once somebody owns them."""

import pathlib
import runpy

ADDRESSES = pathlib.Path(__file__).parents[1] / "optax_clr/_documentation.py"


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
