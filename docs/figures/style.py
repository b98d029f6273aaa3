"""What the figures have in common: sizes that can be read on a phone, and small SVG files.

Figures are transparent, and black on that: the site's style sheet turns their lightness round in
dark mode. Text stays text, in a font that every system has.
"""

import re

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot

# Inches of 72 points; a browser shows a point as 4/3 pixels. 5 inches are 480 pixels on a desktop,
# and 360 on a phone, where the type of 10 points is 10 pixels high.
WIDTH = 5.0


def use():
    pyplot.rcParams.update(
        {
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 10,
            "legend.frameon": False,
            "path.simplify_threshold": 0.5,
            "savefig.transparent": True,
            "svg.fonttype": "none",
            "svg.hashsalt": "optax_clr",
        }
    )


def save(figure, path):
    """Write an SVG that is the same in every run, without what browsers do not need."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(path, metadata=nothing)
    pyplot.close(figure)
    text = re.sub(r"<\?xml.*?<svg", "<svg", path.read_text(), flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"'DejaVu Sans'[^\"';]*(?:'[^\"';]*'[^\"';]*)*sans-serif", "sans-serif", text)
    path.write_text(text)
