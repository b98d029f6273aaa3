"""The thumbnails of docs/pages/gallery.md, by the code that the page shows below each.

python docs/figures/gallery.py            # into docs/pages/images
python docs/figures/gallery.py FOLDER
"""

import pathlib
import re
import sys
import textwrap

import jax.numpy as jnp
import style
from matplotlib import pyplot

PAGES = pathlib.Path(__file__).parents[1] / "pages"
IMAGE = r"(?:!\[[^\]]*\]\(images/(gallery/[\w-]+\.svg)\)\n\n *)?"
BLOCKS = re.compile(IMAGE + r"```python\n(.*?)```", re.DOTALL)


def pictures(page):
    """Yield the file of each picture, and the schedule that the code block below it makes."""
    names = {}
    for file, block in BLOCKS.findall(page):
        exec(textwrap.dedent(block), names)
        if file:
            yield file, names["schedule"], names["steps"]


def draw(schedule, num_steps):
    steps = jnp.arange(num_steps)
    values = schedule(steps)
    is_momentum = values.min() > 0.5
    figure, axes = pyplot.subplots(figsize=(3.6, 1.5), layout="constrained")
    axes.plot(steps, values, color="tab:purple" if is_momentum else "tab:blue", linewidth=1.5)
    axes.set_ylim(*((0.84, 0.96) if is_momentum else (-0.04, 1.06)))
    axes.set_yticks((0.85, 0.95) if is_momentum else (0, 0.2, 1), minor=False)
    axes.set_xticks((0, num_steps // 2, num_steps))
    axes.margins(x=0.01)
    return figure


def main():
    folder = pathlib.Path(sys.argv[1]) if sys.argv[1:] else PAGES / "images"
    style.use()
    for file, schedule, num_steps in pictures((PAGES / "gallery.md").read_text()):
        style.save(draw(schedule, num_steps), folder / file)


if __name__ == "__main__":
    main()
