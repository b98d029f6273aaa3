"""The rules by which other systems read a range test, as functions of one recorded curve.

    python docs/study/suggestion_peers.py    # checks each against its package, 1 minute

Each takes the rates of one sweep and the raw loss of each batch before its update, arrays ``[n]``,
and smooths, stops and trims the curve as its package does. The last rows may have diverged. NaN
stands for no answer: the package returns None or raises there. A package names one rate only, which
then serves every use, and a quarter of it is the base of a cycle, by Smith's rule of thumb.

The check runs each package's own range test, from sweep to suggestion, on batches whose losses are
those of a made-up curve. With torch 2.14.1, torch-lr-finder 0.2.2, pytorch-ignite 0.5.5, lightning
2.6.6 and fastai 2.8.12, each of the seven rules agreed on 120 of 120 curves, those without an
answer among them. Smith's is a procedure of a paper; nothing can check it.

What is left to the sweep: Ignite records with each loss the rate of the batch after, so it names a
rate one step above that which its rule finds here.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import itertools
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from optax_clr import peer_rules

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benchmarks"))
from range_test_peers import Loader, quiet

# The defaults: lowest rate, highest rate, steps. torch-lr-finder starts at the optimizer's rate;
# 1e-7 is that of the example in its README. Ignite has no default of its own for that, and takes
# as many steps as the epoch has; Smith's sweep is linear, over some epochs, and set for each task.
SWEEPS = {
    "fastai valley": (1e-7, 10.0, 100),
    "fastai minimum": (1e-7, 10.0, 100),
    "fastai steep": (1e-7, 10.0, 100),
    "fastai slide": (1e-7, 10.0, 100),
    "torch-lr-finder": (1e-7, 10.0, 100),
    "Lightning": (1e-8, 1.0, 100),
}
PADDED_TO_MULTIPLE_OF = 400


class Suggestion(NamedTuple):
    constant: float
    one_cycle_peak: float
    base_value: float
    peak_value: float


class Rows(NamedTuple):
    rates: np.ndarray
    losses: np.ndarray


# ------------------------------------------------------------------------------ smoothing, stopping


def moving_average(losses, new_weight, start):
    """Return the running average of the losses, in float64, as Python's own numbers are."""
    average, averages = start, []
    for loss in losses.tolist():
        average = (1 - new_weight) * average + new_weight * loss
        averages.append(average)
    return np.array(averages)


def before_stop(diverged):
    """Return how many rows a test records that stops after the first one that has diverged."""
    return int(diverged.argmax()) + 1 if diverged.any() else len(diverged)


def plain_smoothed(rates, losses):
    """Return what torch-lr-finder and Ignite record.

    The average begins at the first loss, and they stop at five times the lowest one.
    """
    smooth = moving_average(losses, new_weight=0.05, start=float(losses[0]))
    # fmin, for a NaN is never lower than the lowest, nor has it diverged.
    num_rows = before_stop(smooth > 5 * np.fmin.accumulate(smooth))
    return Rows(rates[:num_rows], smooth[:num_rows])


def fastai_average(losses):
    """Return fastai's average without the bias of its start.

    In float32, rounded where torch rounds: on a level stretch the valley counts the last digits.
    """
    single = np.float32
    new_weight = float(single(1) - single(0.98))
    average, smooth = single(0), []
    for count, loss in enumerate(losses.astype(single), 1):
        # torch.lerp multiplies and adds in one operation, rounded once, as float64 does here.
        average = single(float(average) - float(average - loss) * new_weight)
        smooth.append(average / single(1 - 0.98**count))
    return np.array(smooth)


def fastai_rows(rates, losses):
    """Return the rows that ``lr_find`` hands to its rules."""
    smooth = fastai_average(losses)
    num_rows = before_stop(smooth > 4 * np.fmin.accumulate(smooth))
    kept = slice(len(rates) // 10, max(num_rows - 5, 0))
    rates, smooth = rates[kept].astype(np.float32), smooth[kept]
    numbers = ~np.isnan(smooth)  # up to the first NaN, for the average stays NaN
    return Rows(rates[numbers], smooth[numbers])


# ------------------------------------------------------------------------------------------ rules


def one_rate(rule):
    """Make a rule that returns one rate suggest it for every use."""

    @functools.wraps(rule)
    def suggest(learning_rates, losses):
        with np.errstate(all="ignore"):
            rate = float(rule(learning_rates, losses))
        return Suggestion(rate, rate, rate / 4, rate)

    return suggest


def fastai(rule, *, single_row):
    """Return one of ``optax_clr.peer_rules``, given the rows that fastai gives its own.

    Args:
        rule: The function, compiled for a few lengths only.
        single_row: Given the rate of a single row, what fastai returns: ours may ask for more rows.
    """
    rule = jax.jit(rule)

    @one_rate
    def suggest(learning_rates, losses):
        rows = fastai_rows(learning_rates, losses)
        if len(rows.rates) < 2:
            return single_row(rows.rates[0]) if len(rows.rates) else np.nan
        padding = (0, -len(rows.rates) % PADDED_TO_MULTIPLE_OF)
        # The last rate goes on: the valley of two rows is at index -1.
        return rule(
            np.pad(rows.rates, padding, mode="edge"),
            np.pad(rows.losses, padding, constant_values=np.nan),
        )

    return suggest


@one_rate
def torch_lr_finder(learning_rates, losses):
    """Return the rate of the steepest fall from row to row. It lies just before a NaN, if any."""
    rates, smooth = plain_smoothed(learning_rates, losses)
    if len(rates) < 17:
        return np.nan
    return rates[10:-5][np.gradient(smooth[10:-5]).argmin()]


@one_rate
def ignite(learning_rates, losses):
    """Return the rate of the steepest fall before the lowest loss, or just before a NaN, if any."""
    rates, smooth = plain_smoothed(learning_rates, losses)
    smooth = smooth.astype(np.float32)
    falling = smooth[: smooth.argmin() + 1]
    if len(falling) < 3:
        return np.nan
    return rates[1 + (falling[2:] - falling[:-2]).argmin()]


@one_rate
def lightning(learning_rates, losses):
    """Return the rate of the steepest fall per unit of the rate.

    The first of n averages is divided by what is due to the second: it is half of the loss.
    """
    count = np.arange(1, len(losses) + 1)
    smooth = moving_average(losses, new_weight=1 - 0.98, start=0.0) / (1 - 0.98 ** (count + 1))
    # Compared with the lowest average of the rows before, unlike in the other packages.
    diverged = smooth[1:] > 4 * np.fmin.accumulate(smooth)[:-1]
    kept = slice(10, before_stop(diverged))  # the first ten rows and the last are left out
    rates, smooth = learning_rates[kept], smooth[kept].astype(np.float32)
    rates, smooth = rates[np.isfinite(smooth)], smooth[np.isfinite(smooth)]
    if len(rates) < 2:
        return np.nan
    return rates[np.gradient(smooth, rates.astype(np.float32)).argmin()]


def smith(learning_rates, losses):
    """Suggest what Smith reads by eye (arXiv 1506.01186), from the curve of torch-lr-finder.

    The peak is where the loss is lowest; the base, where a tenth of the fall has been made. He
    names no rate for constant use: a tenth of the peak is a convention of this benchmark.
    """
    with np.errstate(all="ignore"):
        rates, smooth = plain_smoothed(learning_rates, losses)
        if not np.isfinite(smooth[0]):
            return Suggestion(*[np.nan] * 4)
        lowest = int(np.nanargmin(smooth))
        fallen = smooth <= smooth[0] - 0.1 * (smooth[0] - smooth[lowest])
    peak, base = float(rates[lowest]), float(rates[fallen.argmax()])
    return Suggestion(constant=peak / 10, one_cycle_peak=peak, base_value=base, peak_value=peak)


PEERS: dict[str, Callable[[np.ndarray, np.ndarray], Suggestion]] = {
    "fastai valley": fastai(peer_rules.valley, single_row=lambda rate: rate),
    "fastai minimum": fastai(peer_rules.minimum, single_row=lambda rate: rate / 10),
    "fastai steep": fastai(peer_rules.steepest, single_row=lambda rate: np.nan),
    "fastai slide": fastai(peer_rules.slide, single_row=lambda rate: np.nan),
    "torch-lr-finder": torch_lr_finder,
    "Ignite": ignite,
    "Lightning": lightning,
    "Smith": smith,
}


# --------------------------------------------------------------------- the packages, on one curve
#
# Each runs the package's own range test from end to end, on batches whose loss is that of the curve
# whatever the model does, and returns the rates that its rules suggest. The ends of its sweep are
# set so that the rates it records are those of the curve.


def scripted(losses):
    """Return batches, a model, its optimizer and a loss function that returns the given losses."""
    import torch

    model = torch.nn.Linear(1, 1)
    batches = Loader((torch.zeros(1, 1), torch.tensor([loss])) for loss in losses.tolist())
    loss_fn = lambda outputs, targets: 0 * outputs.sum() + targets.sum()
    return batches, model, torch.optim.SGD(model.parameters(), lr=1e-9), loss_fn


def fastai_package(rates, losses):
    import torch
    from fastai.basics import DataLoaders, Learner, OptimWrapper
    from fastai.callback.schedule import minimum, slide, steep, valley

    def or_nan(rule):
        """Return the rule, but NaN where it raises, that the others get their turn."""

        @functools.wraps(rule)
        def suggest(*arguments):
            try:
                return rule(*arguments)
            except (IndexError, RuntimeError, ValueError):
                return np.nan, None

        return suggest

    batches, model, optimizer, loss_fn = scripted(losses)
    loaders = DataLoaders(batches, batches, device=torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        learner = Learner(loaders, model, loss_fn, OptimWrapper(opt=optimizer), path=folder)
        with learner.no_bar():
            rules = [or_nan(rule) for rule in (valley, minimum, steep, slide)]
            found = learner.lr_find(
                start_lr=rates[0],
                end_lr=rates[-1] * rates[1] / rates[0],  # one step beyond the last
                num_it=len(rates),
                show_plot=False,
                suggest_funcs=rules,
            )
    return {f"fastai {rule}": rate for rule, rate in found._asdict().items()}


def torch_lr_finder_package(rates, losses):
    from matplotlib.figure import Figure
    from torch_lr_finder import LRFinder, TrainDataLoaderIter

    batches, model, optimizer, loss_fn = scripted(losses)
    finder = LRFinder(model, optimizer, loss_fn)
    finder.range_test(
        TrainDataLoaderIter(batches), start_lr=rates[0], end_lr=rates[-1], num_iter=len(rates)
    )
    rate = np.nan
    with contextlib.suppress(RuntimeError):
        _, rate = finder.plot(ax=Figure().subplots())
    return {"torch-lr-finder": rate}


def ignite_package(rates, losses):
    from ignite.engine import create_supervised_trainer
    from ignite.handlers import FastaiLRFinder

    batches, model, optimizer, loss_fn = scripted(losses)
    trainer = create_supervised_trainer(model, optimizer, loss_fn)
    finder = FastaiLRFinder()
    with finder.attach(
        trainer,
        to_save={"model": model, "optimizer": optimizer},
        start_lr=rates[0] * rates[0] / rates[1],  # it records with each loss the rate of the next
        end_lr=rates[-1],
    ) as trainer_with_finder:
        trainer_with_finder.run(batches)
    rate = np.nan
    with contextlib.suppress(RuntimeError):
        rate = finder.lr_suggestion()
    return {"Ignite": rate}


def lightning_package(rates, losses):
    import logging

    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.tuner import Tuner

    logging.getLogger("lightning.pytorch").setLevel(logging.CRITICAL)
    batches, model, optimizer, loss_fn = scripted(losses)

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model

        def training_step(self, batch, batch_idx):
            inputs, targets = batch
            return loss_fn(self.model(inputs), targets)

        def configure_optimizers(self):
            return optimizer

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            barebones=True, accelerator="cpu", devices=1, max_epochs=1, default_root_dir=folder
        )
        finder = Tuner(trainer).lr_find(
            Module(),
            batches,
            min_lr=rates[0] * rates[0] / rates[1],  # it skips the second rate of its sweep
            max_lr=rates[-1],
            num_training=len(rates),
            update_attr=False,
        )
    rate = finder.suggestion()
    return {"Lightning": np.nan if rate is None else rate}


PACKAGES = {
    "fastai": fastai_package,
    "torch-lr-finder": torch_lr_finder_package,
    "pytorch-ignite": ignite_package,
    "lightning": lightning_package,
}


# -------------------------------------------------------------------------------------- the check


KINDS = (
    "diverges",
    "never diverges",
    "inf at the end",
    "NaN at the end",
    "inf, then NaN",
    "negative in the end",
    "negative from the start",
    "of the whole data set",  # no noise
    "diverges early",
    "never falls",
    "falls ever faster",  # the last rows decide
    "falls ever faster, below zero",
)


def made_up_curve(kind, rng):
    """Return the rates and losses of a random sweep: a fall of the loss, a valley and a rise."""
    num_rows = int(rng.choice([30, 100, 100, 100, 200, 400]))
    rates = np.geomspace(10 ** rng.uniform(-8, -6), 10 ** rng.uniform(0, 1), num_rows)
    place = np.linspace(0, 1, num_rows)
    start, depth = rng.uniform(0.5, 10), rng.uniform(0.3, 0.99)
    fall, edge = rng.uniform(0.3, 0.6), rng.uniform(0.65, 0.9)
    if kind == "diverges early":
        fall, edge = 0.05, rng.uniform(0.02, 0.2)
    if kind == "never falls":
        depth = 0.0
    losses = start * (1 - depth / (1 + np.exp(-(place - fall) / rng.uniform(0.02, 0.08))))
    if kind != "never diverges":
        losses += 0.1 * start * np.expm1(rng.uniform(20, 80) * np.maximum(place - edge, 0))
    if kind != "of the whole data set":
        losses *= rng.lognormal(sigma=rng.uniform(0.01, 0.2), size=num_rows)
    if kind.startswith("negative"):
        losses -= start * (1.5 if kind == "negative from the start" else 1 - depth / 2)
    if kind.startswith("falls ever faster"):
        drop = 300.0 if kind.endswith("below zero") else depth
        losses = start * (1 - drop * (rates / rates[-1]) ** 2)
    last = place > rng.uniform(edge, 1)
    if kind in ("inf at the end", "inf, then NaN"):
        losses[last] = np.inf
    if kind in ("NaN at the end", "inf, then NaN"):
        losses[last & (np.cumsum(last) > 1 + (kind == "inf, then NaN"))] = np.nan
    return rates, losses.astype(np.float32).astype(np.float64)


def agree(ours, theirs):
    return bool(np.isclose(ours, theirs, rtol=1e-4, atol=0.0, equal_nan=True))


def compare(curves):
    """Return for each rule the pairs of rates, ours and the package's, one for each curve."""
    pairs = {}
    for rates, losses in curves:
        for package in PACKAGES.values():
            with quiet():
                found = package(rates.tolist(), losses)
            for name, theirs in found.items():
                pairs.setdefault(name, []).append((PEERS[name](rates, losses).constant, theirs))
    return pairs


def main():
    os.environ.setdefault("TQDM_DISABLE", "1")
    print(*(f"{name} {importlib.metadata.version(name)}" for name in ("torch", *PACKAGES)))
    print(
        "Each package runs its own range test: sweep, smoothing, stop, trimming and rule are its\n"
        "own code. Made up: the batches, which say what their loss is, and a model of one weight."
    )
    rng = np.random.default_rng(0)
    kinds = list(itertools.islice(itertools.cycle(KINDS), 120))
    pairs = compare([made_up_curve(kind, rng) for kind in kinds])
    for name, rates in pairs.items():
        agreed = [agree(*pair) for pair in rates]
        none = sum(np.isnan(theirs) for _, theirs in rates)
        print(f"{name:16} agrees on {sum(agreed)} of {len(rates)}; the package has none on {none}")
        for kind, same, (ours, theirs) in zip(kinds, agreed, rates, strict=True):
            if not same:
                print(f"    {kind}: {ours:.4g} here, {theirs:.4g} in the package")
    print("Smith            is a procedure of a paper: there is no package to check it against")


if __name__ == "__main__":
    main()
