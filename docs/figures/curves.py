"""The figures of docs/pages/reading.md: a good curve, and the five ways in which they are bad.

    python docs/figures/curves.py            # into docs/pages/images
    python docs/figures/curves.py FOLDER

The tests are those of the page: its code blocks are run, and what they name is drawn, bad curves
in front of the good one. Printed is the table of its section on too few steps: how many of 20
tests with other batches are read without an error or a warning, and the peaks that they read.
"""

import argparse
import contextlib
import pathlib
import re
import warnings

import numpy as np
import style
from matplotlib import pyplot as plt
from PIL import Image  # which Matplotlib needs

import optax_clr
from optax_clr import plotting

PAGES = pathlib.Path(__file__).parents[1] / "pages"
# Of a figure: the test of the page, the words with which it is read, and what stands where in it.
FIGURES = {
    "good": (
        "good",
        None,
        {"level": (3e-5, 2.0), "fall": (1e-3, 1.2), "valley": (3e-2, -0.1), "rise": (9e-2, 3.0)},
    ),
    "too-high-a-start": (
        "high",
        "the start of the sweep cuts the valley",
        {"not tested:\nwhere does it begin to fall?": (2e-5, 1.1)},
    ),
    "too-low-an-end": (
        "low",
        "the end of the sweep cuts the valley",
        {"not tested:\nwhere does\nit rise?": (1.2e-2, 3.3)},
    ),
    "too-few-steps": (
        "few",
        "the loss never fell",
        {"a fall,\nor noise?": (5e-2, 3.4)},
    ),
    "a-model-that-cannot-learn": (
        "mixed",
        "the loss never fell",
        {"level where the good curve falls": (2e-5, 2.6)},
    ),
}


def names_of(page):
    """Return what the code blocks of a page define, by name."""
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        with contextlib.redirect_stdout(None):
            exec(compile(block, str(page), "exec"), names)
    return names


def draw(result, good, notes):
    """Return Axes with a test, on the same scales as the others."""
    ax = plt.subplots(figsize=(style.WIDTH, 3.2), layout="constrained")[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optax_clr.RangeTestWarning)
        plotting.plot_range_test(result, ax)
    if result is not good:
        ax.plot(good.learning_rates, good.losses, color="0.7", lw=0.8, zorder=0)
    ax.set(xlim=(5e-8, 20), ylim=(-0.3, 4.5))
    first, last = result.learning_rates[0], result.learning_rates[-1]  # NaN if it has diverged
    for missing in ((good.learning_rates[0], first), (last, good.learning_rates[-1])):
        if missing[1] > missing[0]:
            ax.axvspan(*map(float, missing), color="0.94", lw=0, zorder=-1)
    for text, place in notes.items():
        ax.text(*place, text, ha="center", va="center", color="0.25")
    return ax


def save(figure, path):
    """Write two pixels for one of a page, of 64 colours: a third of the bytes, and as good."""
    figure.set_dpi(200)
    figure.canvas.draw()
    pixels = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    pixels.quantize(64).save(path, optimize=True)


def print_table(names):
    for num_steps in (10, 30, 100, 300):
        peaks = []
        for seed in range(20):
            rows = names["shuffled"](32, seed)
            batches = names["images"][rows], names["labels"][rows]
            result = names["digits_test"](batches, num_steps=num_steps)
            with warnings.catch_warnings():  # of those of few steps, which it is a table of
                warnings.filterwarnings("ignore", "the steps are few")
                with contextlib.suppress(optax_clr.RangeTestError):
                    peaks.append(float(result.bounds().peak_value))
        print(f"{num_steps:3} steps: {len(peaks)} of 20, {min(peaks):.2g} to {max(peaks):.2g}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=pathlib.Path, nargs="?", default=PAGES / "images")
    folder = parser.parse_args().folder
    style.use()
    names = names_of(PAGES / "reading.md")
    for figure, (name, words, notes) in FIGURES.items():
        result = names[name]
        message = names["complaint"](result)
        found = message and str(message).partition(":")[0]
        if found != words:
            raise SystemExit(f"{figure}: the reading says {message}, and not {words!r}.")
        ax = draw(result, names["good"], notes)
        if figure == "too-low-an-end":  # its rates lie below the legend
            ax.legend(loc="lower left", fontsize=8, frameon=True, framealpha=1, edgecolor="none")
        ax.set_title(ax.get_title() or (f"in doubt: {words}" if words else "a good curve"))
        save(ax.figure, folder / f"{figure}.png")
    print_table(names)


if __name__ == "__main__":
    main()
