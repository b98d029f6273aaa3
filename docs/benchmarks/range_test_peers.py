"""The learning-rate finders of PyTorch, each run as its authors wrote it, to compare their time.

    python docs/benchmarks/range_test_peers.py NAME    # cold: one test of 100 steps, its suggestion

Nothing stops early and nothing is plotted: ``prepare`` returns a whole test of as many steps as
there are batches, at rates from 1e-7 to 1e-2. Rates this low diverge nowhere, so every step of
every tool does the same work. Everything runs on one GPU where both torch and JAX have one, with
the batches on it from the start, and else on the CPU, on torch's default number of threads.

Each tool is imported only when its finder is prepared: a cold time must not include the others.

Reading the suggestion is no part of the test, save on the command line. Only fastai does it in the
same call by default, at a price: it compares all pairs of losses in Python, which takes more than
a second after 1,000 steps.

Made with torch 2.14.1, torch-lr-finder 0.2.2, pytorch-ignite 0.5.5, lightning 2.6.6, fastai 2.8.12.
"""

import argparse
import contextlib
import importlib.util
import io
import itertools
import os
import warnings

import numpy as np

MIN_RATE, MAX_RATE = 1e-7, 1e-2
WIDTHS = {"tiny": (20, 16, 10), "mlp": (784, 256, 256, 10), "large": (784, 1024, 1024, 10)}


# --------------------------------------------------------------------- the same work for each tool


def device():
    """Return the device of torch on which JAX computes too."""
    import jax
    import torch

    has_both = torch.cuda.is_available() and jax.default_backend() == "gpu"
    return torch.device("cuda" if has_both else "cpu")


def new_network(name):
    """Return a network with fresh weights, the same ones at every call."""
    import torch

    torch.manual_seed(0)
    return _network(name).to(device())


def _network(name):
    from torch import nn

    if name == "cnn":
        return nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding="same"), nn.ReLU(), nn.AvgPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding="same"), nn.ReLU(), nn.AvgPool2d(2)),
            *(nn.Flatten(), nn.Linear(32 * 7 * 7, 10)),
        )
    layers = []
    for inputs, outputs in itertools.pairwise(WIDTHS[name]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def new_optimizer(name, model):
    """Return torch's optimizer with torch's defaults, at the lowest rate."""
    import torch

    kinds = {"sgd": (torch.optim.SGD, {"momentum": 0.9}), "adamw": (torch.optim.AdamW, {})}
    kind, settings = kinds[name]
    return kind(model.parameters(), lr=MIN_RATE, **settings)


class Loader(list):
    """The least that every tool takes for a data loader: a list of batches that lie ready.

    Lightning would take a plain list for several loaders. fastai asks for the rest.
    """

    n_inp = 1  # how many parts of a batch are inputs

    def to(self, device):
        """Stay where the batches are, which is where the model is."""


def as_loader(inputs, labels):
    """Return a ``Loader`` of ``(inputs, labels)``, a pair of tensors for every step."""
    import torch

    if inputs.ndim == 5:  # torch wants the channels before the rows
        inputs = np.ascontiguousarray(np.moveaxis(inputs, -1, 2))
    inputs = torch.tensor(inputs, dtype=torch.float32, device=device())
    labels = torch.tensor(labels, dtype=torch.int64, device=device())
    return Loader(zip(inputs, labels, strict=True))


# ------------------------------------------------------------------------------------- the finders
#
# Each imports its tool and returns a function of a fresh model, its optimizer and whether to return
# the tool's suggestion. What a tool cannot be told to leave out is named where it is called.


def bare_torch_loop(loader):
    """The steps, their rates and their losses: what every finder adds its own cost to."""
    from torch.nn.functional import cross_entropy

    rates = np.geomspace(MIN_RATE, MAX_RATE, len(loader)).tolist()

    def test(model, optimizer, suggest):
        losses = []
        model.train()
        for rate, (inputs, labels) in zip(rates, loader, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            loss = cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return "done" if suggest else None

    return test


def torch_lr_finder(loader):
    """torch-lr-finder: rates 1e-7 to 1e-2, both included."""
    from torch.nn import CrossEntropyLoss
    from torch_lr_finder import LRFinder, TrainDataLoaderIter

    def test(model, optimizer, suggest):
        # Always: copies of both states in memory, tqdm around the steps, a line printed at the end.
        finder = LRFinder(model, optimizer, CrossEntropyLoss(), device=device())
        finder.range_test(
            TrainDataLoaderIter(loader),
            start_lr=MIN_RATE,
            end_lr=MAX_RATE,
            num_iter=len(loader),
            diverge_th=float("inf"),
        )
        suggestion = suggestion_of(finder) if suggest else None
        finder.reset()  # the others restore model and optimizer unasked
        return suggestion

    def suggestion_of(finder):
        from matplotlib.figure import Figure

        # Only plot() suggests. Given axes it opens no window.
        return finder.plot(ax=Figure().subplots())[1]

    return test


def ignite(loader):
    """Ignite: the first two steps at the second rate, the last one step short of 1e-2."""
    from ignite.engine import create_supervised_trainer
    from ignite.handlers import FastaiLRFinder
    from torch.nn import CrossEntropyLoss

    def test(model, optimizer, suggest):
        trainer = create_supervised_trainer(model, optimizer, CrossEntropyLoss(), device=device())
        finder = FastaiLRFinder()
        # Always: a file of both states, written before and read after, and the engine's events.
        with finder.attach(
            trainer,
            to_save={"model": model, "optimizer": optimizer},
            num_iter=len(loader),
            start_lr=MIN_RATE,
            end_lr=MAX_RATE,
            diverge_th=float("inf"),
        ) as trainer_with_finder:
            # The end of the only epoch ends the test: left to stop by itself it does a step more.
            trainer_with_finder.run(loader, max_epochs=1)
        return finder.lr_suggestion() if suggest else None

    return test


def lightning(loader):
    """Lightning: 1e-7 at first, then from the third rate to 1e-2."""
    import logging
    import tempfile

    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.tuner import Tuner
    from torch.nn.functional import cross_entropy

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(LightningModule):
        def __init__(self, model, optimizer):
            super().__init__()
            self.model, self.optimizer = model, optimizer

        def training_step(self, batch, batch_idx):
            inputs, labels = batch
            return cross_entropy(self.model(inputs), labels)

        def configure_optimizers(self):
            return self.optimizer

    def test(model, optimizer, suggest):
        with tempfile.TemporaryDirectory() as folder:
            # "barebones", Lightning's mode to measure its own overhead with: no logger, checkpoint
            # callback, bar, summary or sanity check.
            trainer = Trainer(
                barebones=True,
                accelerator=device().type,
                devices=1,
                max_epochs=1,
                default_root_dir=folder,
            )
            # Always: a checkpoint, written before and read after, a bar of the finder's own, hooks.
            finder = Tuner(trainer).lr_find(
                Module(model, optimizer),
                loader,
                min_lr=MIN_RATE,
                max_lr=MAX_RATE,
                num_training=len(loader),
                early_stop_threshold=None,
                update_attr=False,
            )
        return finder.suggestion() if suggest else None

    return test


def fastai(loader):
    """fastai: from 1e-7 to one step short of 1e-2; never fewer than 6 steps."""
    import tempfile

    from fastai.basics import DataLoaders, Learner, OptimWrapper
    from fastai.callback.schedule import SuggestionMethod  # this import gives Learner its lr_find
    from torch.nn import CrossEntropyLoss

    def test(model, optimizer, suggest):
        with tempfile.TemporaryDirectory() as folder:
            learner = Learner(
                DataLoaders(loader, loader, device=device()),  # the second is never read
                model,
                CrossEntropyLoss(),
                OptimWrapper(opt=optimizer),  # as fast as fastai's own optimizers, within a tenth
                path=folder,
            )
            # Always: a file of both states, written before and read after, and three callbacks at
            # every event, which keep the mode, the recorded losses and the types of tensors.
            with learner.no_bar():
                suggestions = learner.lr_find(
                    MIN_RATE,
                    MAX_RATE,
                    num_it=len(loader),
                    stop_div=False,
                    show_plot=False,
                    suggest_funcs=SuggestionMethod.Valley if suggest else None,
                )
        return suggestions.valley if suggest else None

    return test


FINDERS = {
    "torch-lr-finder": torch_lr_finder,
    "Ignite": ignite,
    "Lightning": lightning,
    "fastai": fastai,
    "bare torch loop": bare_torch_loop,
}
PACKAGES = {
    "torch-lr-finder": "torch_lr_finder",
    "Ignite": "ignite",
    "Lightning": "lightning",
    "fastai": "fastai",
    "bare torch loop": "torch",
}


# ------------------------------------------------------------------------------------- how they run


def available():
    """Return the names of the finders whose package is installed; nothing is imported for it."""
    return [name for name in FINDERS if importlib.util.find_spec(PACKAGES[name])]


def prepare(name, network, optimizer, batches, suggest=False):
    """Return a function without arguments that makes a model and runs one whole range test of it.

    The tool is imported and the arrays are turned into tensors here, not in that function.

    Args:
        name: One of ``FINDERS``.
        network: ``"tiny"``, ``"mlp"``, ``"large"`` or ``"cnn"``.
        optimizer: ``"sgd"``, with momentum 0.9, or ``"adamw"``.
        batches: ``(inputs, labels)``, arrays ``[num_steps, batch_size, ...]``.
        suggest: Whether the function also reads and returns what the tool suggests by default.
    """
    # torch-lr-finder and Lightning's finder have no option against their bar, but tqdm has one,
    # read when tqdm is first imported. After that the bars are drawn, where nobody sees them.
    os.environ.setdefault("TQDM_DISABLE", "1")
    with warnings.catch_warnings(action="ignore"):
        test = FINDERS[name](as_loader(*batches))

    def run():
        with quiet():
            model = new_network(network)
            return test(model, new_optimizer(optimizer, model), suggest)

    return run


@contextlib.contextmanager
def quiet():
    """Swallow what the tools print and warn of unasked."""
    nowhere = io.StringIO()
    with (
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        warnings.catch_warnings(action="ignore"),
    ):
        yield


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=FINDERS)
    name = parser.parse_args().name
    rng = np.random.default_rng(0)
    batches = rng.random((100, 64, 784), np.float32), rng.integers(0, 10, (100, 64))
    print(prepare(name, "mlp", "sgd", batches, suggest=True)())


if __name__ == "__main__":
    main()
