"""Does the form of a schedule tell its peak? What the bound predicts, and what trainings found.

    python docs/study/peaks.py

For each schedule of modern_truth.py, at 600 and 3,000 steps: the peak over the best constant rate
of the same length, as `RangeTestResult.peak_for` has it from the form alone, and as the grids of
ground truth have it (the median over the tasks, and the middle half); and the regret of the
predicted peak, how much higher the log of the validation loss is than with the best peak of the
grid. Nothing was fitted, so development and held-out tasks differ only in being others.
"""

from __future__ import annotations

import importlib.metadata

import numpy as np
from modern_tasks import LONG_STEPS, MODERN_TASKS, SHORT_STEPS
from modern_truth import AROUND_BEST, GRID, stored

from optax_clr._peak_ratio import peak_ratio

SCHEDULES = GRID | AROUND_BEST


def log_losses(known, task, schedule, num_steps):
    """Return the logs of the rates and of the losses, averaged over the starts; inf diverged."""
    around = f"/{num_steps}" if schedule in AROUND_BEST else ""
    losses = np.asarray(known[f"{task.name}/{schedule}/{num_steps}"], float)
    losses = np.where(np.isfinite(losses) & (losses > 0), losses, np.inf)
    return np.log(known[f"{task.name}/rates{around}"]), np.log(losses).mean(0)


def best(rates, losses):
    return rates[np.argmin(losses)]


def regret(rates, losses, rate):
    """Return the regret of a rate between those of the grid, at most ln 10."""
    above = np.minimum(losses - losses.min(), np.log(10))
    return np.interp(rate, rates, above)


def compare(known, tasks, schedule, num_steps):
    """Return the logs of the observed ratios, and the regrets of the predicted peak."""
    predicted = np.log(peak_ratio(SCHEDULES[schedule](1.0, num_steps), num_steps))
    ratios, regrets = [], []
    for task in tasks:
        constant = best(*log_losses(known, task, "constant", num_steps))
        rates, losses = log_losses(known, task, schedule, num_steps)
        ratios.append(best(rates, losses) - constant)
        regrets.append(regret(rates, losses, constant + predicted))
    return np.exp(predicted), np.exp(ratios), np.array(regrets)


def main():
    known = stored()
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("jax", "optax", "flax"))
    print(f"{', '.join(versions)}; ratios are on a grid of four rates to a decade")
    for group in ("dev", "held-out"):
        tasks = [task for task in MODERN_TASKS.values() if task.group == group]
        for num_steps in (SHORT_STEPS, LONG_STEPS):
            print(f"\n{group}, {len(tasks)} tasks, {num_steps} steps")
            print(f"{'':26}predicted  observed (middle half)  regret mean  median  worst")
            for schedule in SCHEDULES:
                if schedule == "constant":
                    continue
                predicted, ratios, regrets = compare(known, tasks, schedule, num_steps)
                low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
                print(
                    f"{schedule:26}{predicted:9.2f}  {middle:8.2f} ({low:.2f} to {high:.2f})"
                    f"{regrets.mean():14.2f}{np.median(regrets):8.2f}{regrets.max():7.2f}"
                )
        moves = [
            best(*log_losses(known, task, use, LONG_STEPS))
            - best(*log_losses(known, task, use, SHORT_STEPS))
            for use in GRID
            for task in tasks
        ]
        for use, move in zip(GRID, np.split(np.exp(moves), len(GRID)), strict=True):
            low, middle, high = np.quantile(move, (0.25, 0.5, 0.75))
            print(
                f"the best {use} rate of {LONG_STEPS} steps over that of {SHORT_STEPS}: "
                f"{middle:.2f} ({low:.2f} to {high:.2f}), from {move.min():.2f} to {move.max():.2f}"
            )


if __name__ == "__main__":
    main()
