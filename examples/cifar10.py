"""CIFAR-10 as in the papers that the method is from: cyclical rates, and super-convergence.

    python examples/cifar10.py FOLDER quick                # arXiv 1506.01186, Caffe's small network
    python examples/cifar10.py FOLDER full                 # the same, Caffe's larger network
    python examples/cifar10.py FOLDER super-convergence    # arXiv 1708.07120, ResNet-56
    python examples/cifar10.py FOLDER quick --scale 0.1    # every length a tenth of the paper's

FOLDER has the .bin files of the binary version of CIFAR-10 (cifar-10-binary.tar.gz, unpacked). A
range test reads its bounds beside the paper's; then every policy trains from the same start. The
images stay on the device, where each step picks its own. The papers report, as test accuracy:

1506.01186, section 4.1    fixed policy              70,000 steps    81.4%
                           triangular2               25,000 steps    81.4%
1708.07120, figure 1a      piecewise constant        80,000 steps    91.2%, in their later log 90.3%
                           one cycle from 0.1 to 3   10,000 steps    92.4%, in their later log 92.4%

No figures recorded yet: it needs a GPU and the data. What the papers leave open is from the Caffe
files of their authors, or a comment says what was chosen. The first does not say which of Caffe's
two networks it trained: Caffe claims 75% for quick, after 5,000 steps, and the fixed policy is that
of its files for full, which is the likelier to reach 81.4%.
"""

import argparse
import functools
import pathlib
import time
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_clr

NUM_LINES = 10  # of the log of a run, each with the test accuracy
TEST_BATCH = 1000
TRAIN_FILES = [f"data_batch_{number}.bin" for number in range(1, 6)]
TEST_FILES = ["test_batch.bin"]
RECORD_BYTES = 1 + 3 * 32 * 32  # a label, and the red, the green and the blue plane
REMEDY = "Unpack cifar-10-binary.tar.gz, the binary version of CIFAR-10, and name its folder."


# ----------------------------------------------------------------------------------------- data


class Data(NamedTuple):
    images: jax.Array  # u8[n, 32, 32, 3]
    labels: jax.Array  # i32[n]
    mean: jax.Array  # f32[1, 32, 32, 3], the mean image to train on


def read_file(path):
    """Return the images and the labels of a file, which may have any number of records."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. {REMEDY}")
    content = np.fromfile(path, np.uint8)
    if content.size == 0 or content.size % RECORD_BYTES:
        raise ValueError(
            f"{path} has {content.size:,} bytes, which is not a whole number of records of "
            f"{RECORD_BYTES:,}. {REMEDY}"
        )
    records = content.reshape(-1, RECORD_BYTES)
    labels, planes = records[:, 0], records[:, 1:]
    if labels.max() > 9:
        raise ValueError(
            f"{path} has label {labels.max()} in record {labels.argmax():,}, counted from 0; the "
            f"labels are 0 to 9. {REMEDY}"
        )
    return planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels.astype(np.int32)


def load(folder):
    """Return the data to train on and the data to test with, on the device."""

    def read(names):
        images, labels = zip(*(read_file(folder / name) for name in names), strict=True)
        return np.concatenate(images), np.concatenate(labels)

    train, test = read(TRAIN_FILES), read(TEST_FILES)
    mean = train[0].mean(axis=0, keepdims=True).astype(np.float32)
    return [Data(*map(jnp.asarray, (*part, mean))) for part in (train, test)]


def batch_at(setup, key, data, step):
    """Return the batch of a step: the next images in the order of the files, as Caffe reads them.

    Caffe does not shuffle, and pixels are 0 to 255. ResNet-56 sees half of the images mirrored; its
    files ask for crops too, but of 32 x 32 pixels from images of that size, which are no crops.
    """
    rows = (step * setup.batch_size + jnp.arange(setup.batch_size)) % len(data.labels)
    images = data.images[rows].astype(jnp.float32) - data.mean
    if setup.mirrors:
        mirrored = jax.random.bernoulli(jax.random.fold_in(key, step), 0.5, (len(rows), 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images, data.labels[rows]


# -------------------------------------------------------------------------------------- networks

gaussian = nn.initializers.normal


def average_pool(images):
    # Caffe's windows reach over the edge, where they average what there is.
    return nn.avg_pool(images, (3, 3), (2, 2), "SAME", count_include_pad=False)


def normalized_response(images):
    squares = nn.avg_pool(images**2, (3, 3), padding="SAME")  # within each channel
    return images * (1 + 5e-5 * squares) ** -0.75


class CaffeNetwork(nn.Module):
    """Caffe's cifar10_quick, and cifar10_full."""

    full: bool

    @nn.compact
    def __call__(self, images, train):
        del train
        convolution = lambda features, deviation: nn.Conv(
            features, (5, 5), kernel_init=gaussian(deviation)
        )
        normalized = normalized_response if self.full else lambda images: images
        hidden = nn.max_pool(convolution(32, 1e-4)(images), (3, 3), (2, 2), "SAME")
        hidden = normalized(nn.relu(hidden))
        hidden = normalized(average_pool(nn.relu(convolution(32, 0.01)(hidden))))
        hidden = average_pool(nn.relu(convolution(64, 0.01)(hidden)))
        hidden = hidden.reshape(len(hidden), -1)
        if self.full:
            return nn.Dense(10, kernel_init=gaussian(0.01))(hidden)
        hidden = nn.Dense(64, kernel_init=gaussian(0.1))(hidden)  # no nonlinearity follows
        return nn.Dense(10, kernel_init=gaussian(0.1))(hidden)


class ResNet(nn.Module):
    """The authors' ResNet-56. Its shortcuts have no weights: they average, and add zeros.

    Unlike in He et al. a block that halves the images has as few features as those before it.
    """

    memory: float  # of BatchNorm's running statistics: Caffe's moving_average_fraction
    num_blocks: int = 9  # to each size of the images

    @nn.compact
    def __call__(self, images, train):
        def layer(images, features, stride=1):
            kernel_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
            # The authors' have biases, which BatchNorm takes away again.
            convolution = nn.Conv(
                features, (3, 3), stride, padding=1, use_bias=False, kernel_init=kernel_init
            )
            return nn.BatchNorm(not train, momentum=self.memory)(convolution(images))

        features = 16
        hidden = nn.relu(layer(images, features))
        for block in range(3 * self.num_blocks):
            halves = block in (self.num_blocks, 2 * self.num_blocks)
            shortcut = average_pool(hidden) if halves else hidden
            hidden = nn.relu(layer(hidden, features, 2 if halves else 1))
            hidden = nn.relu(layer(hidden, features) + shortcut)
            if halves:
                hidden = jnp.concatenate([hidden, jnp.zeros_like(hidden)], axis=-1)
                features *= 2
        kernel_init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
        return nn.Dense(10, kernel_init=kernel_init)(hidden.mean((1, 2)))


# --------------------------------------------------------------------------------------- set-ups


class Run(NamedTuple):
    name: str
    network: nn.Module
    schedule: optax.Schedule
    num_steps: int
    reported: str


class Setup(NamedTuple):
    runs: list[Run]
    weight_decay: float
    multipliers: dict[str, tuple[float, float]]  # Caffe's lr_mult and decay_mult, where not 1
    bounds: tuple[float, float]  # of the paper's cycles
    num_test_steps: int  # of the range test, as many as the paper's
    batch_size: int = 100
    num_groups: int = 1  # in which BatchNorm normalizes a batch
    mirrors: bool = False


def cyclical(network, multipliers, scaled):
    """Return section 4.1 of arXiv 1506.01186 with one of Caffe's networks."""
    triangular2 = lambda base, peak, rise: optax_clr.triangular2_schedule(base, peak, scaled(rise))
    fixed = optax.piecewise_constant_schedule(1e-3, {scaled(60_000): 0.1, scaled(65_000): 0.1})
    # The text gives a peak of 0.006. Table 2, of the run with the 81.4%, gives one of 0.005, and
    # two more stages, each with a tenth of the rates and half of the cycle. Here are both.
    stages = [(1e-3, 5e-3, 2000), (1e-4, 5e-4, 1000), (1e-5, 5e-5, 500)]
    staged = optax.join_schedules(
        [triangular2(*stage) for stage in stages], [scaled(16_000), scaled(22_000)]
    )
    runs = [
        Run("fixed", network, fixed, scaled(70_000), "81.4%"),
        Run("triangular2 of table 2", network, staged, scaled(25_000), "81.4%"),
        Run("triangular2 of the text", network, triangular2(1e-3, 6e-3, 2000), scaled(25_000), "-"),
    ]
    return Setup(runs, 0.004, multipliers, (1e-3, 6e-3), scaled(4000))


def quick(scaled):
    layers = "Conv_0", "Conv_1", "Conv_2", "Dense_0", "Dense_1"
    return cyclical(CaffeNetwork(False), {f"{name}/bias": (2, 1) for name in layers}, scaled)


def full(scaled):
    multipliers = {"Conv_0/bias": (2, 1), "Conv_1/bias": (2, 1)}  # but not of the third
    multipliers |= {"Dense_0/kernel": (1, 250), "Dense_0/bias": (2, 0)}
    return cyclical(CaffeNetwork(True), multipliers, scaled)


def super_convergence(scaled):
    """Return figure 1a of arXiv 1708.07120."""
    constant = optax.piecewise_constant_schedule(0.35, {scaled(50_000): 0.1, scaled(70_000): 0.1})
    cycle = optax_clr.triangular_schedule(0.1, 3.0, scaled(5000))
    # For runs shorter than these the authors shortened the memories too; --scale does not.
    runs = [
        Run("piecewise constant", ResNet(0.999), constant, scaled(80_000), "91.2%"),
        Run("one cycle", ResNet(0.95), cycle, scaled(10_000), "92.4%"),
    ]
    return Setup(
        runs, 1e-4, {"Dense_0/bias": (2, 1)}, (0.1, 3.0), scaled(5000), batch_size=1000,
        num_groups=8,  # their eight GPUs, each of which normalized its 125 images
        mirrors=True,
    )  # fmt: skip


SETUPS = {"quick": quick, "full": full, "super-convergence": super_convergence}


# -------------------------------------------------------------------------------------- training


def caffe_sgd(setup, learning_rate):
    """Return Caffe's SGD: its momentum gathers past steps, that of Optax past gradients."""

    def regularized(path, gradient, param):
        name = "/".join(part.key for part in path)
        rate, decay = setup.multipliers.get(name, (1, 1))
        return rate * (gradient + decay * setup.weight_decay * param)

    return optax.chain(
        optax.stateless(functools.partial(jax.tree_util.tree_map_with_path, regularized)),
        optax.scale_by_learning_rate(learning_rate),
        optax.trace(decay=0.9),
    )


@functools.partial(jax.jit, static_argnums=0)
def initialize(network, key):
    return network.init(key, jnp.zeros((1, 32, 32, 3)), train=False)


def new_state(network, optimizer, key):
    variables = initialize(network, key)
    params = variables.pop("params")
    return params, variables, optimizer.init(params)


def train_step(setup, network, optimizer, state, batch):
    params, statistics, optimizer_state = state
    images, labels = batch
    groups = images.reshape(setup.num_groups, -1, *images.shape[1:])

    def loss_fn(params):
        variables = {"params": params, **statistics}
        apply = lambda images: network.apply(variables, images, True, mutable=["batch_stats"])
        logits, moved = jax.vmap(apply)(groups)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits.reshape(-1, 10), labels)
        # Caffe keeps the statistics of its first GPU; the mean over all of them is less noisy.
        return losses.mean(), jax.tree.map(lambda leaf: leaf.mean(0), moved)

    (loss, statistics), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
    return (optax.apply_updates(params, updates), statistics, optimizer_state), loss


@functools.partial(jax.jit, static_argnums=0)
def accuracy(network, params, statistics, data):
    def is_right(example):
        image, label = example
        images = image[None].astype(jnp.float32) - data.mean
        return network.apply({"params": params, **statistics}, images, False).argmax() == label

    examples = data.images, data.labels
    return jax.lax.map(is_right, examples, batch_size=min(TEST_BATCH, len(data.labels))).mean()


def sweep(setup, data, key):
    """Return the result of a range test with the network of the last run."""
    network = setup.runs[-1].network

    # The data go along in the state: closed over, they would be constants of the program.
    def step_fn(state, step, rate):
        inner, data = state
        batch = batch_at(setup, key, data, step)
        inner, loss = train_step(setup, network, caffe_sgd(setup, rate), inner, batch)
        return (inner, data), loss

    state = new_state(network, caffe_sgd(setup, 0.0), key), data
    rates = jnp.geomspace(1e-5, 10.0, setup.num_test_steps)
    return optax_clr.range_test(step_fn, state, jnp.arange(setup.num_test_steps), rates)


def train(setup, run, train_data, test_data, key):
    """Return the test accuracy at the end of a run, and print it on the way."""
    build = functools.partial(caffe_sgd, setup)
    optimizer = optax_clr.inject_schedules(build)(learning_rate=run.schedule)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_steps(state, data, steps):
        def one_step(state, step):
            batch = batch_at(setup, key, data, step)
            return train_step(setup, run.network, optimizer, state, batch)

        return jax.lax.scan(one_step, state, steps)

    state = new_state(run.network, optimizer, key)
    length = -(-run.num_steps // NUM_LINES)
    for first in range(0, run.num_steps, length):
        last = min(first + length, run.num_steps)
        state, losses = train_steps(state, train_data, jnp.arange(first, last))
        right = float(accuracy(run.network, *state[:2], test_data))
        rate = optax_clr.get_hyperparams(state)["learning_rate"]
        print(
            f"step {last:,}: rate {rate:.2g}, loss {losses.mean():.4f}, test accuracy {right:.2%}"
        )
    return right


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=pathlib.Path, help="with the .bin files of CIFAR-10")
    parser.add_argument("setup", choices=SETUPS, help="what to train")
    parser.add_argument("--scale", type=float, default=1.0, help="of all lengths, 0.001 to 1")
    parser.add_argument("--seed", type=int, default=0, help="of the start and of the mirroring")
    arguments = parser.parse_args()
    if not 0.001 <= arguments.scale <= 1:
        parser.error(f"--scale must be from 0.001 to 1, got {arguments.scale}")
    try:
        train_data, test_data = load(arguments.folder)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    print(f"{len(train_data.labels):,} images to train on, {len(test_data.labels):,} to test with.")
    setup = SETUPS[arguments.setup](lambda steps: max(1, round(arguments.scale * steps)))
    key = jax.random.key(arguments.seed)
    print(sweep(setup, train_data, key).summary())
    print("The paper cycles between {} and {}.".format(*setup.bounds))
    table = [f"{'test accuracy':28}{'steps':>8}{'here':>10}{'paper':>10}{'seconds':>10}"]
    for run in setup.runs:
        print(f"\n{run.name}, {run.num_steps:,} steps")
        started = time.perf_counter()
        right = train(setup, run, train_data, test_data, key)
        seconds = time.perf_counter() - started
        row = f"{run.num_steps:>8,}{right:>10.2%}{run.reported:>10}{seconds:>10.0f}"
        table.append(f"{run.name:28}{row}")
    print("", *table, sep="\n")
    print(f"jax {jax.__version__}, optax {optax.__version__}, {jax.devices()[0].device_kind}.")


if __name__ == "__main__":
    main()
