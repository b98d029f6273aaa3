"""The figures of what the study found: regret by rule, and schedules on every task.

    python docs/figures/evidence.py            # into docs/pages/images
    python docs/figures/evidence.py FOLDER

Drawn from what docs/study has stored; nothing is trained.
"""

import pathlib
import sys

import numpy as np
import style
from matplotlib import pyplot
from matplotlib.colors import LinearSegmentedColormap

DOCS = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(DOCS / "study"))  # first, as here is a training.py too

import comparisons  # noqa: E402
import suggestion_tables as suggestions  # noqa: E402
import training  # noqa: E402

# Rules with their labels, in groups.
RULES = (
    {
        suggestions.OURS: "range test",
        suggestions.OURS_HELD_OUT: "with held-out batch",
    },
    {rule: rule for rule in suggestions.PUBLISHED},
    {rule: rule for rule in suggestions.FITTED},
    {
        suggestions.DEFAULT: "default rate, no test",
        suggestions.TUNED: "tuned rate, no test",
    },
)
WITHOUT_TEST = (suggestions.DEFAULT, suggestions.TUNED)
# By the length of a test in steps: marker, colour, and how far from the line of the rule.
MARKS = {300: ("o", "tab:blue", -0.17), 1000: ("s", "tab:orange", 0.17)}
NO_TEST = ("D", "0.4", 0.0)

# How the peak is chosen, and the schedule. All are compared with a tuned cosine decay.
COLUMNS = {
    "one cycle": ("tuned", "one cycle"),
    "WSD": ("tuned", "warm-up, stable, decay"),
    "SGDR": ("tuned", "SGDR"),
    "step decay": ("tuned", "step decay"),
    "triangular": ("tuned", "triangular"),
    "triangular2": ("tuned", "triangular2"),
    "constant": ("tuned", "constant"),
    "one cycle, tested": ("tested", "one cycle"),
}
# Light enough for black type, from less loss to more.
SHADES = LinearSegmentedColormap.from_list("shades", ("#74b2e0", "#ffffff", "#f5a15f"))
FULL_SHADE = np.log(1.4)


def regret_by_rule(regrets):
    """Draw mean regrets on the held-out tasks, with the t-intervals of the means."""
    chosen = suggestions.groups(regrets)["all"]
    figure, panels = pyplot.subplots(
        1, 2, figsize=(style.WIDTH, 4.9), sharey=True, layout="constrained"
    )
    places, labels = [], []
    for number, group in enumerate(RULES):
        for rule, label in group.items():
            place = len(labels) + 0.5 * number
            places.append(place)
            labels.append(label)
            for axes, use in zip(panels, suggestions.USES, strict=False):
                draw_rule(axes, place, regrets, chosen, rule, use)
    for axes, use in zip(panels, suggestions.USES, strict=False):
        axes.set(title=use, xlim=(0, 1.75), xticks=(0, 0.5, 1, 1.5))
        axes.grid(axis="x", color="0.85", lw=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(places, labels)
    panels[0].invert_yaxis()
    for label in panels[0].get_yticklabels()[: len(RULES[0])]:
        label.set_fontweight("bold")
    names = {f"test of {length:,} steps": mark for length, mark in MARKS.items()}
    handles = [
        pyplot.Line2D([], [], marker=marker, color=color, label=label)
        for label, (marker, color, _) in (names | {"no test": NO_TEST}).items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, columnspacing=1,
                  handlelength=1.4)  # fmt: skip
    figure.supxlabel("mean regret, with its 95% interval", fontsize=10)
    return figure


def draw_rule(axes, place, regrets, chosen, rule, use):
    # Without a test there is nothing that its length could change.
    marks = {min(MARKS): NO_TEST} if rule in WITHOUT_TEST else MARKS
    for length, (marker, color, shift) in marks.items():
        values = regrets[f"{length}/{rule}/{use}"][chosen].astype(float)
        mean, half = values.mean(), comparisons.half_interval(values)
        axes.errorbar(mean, place + shift, xerr=half, fmt=marker, color=color, ms=4, lw=1.4)
        print(f"{use}, {length} steps, {rule}: {mean:.3f} ± {half:.3f}")


def schedules_by_task(tables):
    """Draw the ratio of losses to a tuned cosine, with its verdict, of every task."""
    reference = "tuned", training.COSINE
    figure, axes = pyplot.subplots(figsize=(style.WIDTH, 5), layout="constrained")
    means, words = [], []
    for source, policy in COLUMNS.values():
        row = source, training.NAMES.index(policy)
        found = training.log_ratios_of(tables, row, reference)
        means.append([values.mean() for values in found])
        words.append(comparisons.verdicts(found))
    means = np.transpose(means)
    axes.pcolormesh(
        means, cmap=SHADES, vmin=-FULL_SHADE, vmax=FULL_SHADE, edgecolors="0.6", linewidth=0.5
    )
    for (row, column), mean in np.ndenumerate(means):
        word, middle = words[column][row], column + 0.5
        weight = "bold" if word in ("better", "worse") else "normal"
        axes.text(middle, row + 0.33, f"{np.exp(mean):.2f}", ha="center", va="center",
                  fontsize=9.5, fontweight=weight)  # fmt: skip
        axes.text(middle, row + 0.71, word, ha="center", va="center", fontsize=8.5)
    num_tuned = sum(source == "tuned" for source, _ in COLUMNS.values())
    axes.axvline(num_tuned, color="0.2", lw=1.5)
    axes.set_yticks(np.arange(len(tables)) + 0.5, [in_two_lines(name) for name in tables])
    axes.set_xticks(np.arange(len(COLUMNS)) + 0.5, COLUMNS, rotation=60, ha="left",
                    rotation_mode="anchor")  # fmt: skip
    axes.xaxis.tick_top()
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def in_two_lines(name):
    first, _, rest = name.partition(" ")
    if " " in rest:  # the network's name, and what is special
        network, _, rest = rest.partition(" ")
        first = f"{first} {network}"
    return f"{first}\n{rest}"


def main():
    folder = pathlib.Path(sys.argv[1]) if sys.argv[1:] else DOCS / "pages/images"
    style.use()
    regrets, _ = suggestions.load()
    style.save(regret_by_rule(regrets), folder / "regret.svg")
    style.save(schedules_by_task(training.load()), folder / "schedules-by-task.svg")


if __name__ == "__main__":
    main()
