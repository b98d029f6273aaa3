"""The figure of the benchmark of schedules: how the loss depends on the peak.

    python docs/figures/training.py            # into docs/pages/images
    python docs/figures/training.py FOLDER

Drawn from what docs/study/training.py has stored; nothing is trained.
"""

import pathlib
import sys

import numpy as np
import style
from curves import save
from matplotlib import pyplot
from matplotlib.ticker import LogLocator, NullFormatter

DOCS = pathlib.Path(__file__).parents[1]
POLICIES = {
    0: "constant",
    2: "cosine",
    3: "warm-up, stable, decay",
    4: "triangular",
    7: "one cycle",
}
TESTED = 1  # among the ways to choose a peak


def draw(folder):
    files = sorted((DOCS / "study/training").glob("*.npz"))
    style.use()
    figure, grid = pyplot.subplots(5, 2, figsize=(style.WIDTH, 9), layout="constrained")
    for axes, file in zip(grid.flat, files, strict=False):
        draw_task(axes, np.load(file))
        axes.set_title(file.stem.replace("-", " ").replace("n gram", "n-gram"))
    lines = axes.get_legend_handles_labels()
    for axes in grid.flat[len(files) :]:
        axes.axis("off")
    axes.legend(*lines, loc="center")
    figure.supxlabel("peak of the schedule; dots: as one range test suggests it", fontsize=10)
    figure.supylabel("validation loss after training", fontsize=10)
    save(figure, folder / "training.png")


def draw_task(axes, table):
    rates, losses = table["rates"], table["tuning"].mean(2)
    for policy, name in POLICIES.items():
        (line,) = axes.loglog(rates, losses[policy], label=name, linewidth=1)
        peak = np.median(table["peaks"][TESTED, policy])
        height = np.exp(np.interp(np.log(peak), np.log(rates), np.log(losses[policy])))
        axes.plot(peak, height, "o", color=line.get_color(), markersize=5)
    best, start = np.nanmin(losses), np.nanmax(losses[:, 0])
    axes.set_ylim(0.9 * best, 1.5 * max(start, 2 * best))
    axes.xaxis.set_major_locator(LogLocator(numticks=4))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


if __name__ == "__main__":
    draw(pathlib.Path(sys.argv[1]) if sys.argv[1:] else DOCS / "pages/images")
