"""Addresses of the project, and how a message refers to a page of its documentation."""

# Empty until somebody owns the addresses; then each ends with a slash. They are used in messages,
# on the site (docs/addresses.py), and in the wheel's metadata and README (.ci/metadata.py).
DOCUMENTATION = ""
REPOSITORY = ""

TITLES = {
    "first-test": "First range test",
    "optimizers": "With Optax and Flax",
    "range-test": "Run a range test",
    "reading": "Read a range test",
    "recipes": "Recipes",
    "schedules": "Choose a schedule",
    "suggestions": "How good are the suggestions?",
    "sweeps": "Sweeps",
    "training-steps": "Any training step",
}


def see(place: str, documentation: str = DOCUMENTATION) -> str:
    """Return the last sentence of a message, which points to a page or to a heading on it.

    Args:
        place: name of the page, and anchor of the heading if any: ``"reading/#too-few-steps"``.
        documentation: address of the documentation, or "" while it has none.
    """
    if documentation:
        return f"See {documentation}{place}"  # no full stop: it would become part of the link
    page, _, anchor = place.partition("/")
    heading = anchor.removeprefix("#").replace("-", " ")
    return f"See '{TITLES[page]}', {heading + ', ' if heading else ''}in the documentation."
