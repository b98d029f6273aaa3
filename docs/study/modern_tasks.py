"""Training tasks of today's kind: what a range test meets that `suggestion_tasks` does not have.

Clipped gradients, optimizers newer than Adam, losses that are not one of outputs against targets,
trainings that begin with trained params, and each at two lengths. The groups were made before
anything was tried, and share no data set. "dev" is for making choices; "held-out" is scored once,
after them:

    dev       clipped transformer, clipped convolutional network with momentum, Muon, Lion, a
              variational autoencoder, fine-tuning, a physics-informed network (Poisson)
    held-out  clipped vision transformer, clipped GRU, Muon, Lion, schedule-free AdamW, a
              contrastive loss, a residual network with batch norm, a physics-informed network
              (Burgers)

The data sets of "dev" are among those of the group "dev" of `suggestion_tasks`, those of "held-out"
among its held-out ones, so that the two files can be used together. Everything that is random in a
loss (noise of an autoencoder, views, hidden patches, points of an equation) is drawn with the data.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib
from suggestion_tasks import (
    CNN,
    MLP,
    Data,
    NGram,
    Optimizer,
    Recurrent,
    Task,
    Transformer,
    cross_entropy,
    diamonds,
    images,
    manual_text,
    mnist,
    mnist1d,
    photograph,
    scaled,
    scikit,
    source_text,
    split,
    squared_error,
    text,
)

SHORT_STEPS, LONG_STEPS = 600, 3000


# ------------------------------------------------------------------------------------ optimizers


def clipped(factory):
    return lambda rate: optax.chain(optax.clip_by_global_norm(1.0), factory(rate))


def schedule_free(rate):
    return contrib.schedule_free_adamw(rate)


adamw_of_transformers = functools.partial(optax.adamw, b2=0.95, weight_decay=0.1)
MODERN_OPTIMIZERS = {
    "adam": Optimizer(optax.adam, 1e-3, (-5.0, 0.5)),
    "adamw": Optimizer(functools.partial(optax.adamw, weight_decay=1e-2), 1e-3, (-5.0, 0.5)),
    "momentum": Optimizer(functools.partial(optax.sgd, momentum=0.9), 1e-2, (-5.0, 0.5)),
    "clipped adam": Optimizer(clipped(optax.adam), 1e-3, (-5.0, 0.5)),
    "clipped adamw": Optimizer(clipped(adamw_of_transformers), 1e-3, (-5.0, 0.5)),
    "clipped momentum": Optimizer(
        clipped(functools.partial(optax.sgd, momentum=0.9)), 1e-2, (-4.0, 1.5)
    ),
    "lion": Optimizer(functools.partial(optax.lion, weight_decay=0.1), 1e-4, (-6.0, -0.5)),
    "muon": Optimizer(contrib.muon, 2e-2, (-4.5, 1.0)),
    "schedule-free adamw": Optimizer(schedule_free, 2.5e-3, (-4.5, 1.0)),
}


# ------------------------------------------------------------------------------------ data sets


@functools.cache
def digits_with_noise(size, times=12):
    """Return images of digits with the noise that a variational autoencoder adds to its code.

    The rows to train on come several times, each time with other noise.
    """
    data = images(scikit, "digits")()
    rng = np.random.default_rng(2)

    def with_noise(rows):
        noise = rng.normal(size=(len(rows), size))
        return np.concatenate([rows, noise], 1).astype(np.float32)

    train, validation = np.tile(data.inputs, (times, 1)), data.validation_inputs
    return Data(with_noise(train), train, with_noise(validation), validation)


@functools.cache
def windows(name, size, count):
    """Return square windows of a photograph in grey, with zero mean and unit deviation."""
    image = photograph(name).mean(-1)
    rng = np.random.default_rng(3)
    rows, columns = (rng.integers(0, length - size, count) for length in image.shape)
    offsets = np.arange(size)
    cut = image[rows[:, None, None] + offsets[:, None], columns[:, None, None] + offsets[None, :]]
    return (cut - cut.mean()) / cut.std()


@functools.cache
def hidden_patches(name, *, size=12, side=4, share=0.5):
    """Return windows as patches, of which some are hidden, and whether they are; and all pixels."""
    num = size // side
    patches = windows(name, size, 12_000).reshape(-1, num, side, num, side)
    patches = patches.transpose(0, 1, 3, 2, 4).reshape(-1, num**2, side**2)
    is_hidden = np.random.default_rng(4).random((*patches.shape[:2], 1)) < share
    seen = np.concatenate([np.where(is_hidden, 0, patches), is_hidden], -1)
    return split(seen, patches.astype(np.float32))


@functools.cache
def two_views(name, *, size=8, noise=0.3):
    """Return two noisy windows of the same place, two pixels apart at most, ``[row, 2, pixel]``."""
    wide = windows(name, size + 2, 12_000)
    rng = np.random.default_rng(5)
    numbers = np.arange(len(wide))[:, None, None]
    offsets = np.arange(size)

    def view():
        row, column = rng.integers(0, 3, (2, len(wide), 1, 1))
        cut = wide[numbers, row + offsets[:, None], column + offsets[None, :]]
        return cut.reshape(len(wide), -1) + noise * rng.normal(size=(len(wide), size**2))

    pairs = np.stack([view(), view()], 1).astype(np.float32)
    return split(pairs, np.zeros((len(pairs), 1), np.float32))


def some_classes(data, classes, num_rows):
    """Return the rows of some classes, numbered from 0, and at most so many to train on."""

    def part(inputs, targets, count):
        chosen = np.flatnonzero(np.isin(targets, classes))[:count]
        return inputs[chosen], np.searchsorted(classes, targets[chosen]).astype(np.int32)

    train = part(data.inputs, data.targets, num_rows)
    return Data(*train, *part(data.validation_inputs, data.validation_targets, None))


@functools.cache
def mnist_classes(first, last, num_rows=None):
    return some_classes(images(mnist)(), np.arange(first, last), num_rows)


@functools.cache
def points(low, high, count=6000):
    """Return points of a box, without targets."""
    low, high = np.asarray(low), np.asarray(high)
    drawn = low + (high - low) * np.random.default_rng(6).random((count, len(low)))
    return split(drawn, np.zeros((count, 1), np.float32))


# ------------------------------------------------------------------------------ networks and losses


class Autoencoder(nn.Module):
    """Variational: returns the output, and mean and log deviation of the code."""

    width: int
    code_size: int

    @nn.compact
    def __call__(self, inputs):
        pixels, noise = inputs[:, : -self.code_size], inputs[:, -self.code_size :]
        code = MLP((self.width, 2 * self.code_size))(pixels)
        mean, log_deviation = jnp.split(code, 2, -1)
        sample = mean + jnp.exp(log_deviation) * noise
        return MLP((self.width, pixels.shape[-1]))(sample), mean, log_deviation


class VisionTransformer(nn.Module):
    """Patches to patches, all of which see each other."""

    width: int
    num_layers: int
    num_heads: int
    num_outputs: int

    @nn.compact
    def __call__(self, patches):
        places = self.param("places", nn.initializers.normal(0.1), (patches.shape[1], self.width))
        stream = nn.Dense(self.width)(patches) + places
        for _ in range(self.num_layers):
            normed = nn.LayerNorm()(stream)
            stream += nn.MultiHeadDotProductAttention(self.num_heads)(normed)
            stream += MLP((2 * self.width, self.width), nn.gelu)(nn.LayerNorm()(stream))
        return nn.Dense(self.num_outputs)(nn.LayerNorm()(stream))


class BatchNorm(nn.Module):
    """By the statistics of the rows at hand, in validation too: there they are the whole set."""

    @nn.compact
    def __call__(self, inputs):
        normal = (inputs - inputs.mean((0, 1))) / jnp.sqrt(inputs.var((0, 1)) + 1e-5)
        scale = self.param("scale", nn.initializers.ones, inputs.shape[-1:])
        return scale * normal + self.param("shift", nn.initializers.zeros, inputs.shape[-1:])


class Convolution(nn.Module):
    """Of width 5, over one axis, as a product of shifted slices: see `CNN`."""

    channels: int
    stride: int = 1

    @nn.compact
    def __call__(self, inputs):
        padded, length = jnp.pad(inputs, ((0, 0), (2, 2), (0, 0))), inputs.shape[1]
        cuts = [padded[:, first : first + length : self.stride] for first in range(5)]
        kernel_init = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
        dense = nn.Dense(self.channels, use_bias=False, kernel_init=kernel_init)
        return dense(jnp.concatenate(cuts, -1))


class ResNet(nn.Module):
    """Residual blocks over one axis, the first of each stage but the first with stride 2."""

    stages: tuple
    num_outputs: int

    @nn.compact
    def __call__(self, inputs):
        stream = nn.relu(BatchNorm()(Convolution(self.stages[0], 2)(inputs[..., None])))
        for stage, channels in enumerate(self.stages):
            stride = 1 if stage == 0 else 2
            branch = nn.relu(BatchNorm()(Convolution(channels, stride)(stream)))
            branch = BatchNorm()(Convolution(channels)(branch))
            if stride == 2:
                stream = BatchNorm()(nn.Dense(channels)(stream[:, ::2]))
            stream = nn.relu(stream + branch)
        return nn.Dense(self.num_outputs)(stream.mean(1))


# Losses of a network, a function of the inputs, and of a batch.


def of_outputs(loss):
    return lambda network, inputs, targets: loss(network(inputs), targets)


classes, error = of_outputs(cross_entropy), of_outputs(squared_error)


def variational_bound(network, inputs, pixels):
    """Half the squared error and the divergence of the code, both per pixel."""
    outputs, mean, log_deviation = network(inputs)
    divergence = 0.5 * (mean**2 + jnp.exp(2 * log_deviation) - 1) - log_deviation
    return 0.5 * squared_error(outputs, pixels) + divergence.sum(-1).mean() / pixels.shape[-1]


def hidden_error(network, inputs, pixels):
    is_hidden = inputs[..., -1]
    errors = jnp.mean((network(inputs) - pixels) ** 2, -1)
    return jnp.sum(is_hidden * errors) / jnp.sum(is_hidden)


def contrast(network, pairs, _, group=50, temperature=0.2):
    """InfoNCE among groups of rows, as many in a batch as in validation."""
    codes = network(pairs)
    codes /= jnp.linalg.norm(codes, axis=-1, keepdims=True) + 1e-6
    first, second = codes.reshape(-1, group, 2, codes.shape[-1]).transpose(2, 0, 1, 3)
    likeness = jnp.einsum("gik,gjk->gij", first, second) / temperature
    return cross_entropy(likeness, jnp.broadcast_to(jnp.arange(group), likeness.shape[:2]))


def slope(function, axis):
    """Return the derivative of each row's output along one coordinate of its input."""

    def derivative(inputs):
        direction = jnp.zeros_like(inputs).at[:, axis].set(1.0)
        return jax.jvp(function, (inputs,), (direction,))[1]

    return derivative


def poisson(network, inputs, _):
    """``u'' = f`` in (-1, 1) with u = 0 at both ends, whose solution is two sines."""
    wave = lambda number: (number * np.pi) ** 2 * jnp.sin(number * np.pi * inputs)
    residual = slope(slope(network, 0), 0)(inputs) + wave(1) + 0.1 * wave(3)
    ends = network(jnp.array([[-1.0], [1.0]]))
    return jnp.mean(residual**2) + 10 * jnp.mean(ends**2)


def burgers(network, inputs, _):
    """``u_t + u u_x = .05 u_xx``, u = -sin(pi x) at t = 0 and 0 at both ends; points (x, t)."""
    value, by_x = network(inputs), slope(network, 0)
    residual = slope(network, 1)(inputs) + value * by_x(inputs) - 0.05 * slope(by_x, 0)(inputs)
    place, time = inputs[:, :1], inputs[:, 1:]
    begin = network(jnp.concatenate([place, 0 * time], 1)) + jnp.sin(np.pi * place)
    ends = network(jnp.concatenate([jnp.sign(place), time], 1))
    return jnp.mean(residual**2) + jnp.mean(begin**2) + jnp.mean(ends**2)


# ------------------------------------------------------------------------------------------ tasks


@dataclasses.dataclass(frozen=True)
class ModernTask(Task):
    """A task whose loss is one of the network and a batch, at ``num_steps`` and ``long_steps``."""

    num_steps: int = SHORT_STEPS
    long_steps: int = LONG_STEPS
    trained_params: Callable | None = None  # all but the last layer of the start

    @property
    def optimizer_entry(self):
        return MODERN_OPTIMIZERS[self.optimizer]

    @property
    def make_optimizer(self):
        return self.optimizer_entry.factory

    @property
    def rates(self):
        low, high = (end + self.shift for end in self.optimizer_entry.log_rates)
        return np.logspace(low, high, 1 + round(4 * (high - low)))

    def loss_fn(self, params, batch):
        return self.loss(functools.partial(self.model.apply, params), *batch)

    def start(self, seed):
        params = super().start(seed)
        if self.trained_params is None:
            return params
        last = max(name for name in params["params"] if name.startswith("Dense"))
        return {"params": self.trained_params()["params"] | {last: params["params"][last]}}


@functools.cache
def trained_on_low_digits():
    """Return a network trained on the digits 0 to 4."""
    task = ModernTask("low digits", "dev", functools.partial(mnist_classes, 0, 5),
                      CNN((14, 14), (8, 16), 5), classes, "adam", 32)  # fmt: skip
    batches = jax.device_put(task.batches(0, 800))
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, 800))

    def step(carry, batch):
        params, state = carry
        updates, state = optimizer.update(jax.grad(task.loss_fn)(params, batch), state)
        return (optax.apply_updates(params, updates), state), None

    params = task.start(0)
    train = jax.jit(lambda batches: jax.lax.scan(step, (params, optimizer.init(params)), batches))
    return jax.device_get(train(batches)[0][0])


def _tasks():
    dev, held_out = "dev", "held-out"
    tanh = nn.tanh
    return [
        ModernTask("manual transformer clipped adamw", dev,
                   functools.partial(text, manual_text, 16), Transformer(32, 1, 2), classes,
                   "clipped adamw", 8),
        ModernTask("mnist CNN clipped momentum", dev, images(mnist), CNN((14, 14), (8, 16), 10),
                   classes, "clipped momentum", 16),
        ModernTask("digits MLP muon", dev, images(scikit, "digits"), MLP((32, 32, 10)), classes,
                   "muon", 32),
        ModernTask("mnist MLP lion", dev, images(mnist), MLP((32, 32, 10)), classes, "lion", 32),
        ModernTask("digits variational adam", dev, functools.partial(digits_with_noise, 6),
                   Autoencoder(32, 6), variational_bound, "adam", 32),
        ModernTask("mnist fine-tuning adamw", dev, functools.partial(mnist_classes, 5, 10, 1000),
                   CNN((14, 14), (8, 16), 5), classes, "adamw", 16,
                   trained_params=trained_on_low_digits),
        ModernTask("poisson adam", dev, functools.partial(points, (-1.0,), (1.0,)),
                   MLP((32, 32, 1), tanh), poisson, "adam", 32),
        ModernTask("flower vision transformer clipped adamw", held_out,
                   functools.partial(hidden_patches, "flower.jpg"),
                   VisionTransformer(24, 1, 2, 16), hidden_error, "clipped adamw", 8),
        ModernTask("source GRU clipped adam", held_out, functools.partial(text, source_text, 16),
                   Recurrent(32), classes, "clipped adam", 8),
        ModernTask("source n-gram muon", held_out, functools.partial(text, source_text, 16),
                   NGram(4, 32), classes, "muon", 8),
        ModernTask("diamonds price lion", held_out, scaled(diamonds, targets=True),
                   MLP((32, 32, 1)), error, "lion", 64),
        ModernTask("mnist1d MLP schedule-free", held_out, scaled(mnist1d), MLP((64, 64, 10)),
                   classes, "schedule-free adamw", 32),
        ModernTask("flower contrastive adam", held_out, functools.partial(two_views, "flower.jpg"),
                   MLP((48, 16)), contrast, "adam", 50),
        ModernTask("mnist1d ResNet momentum", held_out, scaled(mnist1d), ResNet((8, 16), 10),
                   classes, "momentum", 16),
        ModernTask("burgers adam", held_out, functools.partial(points, (-1.0, 0.0), (1.0, 1.0)),
                   MLP((24, 24, 1), tanh), burgers, "adam", 32),
    ]  # fmt: skip


MODERN_TASKS = {task.name: task for task in _tasks()}
