"""Training tasks for the benchmark of schedules: networks of several kinds on real data.

Data and small networks are those of `suggestion_tasks`; the residual network is here. Rows are of
three kinds: those that are trained on, those by which a rate is tuned, and those that are reported.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from suggestion_tasks import (
    CNN,
    MLP,
    OPTIMIZERS,
    NGram,
    Transformer,
    colours,
    cross_entropy,
    diamonds,
    health,
    images,
    mnist,
    mnist1d,
    scaled,
    scikit,
    shuffled_rows,
    source_text,
    squared_error,
    text,
)


class Convolution(nn.Module):
    """A 3 x 3 convolution as a product of nine shifted copies.

    XLA's CPU backend runs its own ten times slower inside a loop.
    """

    channels: int
    stride: int = 1

    @nn.compact
    def __call__(self, inputs):
        _, height, width, _ = inputs.shape
        padded = jnp.pad(inputs, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifted = [
            padded[:, row : row + height : self.stride, column : column + width : self.stride]
            for row in range(3)
            for column in range(3)
        ]
        kernel_init = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
        dense = nn.Dense(self.channels, use_bias=False, kernel_init=kernel_init)
        return dense(jnp.concatenate(shifted, -1))


class ResNet(nn.Module):
    """Residual blocks with BatchNorm, the first of each stage with stride 2."""

    side: int
    stages: tuple
    num_outputs: int
    training: bool = True

    @nn.compact
    def __call__(self, inputs):
        running = not self.training
        normed = lambda inputs: nn.BatchNorm(use_running_average=running, momentum=0.9)(inputs)
        stream = inputs.reshape(len(inputs), self.side, self.side, 1)
        stream = nn.relu(normed(Convolution(self.stages[0], 2)(stream)))
        for stage, channels in enumerate(self.stages):
            stride = 1 if stage == 0 else 2
            branch = nn.relu(normed(Convolution(channels, stride)(stream)))
            branch = normed(Convolution(channels)(branch))
            if stride == 2:
                stream = normed(nn.Dense(channels)(stream[:, ::2, ::2]))
            stream = nn.relu(stream + branch)
        return nn.Dense(self.num_outputs)(stream.mean((1, 2)))


@dataclasses.dataclass(frozen=True)
class TrainingTask:
    name: str
    data_fn: Callable
    model: nn.Module
    loss: Callable
    optimizer: str
    batch_size: int
    num_steps: int
    shift: float = 0.0  # of the rates to tune with, in decades

    @functools.cached_property
    def _rows(self):
        """Return the rows to train on, those to tune by (as many as are reported), and these."""
        data = self.data_fn()
        cut = len(data.inputs) - len(data.validation_inputs)
        train = data.inputs[:cut], data.targets[:cut]
        tuning = data.inputs[cut:], data.targets[cut:]
        return jax.device_put((train, tuning, (data.validation_inputs, data.validation_targets)))

    @property
    def train_data(self):
        return self._rows[0]

    @property
    def tuning_data(self):
        return self._rows[1]

    @property
    def test_data(self):
        return self._rows[2]

    @property
    def is_classification(self):
        return self.loss is cross_entropy

    @property
    def make_optimizer(self):
        return OPTIMIZERS[self.optimizer].factory

    @property
    def customary_rate(self):
        return OPTIMIZERS[self.optimizer].customary_rate

    @property
    def rates(self):
        """The rates to tune with, four to a decade: two and a half above the customary one."""
        exponent = np.log10(self.customary_rate) + self.shift
        return np.logspace(exponent - 1.5, exponent + 2.5, 17)

    def start(self, key):
        """Return params and batch statistics (``{}`` without BatchNorm)."""
        inputs = self.train_data[0][: self.batch_size]
        variables = self.model.init(key, inputs)
        return variables["params"], variables.get("batch_stats", {})

    def loss_fn(self, params, statistics, batch):
        inputs, targets = batch
        variables = {"params": params, "batch_stats": statistics}
        outputs, updated = self.model.apply(variables, inputs, mutable=["batch_stats"])
        return self.loss(outputs, targets), updated.get("batch_stats", {})

    def evaluate(self, params, statistics, data):
        """Return the loss and the share of right answers (NaN for a regression)."""
        inputs, targets = data
        model = self.model.clone(training=False) if statistics else self.model
        outputs = model.apply({"params": params, "batch_stats": statistics}, inputs)
        right = outputs.argmax(-1) == targets if self.is_classification else jnp.nan
        return self.loss(outputs, targets), jnp.mean(right)

    def batch_rows(self, seed, num_steps):
        return shuffled_rows(len(self.train_data[0]), self.batch_size, seed, num_steps)


def _tasks():
    classes, error = cross_entropy, squared_error
    return [
        TrainingTask("digits MLP", images(scikit, "digits"), MLP((64, 64, 10)), classes,
                     "momentum", 32, 1600),
        TrainingTask("mnist1d MLP", scaled(mnist1d, num_samples=20_000), MLP((64, 64, 10)), classes,
                     "adamw", 64, 1600),
        TrainingTask("mnist1d MLP few rows", scaled(mnist1d), MLP((64, 64, 10)), classes,
                     "adamw", 64, 1600),
        TrainingTask("mnist CNN", images(mnist), CNN((14, 14), (8, 16), 10), classes,
                     "momentum", 32, 1600),
        TrainingTask("mnist ResNet", images(mnist), ResNet(14, (8, 16), 10), classes,
                     "momentum", 32, 800),
        TrainingTask("source transformer", functools.partial(text, source_text, 16),
                     Transformer(32, 2, 2), classes, "adamw", 8, 1600),
        TrainingTask("source n-gram", functools.partial(text, source_text, 16), NGram(5, 64),
                     classes, "momentum", 16, 1600),
        TrainingTask("diamonds price MLP", scaled(diamonds, targets=True), MLP((64, 64, 1)), error,
                     "adamw", 64, 1600),
        TrainingTask("flower colours MLP", functools.partial(colours, "flower.jpg"),
                     MLP((64, 64, 3)), error, "momentum", 64, 1600),
    ]  # fmt: skip


def _badly_scaled_tasks():
    """Return tasks with raw features, raw targets, or both, in the units in which they come."""
    classes, error = cross_entropy, squared_error
    return [
        TrainingTask("cancer raw features", functools.partial(scikit, "breast_cancer"),
                     MLP((16, 2)), classes, "adamw", 32, 1600),
        TrainingTask("health raw", health, MLP((32, 1)), error, "momentum", 64, 1600, shift=-2.0),
        TrainingTask("diamonds cut raw features", functools.partial(diamonds, "cut"), MLP((32, 5)),
                     classes, "momentum", 64, 1600, shift=-3.0),
        TrainingTask("diamonds price raw", diamonds, MLP((64, 64, 1)), error,
                     "adamw", 64, 1600, shift=1.0),
    ]  # fmt: skip


TASKS = {task.name: task for task in _tasks()}
BADLY_SCALED = {task.name: task for task in _badly_scaled_tasks()}
