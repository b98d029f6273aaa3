"""The tables about suggestions in the documentation, from what suggestions.py stored.

    python docs/study/suggestion_tables.py    # prints them, in Markdown

Intervals are Student's, of the paired differences over the tasks. Those of one table hold together
with a probability of 95%: each is as wide as Bonferroni's correction for all of them asks.
"""

from __future__ import annotations

import pathlib
import warnings

import numpy as np
from scipy import stats

FOLDER = pathlib.Path(__file__).parent
LENGTHS = (300, 600, 1000)
QUARTERS = tuple(length // 4 for length in LENGTHS)
USES = ("constant", "one cycle", "triangular")
OURS, OURS_HELD_OUT = "range test", "range test, held-out batch"
DEFAULT, TUNED = "the optimizer's default rate (no test)", "a rate per optimizer, tuned (no test)"
PUBLISHED = (
    "fastai minimum",
    "fastai valley",
    "Smith",
    "Ignite",
    "torch-lr-finder",
    "Lightning",
)
FITTED = ("fastai minimum, fitted", "fastai valley, fitted", "Smith, fitted")
LONG_STEPS = 3000
FACTORS = (1.5, 2, 3, 5)
SAME = 1.5  # two suggestions that are so near are the same
CONFIDENCE = 0.95


def markdown(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value):
    """Return a number with two digits after the point, without the zero before it."""
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"


def signed(value):
    return ("+" if value >= 0 else "-") + number(abs(value))


def groups(regrets):
    """Return which tasks no choice was made on, without those that are memorised: two of them."""
    chosen = regrets["is held-out"] & ~regrets["is saturated"]
    return {
        "earlier": chosen & ~regrets["is modern"],
        "present-day": chosen & regrets["is modern"],
        "all": chosen,
    }


def sides(regrets):
    """Return which tasks are for development, and which no choice was made on."""
    return {"development": ~regrets["is held-out"], "held-out": groups(regrets)["all"]}


def stability(stored):
    """Return how far ``suggest()`` moves, as logs, ``[task]``: the median over the seeds.

    Of a test that is in doubt, or has no answer, it is NaN.
    """

    def answers(key, name=OURS):
        rates = np.log(stored[f"{key}/{name}"][..., 0])
        return np.where(stored[f"{key}/{name}/doubts"][..., 0], np.nan, rates)

    def median(table):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # all of them NaN
            return np.nanmedian(table, 1)

    plain = answers("300")
    return {
        "another seed": median(np.abs(plain - median(plain)[:, None])),
        "range a decade wider at both ends": np.abs(median(answers("300 wide") - plain)),
        "half the steps": np.abs(median(answers("150") - plain)),
        "twice the steps": np.abs(median(answers("600") - plain)),
        "150 to 1,000 steps": np.ptp(
            [median(answers(key)) for key in ("150", "300", "600", "1000")], axis=0
        ),
        "held-out losses": np.abs(median(answers("300", OURS_HELD_OUT) - plain)),
    }


def within_table(regrets, suggestions):
    """How far the suggestion of a test of 300 steps is from the best rate of the grid."""
    rows = []
    for name, column, use in (("suggest()", 0, "constant"), ("one_cycle_peak()", 1, "one cycle")):
        rates = suggestions[f"300/{OURS}"][..., column]
        chosen = groups(regrets)["all"]
        errors = np.abs(np.log(rates / regrets[f"best rate/{use}"][:, None]))[chosen]
        known = errors[np.isfinite(errors)]
        rows.append(
            [f"`{name}`", *(f"{np.mean(known <= np.log(factor)):.0%}" for factor in FACTORS)]
        )
    titles = [f"within {factor:g}x" for factor in FACTORS]
    return markdown(["best rate of the grid", *titles], rows)


def optimizers_table(regrets, suggestions):
    """Which way ``suggest()`` is wrong, by the optimizer: its ratio to the best constant rate."""
    names = np.array([name.split()[-1] for name in regrets["tasks"].tolist()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no answer for any seed
        rates = np.nanmedian(suggestions[f"300/{OURS}"][..., 0], 1)
    ratios = rates / regrets["best rate/constant"]
    known = np.isfinite(ratios) & ~regrets["is saturated"]
    rows = []
    for optimizer in ("sgd", "momentum", "adam", "adamw", "lion", "muon"):
        cells = []
        for is_held_out in (False, True):
            chosen = known & (names == optimizer) & (regrets["is held-out"] == is_held_out)
            found = np.sort(ratios[chosen])
            cells.append(
                f"{np.exp(np.median(np.log(found))):.2g} ({found[0]:.2g} to {found[-1]:.2g}), "
                f"{len(found)} tasks"
                if len(found) > 1
                else f"{found[0]:.2g}, 1 task"
            )
        rows.append([optimizer, *cells])
    return markdown(["`suggest()` over the best rate, median", "development", "held-out"], rows)


def stability_table(regrets, suggestions):
    """How far ``suggest()`` of a test of 300 steps moves, where it leaves no doubt."""
    rows = []
    for change, moves in stability(suggestions).items():
        cells = []
        for is_held_out in (False, True):
            known = np.isfinite(moves) & ~regrets["is saturated"]
            chosen = known & (regrets["is held-out"] == is_held_out)
            near = moves[chosen] <= np.log(SAME)
            cells.append(f"{near.sum()} of {chosen.sum()} ({np.exp(moves[chosen].max()):.1f}x)")
        rows.append([change, *cells])
    return markdown([f"within {SAME}x (largest)", "development", "held-out"], rows)


def quarter_table(regrets, suggestions):
    """What it says of a test that one of a quarter of its steps reads much less."""
    rows = []
    for name, chosen in sides(regrets).items():
        for length, quarter in zip(LENGTHS, QUARTERS, strict=True):
            rates, before = (
                suggestions[f"{steps}/{OURS}"][chosen, :, 0] for steps in (length, quarter)
            )
            both = np.isfinite(rates) & np.isfinite(before)
            has_grown = both & (rates > SAME * before)
            best = regrets["best rate/constant"][chosen, None] / rates
            each = regrets[f"{length}/{OURS}/constant/each"][chosen]
            rows.append([
                f"{name}, {quarter} and {length:,} steps",
                f"{has_grown.sum()} of {both.sum()}",
                number(each[has_grown].mean()),
                number(each[both & ~has_grown].mean()),
                f"{np.median(best[has_grown]):.1f} ({np.mean(best[has_grown] > 1):.0%} above 1)",
                f"{np.median(best[both & ~has_grown]):.1f}",
            ])  # fmt: skip
    titles = [
        "", "has grown", "regret of those", "of the others", "best rate over `suggest()`, those",
        "the others",
    ]  # fmt: skip
    return markdown(titles, rows)


def few_steps_table(regrets, suggestions):
    """What tests with few steps to a decade come to, if their doubts are not heeded."""
    rows = []
    for name, chosen in sides(regrets).items():
        for length in (*QUARTERS[:2], LENGTHS[0]):
            cells = []
            for rule in (OURS, OURS_HELD_OUT):
                rates = suggestions[f"{length}/{rule}"][chosen, :, 0]
                found = np.isfinite(rates)
                means = [
                    regrets[f"{length}/{rule}/{use}/each"][chosen][found].mean() for use in USES[:2]
                ]
                off = (rates / regrets["best rate/constant"][chosen, None])[found]
                shares = np.mean(off < 1 / 3), np.mean(off > 3)
                cells += [*map(number, means), " / ".join(f"{share:.0%}" for share in shares)]
            rows.append([f"{name}, {length} steps", *cells])
    titles = ["constant", "one cycle", "below a third / above three times the best rate"]
    return markdown(
        ["", *titles, *(f"{title}, held-out batch" for title in titles)],
        rows,
    )


def held_out_table(regrets, suggestions):
    """Mean regret and the worst task's, after tests of 300 steps."""
    both = groups(regrets)
    parts = both["earlier"], both["present-day"]
    titles = [f"{use}, {name}" for name in ("earlier", "present-day") for use in USES]
    rows = []
    for rule in (OURS, OURS_HELD_OUT, *PUBLISHED, *FITTED, DEFAULT, TUNED):
        cells = []
        for chosen in parts:
            for use in USES:
                values = regrets[f"300/{rule}/{use}"][chosen]
                cells.append(f"{number(values.mean())} ({number(values.max())})")
        no_answer = regrets[f"300/{rule.removesuffix(', fitted')}/no answer"][both["all"]].mean()
        rows.append([rule, *cells, f"{no_answer:.0%}"])
    return markdown(["300 steps", *titles, "no answer"], rows)


def differences_table(regrets, suggestions):
    """How much more regret than the range test, and whether that is more than chance."""
    chosen = groups(regrets)["all"]
    rules = (*PUBLISHED, *FITTED, OURS_HELD_OUT, DEFAULT)
    uses = USES[:2]
    num_intervals = len(rules) * len(uses) * len(LENGTHS)
    quantile = stats.t.ppf(1 - (1 - CONFIDENCE) / 2 / num_intervals, chosen.sum() - 1)
    rows = []
    for rule in rules:
        cells = []
        for use in uses:
            for length in LENGTHS:
                pairs = regrets[f"{length}/{rule}/{use}"] - regrets[f"{length}/{OURS}/{use}"]
                pairs = pairs[chosen].astype(float)
                half = quantile * pairs.std(ddof=1) / np.sqrt(len(pairs))
                cell = f"{signed(pairs.mean())} ± {number(half)}"
                cells.append(f"**{cell}**" if abs(pairs.mean()) > half else cell)
        rows.append([rule, *cells])
    titles = [f"{use}, {length:,} steps" for use in uses for length in LENGTHS]
    return markdown(["more than the range test", *titles], rows)


def lengths_table(regrets, suggestions):
    """Mean and median regret of our reading after tests of 300, 600 and 1,000 steps."""
    rows = []
    by_name = groups(regrets)
    lines = [(OURS, name) for name in by_name] + [(OURS_HELD_OUT, "all")]
    for rule, name in lines:
        chosen, cells = by_name[name], []
        for use in USES:
            values = [regrets[f"{length}/{rule}/{use}"][chosen] for length in LENGTHS]
            for average in (np.mean, np.median):
                cells.append(" / ".join(number(average(part)) for part in values))
        rows.append([f"{rule}: {'all' if name == 'all' else f'{chosen.sum()} {name}'}", *cells])
    titles = [f"{use}, {average}" for use in USES for average in ("mean", "median")]
    return markdown(["300 / 600 / 1,000 steps", *titles], rows)


def long_table(regrets, suggestions):
    """Mean regret where the training is ten times longer than the test."""
    modern = regrets["is modern"]
    held_out = regrets["is held-out"][modern]
    rows = []
    for rule in (OURS, *PUBLISHED[:3], DEFAULT):
        cells = []
        for chosen in (~held_out, held_out):
            for use in USES[:2]:
                short = regrets[f"300/{rule}/{use}"][modern][chosen]
                long = regrets[f"300/{rule}/{use}/{LONG_STEPS}"][chosen]
                cells.append(f"{number(short.mean())} / {number(long.mean())}")
        rows.append([rule, *cells])
    titles = [
        f"{use}, {part.sum()} {name}"
        for part, name in ((~held_out, "development"), (held_out, "held-out"))
        for use in USES[:2]
    ]
    return markdown(["regret after 600 / 3,000 steps", *titles], rows)


def doubts_table(regrets, suggestions):
    """How many tests of learnable tasks are refused or in doubt, and what that says."""
    rows = []
    for name, chosen in sides(regrets).items():
        for length in LENGTHS:
            key = f"{length}/{OURS}"
            doubts = regrets[f"{key}/doubts"].reshape(len(chosen), -1)[chosen]
            each = regrets[f"{key}/one cycle/each"][chosen]
            no_answer = regrets[f"{key}/no answer"][chosen]
            clear = each[~doubts]
            rows.append([
                f"{name}, {length:,} steps",
                f"{chosen.sum()}",
                f"{no_answer.mean():.0%}",
                f"{doubts.mean():.0%}",
                number(clear.mean()),
                number(each[doubts].mean()) if doubts.any() else "-",
            ])  # fmt: skip
    titles = ["", "tasks", "no answer", "in doubt", "regret without a doubt", "with one"]
    return markdown(titles, rows)


def badly_scaled_table(regrets, suggestions):
    """Mean regret after tests of 300 steps on raw features and raw targets."""
    badly = ~regrets["is well scaled"] & ~regrets["is saturated"]
    rows = []
    for rule in (OURS, *PUBLISHED[:3], DEFAULT):
        cells = [
            number(regrets[f"300/{rule}/{use}"][badly & part].mean())
            for part in (~regrets["is held-out"], regrets["is held-out"])
            for use in USES
        ]
        rows.append([rule, *cells])
    titles = [f"{use}, {name}" for name in ("development", "held-out") for use in USES]
    return markdown(["", *titles], rows)


PAGES = {
    "docs/pages/suggestions.md": (
        held_out_table,
        lengths_table,
        doubts_table,
        optimizers_table,
        stability_table,
        few_steps_table,
        quarter_table,
        badly_scaled_table,
    ),
    "docs/study/README.md": (differences_table, within_table, long_table),
}


def load():
    """Return the regrets and the suggestions that are stored."""
    return tuple(dict(np.load(FOLDER / f"{name}.npz")) for name in ("regrets", "suggestions"))


def main():
    stored = load()
    for page, tables in PAGES.items():
        for table in tables:
            print(f"{page}: {table.__doc__}\n\n{table(*stored)}\n")


if __name__ == "__main__":
    main()
