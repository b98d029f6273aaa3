"""What a range test costs: against bare JAX, against PyTorch's finders, streamed, and in lanes.

    python docs/benchmarks/range_test.py            # all sections that this machine has tools for
    python docs/benchmarks/range_test.py a f        # some of them
    python docs/benchmarks/range_test.py --quick    # fewer repeats, a minute

Contenders run in turn, round after round, and a ratio is the median over the rounds of the ratio
within a round: shared machines drift by a third in minutes, and by less within a second. No test
stops early: rates are from 1e-7 to 1e-2, so all contenders do the same steps. Batches are of 64.

    a  the test against a bare lax.scan of the same training steps
    b  against the loop over steps that JAX users write, which looks at every loss
    c  against PyTorch's finders, where they are installed (range_test_peers.py)
    d  lanes in one program against as many runs of one
    e  cold: from the start of a process to the bounds or suggestion
    f  streamed against stacked
"""

import argparse
import pathlib
import statistics
import subprocess
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import range_test_peers as peers

import optax_clr

MIN_RATE, MAX_RATE = peers.MIN_RATE, peers.MAX_RATE
BATCH_SIZE = 64
NUM_STEPS = {"tiny": 1000, "mlp": 300, "large": 100, "cnn": 100}
OPTIMIZERS = {"sgd": lambda rate: optax.sgd(rate, momentum=0.9), "adamw": optax.adamw}
HERE = pathlib.Path(__file__).parent


# ------------------------------------------------------------------------- networks and their data


class MLP(nn.Module):
    widths: tuple

    @nn.compact
    def __call__(self, inputs):
        for width in self.widths[:-1]:
            inputs = nn.relu(nn.Dense(width)(inputs))
        return nn.Dense(self.widths[-1])(inputs)


class CNN(nn.Module):
    @nn.compact
    def __call__(self, images):
        for features in (16, 32):
            images = nn.relu(nn.Conv(features, (3, 3))(images))
            images = nn.avg_pool(images, (2, 2), (2, 2))
        return nn.Dense(10)(images.reshape(len(images), -1))


class Task:
    """A network with parameters, a loss, an optimizer, and random batches on host and device."""

    def __init__(self, network, optimizer="sgd", num_steps=None):
        self.num_steps = num_steps or NUM_STEPS[network]
        self.optimizer = OPTIMIZERS[optimizer]
        self.model = CNN() if network == "cnn" else MLP(peers.WIDTHS[network][1:])
        shape = (28, 28, 1) if network == "cnn" else peers.WIDTHS[network][:1]
        rng = np.random.default_rng(0)
        self.host_batches = (
            rng.random((self.num_steps, BATCH_SIZE, *shape), np.float32),
            rng.integers(0, 10, (self.num_steps, BATCH_SIZE), np.int32),
        )
        self.batches = jax.device_put(self.host_batches)
        self.params = self.new_params(0)

    def new_params(self, seed):
        return self.model.init(jax.random.key(seed), self.batches[0][0])

    def loss_fn(self, params, batch):
        images, labels = batch
        logits = self.model.apply(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(self, state, batch, rate):
        params, optimizer_state = state
        loss, gradients = jax.value_and_grad(self.loss_fn)(params, batch)
        updates, optimizer_state = self.optimizer(rate).update(gradients, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), loss

    def rates(self):
        return np.geomspace(MIN_RATE, MAX_RATE, self.num_steps).astype(np.float32)

    def start(self):
        return self.params, self.optimizer(MIN_RATE).init(self.params)

    # ---------------------------------------------------------------------------- contenders

    def range_test(self):
        """Return a function that runs the range test of optax_clr as a user would."""
        loss_fn = self.loss_fn
        return lambda batches=self.batches, params=self.params: optax_clr.lr_range_test(
            loss_fn, params, self.optimizer, batches, min_lr=MIN_RATE, max_lr=MAX_RATE,
            num_steps=self.num_steps, stop_factor=float("inf"),
        )  # fmt: skip

    def jitted(self):
        """Return the range test inside a program, which leaves out what Python does before it."""
        run = self.range_test()
        program = jax.jit(lambda batches, params: run(batches, params))
        return lambda: program(self.batches, self.params)

    def scan(self):
        """Return the same steps and no more, in a scan."""
        program = jax.jit(
            lambda state, batches, rates: jax.lax.scan(
                lambda state, row: self.step(state, *row), state, (batches, rates)
            )[1]
        )
        state, rates = self.start(), jnp.asarray(self.rates())
        return lambda: program(state, self.batches, rates)

    def loop(self):
        """Return the loop of a user who looks at every loss, to stop or to print it."""
        step, first, rates = jax.jit(self.step), self.start(), self.rates()
        batches = list(zip(*self.batches, strict=True))

        def run():
            state, losses = first, []
            for batch, rate in zip(batches, rates, strict=True):
                state, loss = step(state, batch, rate)
                losses.append(float(loss))

        return run


# ---------------------------------------------------------------------------------------- measuring


def compare(label, contenders, num_rounds):
    """Print the time of each contender, and its ratio to the first."""
    for run in contenders.values():
        jax.block_until_ready(run())
        jax.block_until_ready(run())
    times = {name: [] for name in contenders}
    for _ in range(num_rounds):
        for name, run in contenders.items():
            started = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(1e3 * (time.perf_counter() - started))
    first = times[next(iter(times))]
    for name, column in times.items():
        ratios = [mine / theirs for mine, theirs in zip(column, first, strict=True)]
        print_row(label, name, column, f"{statistics.median(ratios):8.2f}")


def print_row(label, name, milliseconds, ratio=""):
    low, high = min(milliseconds), max(milliseconds)
    middle = statistics.median(milliseconds)
    print(f"{label:22}{name:26}{middle:9.1f} ms  ({low:.1f} to {high:.1f}){ratio}", flush=True)


def against_scan(num_rounds):
    for network in NUM_STEPS:
        for optimizer in OPTIMIZERS:
            if network == "cnn" and jax.default_backend() == "cpu":
                continue  # a scan of convolutions is ten times slower there: see section b
            task = Task(network, optimizer)
            contenders = {
                "bare scan": task.scan(),
                "range test": task.range_test(),
                "range test, jitted": task.jitted(),
            }
            compare(f"{network}, {optimizer}", contenders, num_rounds)


def against_loop(num_rounds):
    for network in NUM_STEPS:
        task = Task(network)
        contenders = {"range test": task.range_test(), "loop over steps": task.loop()}
        compare(network, contenders, num_rounds)
    task = Task("cnn", num_steps=20)
    compare("cnn, 20 steps", {"range test": task.range_test(), "bare scan": task.scan()}, 1)


def against_peers(num_rounds):
    names = peers.available()
    if not names:
        print("none is installed")
    for network in NUM_STEPS if names else ():
        for optimizer in OPTIMIZERS:
            task = Task(network, optimizer)
            contenders = {"range test": task.range_test()} | {
                name: peers.prepare(name, network, optimizer, task.host_batches) for name in names
            }
            compare(f"{network}, {optimizer}", contenders, max(3, num_rounds // 2))


def lanes(num_rounds):
    sizes = (8,) if jax.default_backend() == "cpu" else (8, 64)
    for network, num_steps in {"tiny": 1000, "mlp": 100, "large": 30, "cnn": 5}.items():
        for num_lanes in sizes:
            contenders = lane_contenders(Task(network, num_steps=num_steps), num_lanes)
            compare(f"{network}, {num_lanes} lanes", contenders, max(3, num_rounds // 3))


def lane_contenders(task, num_lanes):
    """Return the ways to test from many starts."""
    starts = [task.new_params(seed) for seed in range(num_lanes)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    run = task.range_test()
    lane = lambda params: run(params=params).losses
    by_vmap = jax.jit(jax.vmap(lane))
    by_map = jax.jit(lambda params: jax.lax.map(lane, params))
    return {
        "one by one": lambda: [lane(params) for params in starts],
        "vmap": lambda: by_vmap(stacked),
        "map": lambda: by_map(stacked),
    }


COLD = """
import jax, numpy as np, optax, optax_clr
rng = np.random.default_rng(0)
batches = rng.random((100, 64, 784), np.float32), rng.integers(0, 10, (100, 64))
widths = (784, 256, 256, 10)
params = [
    (np.float32(rng.normal(0, (2 / rows) ** 0.5, (rows, columns))), np.zeros(columns, np.float32))
    for rows, columns in zip(widths, widths[1:])
]

def loss_fn(params, batch):
    hidden, labels = batch
    for weights, bias in params[:-1]:
        hidden = jax.nn.relu(hidden @ weights + bias)
    logits = hidden @ params[-1][0] + params[-1][1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

optimizer = lambda rate: optax.sgd(rate, momentum=0.9)
result = optax_clr.lr_range_test(loss_fn, params, optimizer, batches, max_lr=1e-2)
try:
    print(result.bounds())
except optax_clr.RangeTestError as error:
    print(error)
"""


def cold(num_rounds):
    commands = {"range test": [sys.executable, "-c", COLD]} | {
        name: [sys.executable, str(HERE / "range_test_peers.py"), name]
        for name in peers.available()
    }
    times = {name: [] for name in commands}
    for _ in range(max(3, num_rounds // 2)):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times[name].append(1e3 * (time.perf_counter() - started))
    for name, column in times.items():
        ratio = statistics.median(column) / statistics.median(times["range test"])
        print_row("mlp, sgd, 100 steps", name, column, f"{ratio:8.2f}")


class Loader:
    """A data loader that has its batches ready, as NumPy's arrays."""

    def __init__(self, batches):
        self.batches = list(zip(*batches, strict=True))

    def __iter__(self):
        return iter(self.batches)


def streamed(num_rounds):
    for network in ("tiny", "mlp", "large"):
        task = Task(network)
        run, loader = task.range_test(), Loader(task.host_batches)

        def stack_first(run=run, loader=loader):
            return run(tuple(np.stack(parts) for parts in zip(*loader, strict=True)))

        contenders = {
            "stacked, on the device": run,
            "stacked from the loader": stack_first,
            "streamed": lambda run=run, loader=loader: run(loader),
        }
        compare(network, contenders, num_rounds)


SECTIONS = {
    "a": against_scan,
    "b": against_loop,
    "c": against_peers,
    "d": lanes,
    "e": cold,
    "f": streamed,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="default: all")
    parser.add_argument("--quick", action="store_true", help="three rounds instead of fifteen")
    arguments = parser.parse_args()
    device = jax.devices()[0]
    print(
        f"jax {jax.__version__}, optax {optax.__version__}, {device.platform}, {device.device_kind}"
    )
    for name in arguments.sections or SECTIONS:
        section = SECTIONS[name]
        print(f"\n{name}: {section.__name__.replace('_', ' ')}; time, spread, ratio to the first")
        section(3 if arguments.quick else 15)


if __name__ == "__main__":
    main()
