"""What one way to train is worth against another, over tasks and seeds: intervals and verdicts.

Differences are paired: of the same seed, which sets the start and the batches. A loss is compared
by its log-ratio, and the mean is shown as a ratio of losses; a run that diverged counts as ten
times the loss.

On one task the interval is a t-interval over the seeds, corrected for the number of tasks
(Bonferroni). The verdict is "equal" if the interval lies within the margin of equivalence; "better"
or "worse" if it does not contain 0 and is not within the margin; and otherwise "open": these seeds
cannot tell. Over all tasks the interval is a t-interval over the means of the tasks; `holm` says
which differences remain after a correction for all rows of a table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

RATIO_MARGIN = math.log(1.05)  # losses within 5% are equal
POINTS_MARGIN = 1.0  # and accuracies within one percentage point
WORST = math.log(10.0)
VERDICTS = ("better", "equal", "worse", "open")


def log_ratios(losses, reference):
    """Return the log-ratios of the losses of the same seeds, ``[seed]``, at most ten times."""
    logs = [np.where(np.isfinite(x), np.log(np.where(np.isfinite(x), x, 1)), np.inf)
            for x in (np.asarray(losses, float), np.asarray(reference, float))]  # fmt: skip
    both = np.isinf(logs[0]) & np.isinf(logs[1])
    differences = np.where(both, 0.0, logs[0]) - np.where(both, 0.0, logs[1])
    return np.clip(differences, -WORST, WORST)


def half_interval(values, comparisons=1):
    """Return half the 95% interval of the mean, corrected for so many comparisons."""
    quantile = stats.t.ppf(1 - 0.025 / comparisons, len(values) - 1)
    return quantile * np.std(values, axis=0, ddof=1) / math.sqrt(len(values))


def verdict(values, comparisons, margin):
    """Return one of `VERDICTS` on paired differences, lower being better."""
    mean, half_width = np.mean(values), half_interval(values, comparisons)
    if abs(mean) + half_width < margin:
        return "equal"
    if abs(mean) <= half_width:
        return "open"
    return "better" if mean < 0 else "worse"


def verdicts(differences: Sequence, margin: float = RATIO_MARGIN) -> list[str]:
    """Return the verdict of each task on paired differences, ``[seed]`` of each task."""
    return [verdict(values, len(differences), margin) for values in differences]


class Comparison(NamedTuple):
    """A mean over tasks, its 95% interval, the highest of a task, and the tasks by verdict."""

    mean: float
    low: float
    high: float
    worst: float
    p_value: float
    counts: tuple[int, ...]

    @property
    def verdicts(self):
        return " / ".join(map(str, self.counts))

    @property
    def ratio(self):
        return math.exp(self.mean)

    @property
    def worst_ratio(self):
        return math.exp(self.worst)

    @property
    def in_words(self):
        """What the interval of a ratio of losses says, before the name of what it is over."""
        if max(-self.low, self.high) <= RATIO_MARGIN:
            return "as good as"
        if self.high < 0 or self.low > 0:
            return "better than" if self.high < 0 else "worse than"
        return "not distinguishable from"

    def as_ratio(self, mark=""):
        """Return the ratio of losses with its interval, as the tables have it."""
        low, high = math.exp(self.low), math.exp(self.high)
        return f"{self.ratio:.2f}{mark} [{low:.2f}, {high:.2f}]"


def compare(differences: Sequence, margin: float = RATIO_MARGIN) -> Comparison:
    """Compare paired differences, ``[seed]`` of each task."""
    found = verdicts(differences, margin)
    means = np.array([np.mean(values) for values in differences])
    mean, half_width = means.mean(), half_interval(means)
    p_value = float(stats.ttest_1samp(means, 0.0).pvalue) if np.ptp(means) else 1.0
    counts = tuple(map(found.count, VERDICTS))
    return Comparison(mean, mean - half_width, mean + half_width, means.max(), p_value, counts)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return which hypotheses are rejected at 5% after Holm's correction, in the same order."""
    order = np.argsort(p_values)
    allowed = 0.05 / np.arange(len(p_values), 0, -1)
    passed = np.cumprod(np.asarray(p_values)[order] <= allowed).astype(bool)
    rejected = np.zeros(len(p_values), bool)
    rejected[order[passed]] = True
    return rejected
