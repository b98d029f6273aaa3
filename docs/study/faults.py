"""Synthetic curves with one fault each, and what is read from them.

    python docs/study/faults.py    # a minute or two

A curve that falls near one rate and rises near another is read first; then it is spoilt, in one of
the ways below and from three seeds of noise. The answer should be that of the good curve to a
factor of three, or come with a doubt, or be refused: anything else is wrong.
"""

from __future__ import annotations

import importlib.metadata
import warnings

import jax
import numpy as np

import optax_clr

RATES = np.geomspace(1e-7, 10.0, 300)
SEEDS = range(3)
SAME = 3.0
OUTCOMES = ("right", "doubt", "refused", "wrong")
HAS_END = "ended_by" in optax_clr.RangeTestResult._fields


def logistic(rate, steepness):
    return 1 / (1 + (rate / RATES) ** (steepness / np.log(10)))


def curve(seed, *, falls_at=1e-2, rises_at=0.3, top=2.3, bottom=0.3, destroyed=None, noise=0.05):
    """Return losses that fall from ``top`` to ``bottom``, and explode or end as ``destroyed``."""
    losses = top - (top - bottom) * logistic(falls_at, 4)
    rise = logistic(rises_at, 6)
    if destroyed is None:
        losses += 2 * rise * (RATES / rises_at) ** 1.3
    else:
        losses += (destroyed - losses) * rise
    return losses + noise * np.random.default_rng(seed).normal(size=len(RATES))


def result_of(losses, ended_by=None):
    """Return a result with these losses, up to the last that is finite."""
    is_valid = np.arange(len(RATES)) <= np.flatnonzero(np.isfinite(losses)).max()
    rates = np.where(is_valid, RATES, np.nan).astype(np.float32)
    known = {} if ended_by is None or not HAS_END else {"ended_by": np.int32(ended_by)}
    return optax_clr.RangeTestResult(rates, losses, losses, np.int32(is_valid.sum()), **known)


def through_the_stop(losses):
    """Return the result of a test whose batches have these losses, with its early stop."""
    step = lambda state, loss, rate: (state, loss + 0 * rate)
    return optax_clr.range_test(step, 0.0, losses.astype(np.float32), RATES.astype(np.float32))


def answer(result):
    """Return the suggestion, NaN where it is refused, and whether there is a doubt."""
    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("always")
        try:
            return float(result.suggest()), bool(doubts)
        except optax_clr.RangeTestError:
            return np.nan, False


def spoilt(seed):
    """Yield what is wrong, a result, and the right answer."""
    good = curve(seed)
    right, _ = answer(result_of(good))

    def changed(row, value):
        losses = good.copy()
        losses[row] = value
        return losses

    for row in (120, 160, 180, 200, 230):
        yield "one infinite loss", result_of(changed(row, np.inf)), right
        yield "one loss that is NaN", through_the_stop(changed(row, np.nan)), right
        tail = changed(slice(row, None), np.nan)
        yield "out of batches", result_of(tail, ended_by=2), right
        yield "ended for an unknown reason", result_of(tail), right
    for row in (30, 60, 100, 150, 200):
        for factor in (3, 10, 100, 1e6):
            yield "one bad batch", through_the_stop(changed(row, factor * good[row])), right
    for top, guess, noise in (
        (4.6, 0.7, 0.02),
        (4.6, 0.7, 0.1),
        (46, 0.7, 0.02),
        (10, 2.3, 0.05),
        (4.6, 1.5, 0.02),
    ):
        place = {"falls_at": 1e-5, "rises_at": 1.5e-4, "bottom": 0.33, "noise": noise}
        usual, _ = answer(result_of(curve(seed, top=0.7, **place)))
        losses = curve(seed, top=top, destroyed=guess, **place)
        yield "a start worse than a guess", result_of(losses), usual
    for factor, constant in (
        (1.0, 1e9),
        (1e-6, -76.4),
        (1e9, 0.0),
        (1e-9, 0.0),
        (1.0, -1e6),
        (1.0, 1e3),
    ):
        yield "scales and constants", result_of(constant + factor * good), right


def main():
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("jax", "optax"))
    print(f"{', '.join(versions)}, {jax.default_backend()}; seeds {list(SEEDS)}")
    counts = {}
    for seed in SEEDS:
        for kind, result, right in spoilt(seed):
            rate, is_doubtful = answer(result)
            is_right = 1 / SAME < rate / right < SAME
            outcome = (
                "right" if is_right and not is_doubtful
                else "doubt" if is_doubtful
                else "refused" if np.isnan(rate)
                else "wrong"
            )  # fmt: skip
            by_outcome = counts.setdefault(kind, dict.fromkeys(OUTCOMES, 0))
            by_outcome[outcome] += 1
    print(f"{'':30}{''.join(f'{name:>9}' for name in OUTCOMES)}")
    for kind, by_outcome in counts.items():
        print(f"{kind:30}{''.join(f'{count:9}' for count in by_outcome.values())}")


if __name__ == "__main__":
    main()
