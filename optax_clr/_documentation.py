"""Where the documentation explains at length what a message says."""

_SITE = "https://optax-clr.readthedocs.io/en/latest"


def see(page: str) -> str:
    """Return the last sentence of a message: the address of a page, or of a heading on one."""
    return f"See {_SITE}/{page}"
