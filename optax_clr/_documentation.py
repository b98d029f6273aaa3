"""Where the project is found, and how a message refers to a page of its documentation."""

# Empty until somebody owns them; then with a slash at the end. From here they go into messages, the
# site (docs/addresses.py), and the wheel's metadata and README (.ci/metadata.py).
DOCUMENTATION = ""
REPOSITORY = ""

TITLES = {
    "first-test": "First range test",
    "optimizers": "With Optax and Flax",
    "range-test": "Run a range test",
    "reading": "Read a range test",
    "recipes": "Recipes",
    "schedules": "Choose a schedule",
    "sweeps": "Sweeps",
    "training-steps": "Any training step",
}


def see(place: str, documentation: str = DOCUMENTATION) -> str:
    """Return the last sentence of a message, which names a page, or a heading on it.

    Args:
        place: the page's name, and the heading's anchor: ``"reading/#too-few-steps"``.
        documentation: the address of the documentation, or "" while it has none.
    """
    if documentation:
        return f"See {documentation}{place}"  # no full stop, which would become part of the link
    page, _, anchor = place.partition("/")
    heading = anchor.removeprefix("#").replace("-", " ")
    return f"See '{TITLES[page]}', {heading + ', ' if heading else ''}in the documentation."
