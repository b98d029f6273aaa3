"""How far the bounds of a range test depend on where, and in what form, it is run.

    python docs/benchmarks/determinism.py

A network on scikit-learn's digits, Adam, 300 steps of batches of 32, and what the test reads: base
and peak of bounds(), suggest() and one_cycle_peak(). The same arrays every time. Processes of 1, 2,
4 and 8 devices, which a CPU can pretend to have, run the test

    as it is           on the first device
    replicated         params and batches on every device
    data-parallel      every batch spread over the devices: stacked, traced, streamed
    lanes              eight seeds, jax.vmap, spread over the devices; each lane is read by itself

and those of 1 and 8 devices do so three times, in fresh processes. Differences are relative to the
lanes on one device, and for all other forms to the test as it is, stacked: the largest of the four
readings, and of the losses of the rows up to the peak. Beyond it training is unstable, and a
difference in the last bit is soon one in the first. A reading is the rate of a row, or a multiple
of it: it stays, or moves by a whole row, which is 6% here.
"""

import argparse
import functools
import itertools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sklearn import datasets

import optax_clr

NUM_STEPS = 300
BATCH_SIZE = 32
NUM_LANES = 8
WIDTHS = (64, 128, 128, 10)
DEVICES = (1, 2, 4, 8)

# --------------------------------------------------------------------------------------- the task


def make_batches():
    images, labels = datasets.load_digits(return_X_y=True)
    rows = np.random.default_rng(0).integers(0, len(labels), (NUM_STEPS, BATCH_SIZE))
    return (images / 16).astype(np.float32)[rows], labels.astype(np.int32)[rows]


def new_params(seed):
    rng = np.random.default_rng(seed)
    return [
        {
            "weights": rng.normal(0, (2 / rows) ** 0.5, (rows, columns)).astype(np.float32),
            "bias": np.zeros(columns, np.float32),
        }
        for rows, columns in itertools.pairwise(WIDTHS)
    ]


def loss_fn(params, batch):
    hidden, labels = batch
    for layer in params[:-1]:
        hidden = jax.nn.relu(hidden @ layer["weights"] + layer["bias"])
    logits = hidden @ params[-1]["weights"] + params[-1]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@jax.jit
def read(result):
    readings = jnp.stack([*result.bounds(), result.suggest(), result.one_cycle_peak()])
    return {"readings": readings, "losses": result.losses}


# ------------------------------------------------------------------------------ in one process


def forms():
    """Return every way to run the test on the devices of this process."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("device",))
    on_mesh = lambda tree, *axes: jax.device_put(tree, NamedSharding(mesh, P(*axes)))
    batches, params = make_batches(), new_params(0)
    starts = jax.tree.map(lambda *leaves: np.stack(leaves), *map(new_params, range(NUM_LANES)))
    test = functools.partial(
        optax_clr.lr_range_test, loss_fn, optimizer=optax.adam, num_steps=NUM_STEPS
    )
    lanes = jax.jit(jax.vmap(lambda params: test(params, batches=batches)))

    def steps_of(arrays):
        return lambda step: jax.tree.map(lambda part: part[step], arrays)

    def stream(*axes):
        return [on_mesh(batch, *axes) for batch in zip(*batches, strict=True)]

    held = jax.device_put(batches)
    everywhere, split = on_mesh(batches), on_mesh(batches, None, "device")
    everywhere_params = on_mesh(params)
    return {
        "as it is, stacked": lambda: read(test(params, batches=held)),
        "as it is, traced": lambda: read(test(params, batches=steps_of(held))),
        "as it is, streamed": lambda: read(test(params, batches=list(zip(*batches, strict=True)))),
        "replicated, stacked": lambda: read(test(everywhere_params, batches=everywhere)),
        "replicated, traced": lambda: read(test(everywhere_params, batches=steps_of(everywhere))),
        "replicated, streamed": lambda: read(test(everywhere_params, batches=stream())),
        "data-parallel, stacked": lambda: read(test(everywhere_params, batches=split)),
        "data-parallel, traced": lambda: read(test(everywhere_params, batches=steps_of(split))),
        "data-parallel, streamed": lambda: read(test(everywhere_params, batches=stream("device"))),
        "lanes": lambda: jax.vmap(read)(lanes(on_mesh(starts, "device"))),
    }


# ------------------------------------------------------------------------------- over processes


def run_process(num_devices):
    """Return what a fresh process of so many devices reads, in every form."""
    number = f"--xla_force_host_platform_device_count={num_devices}"
    finished = subprocess.run(
        [sys.executable, __file__, "--read"],
        env=os.environ | {"XLA_FLAGS": number, "JAX_PLATFORMS": "cpu"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    forms = json.loads(finished.stdout).items()
    return {name: {part: np.array(values) for part, values in form.items()} for name, form in forms}


def difference(values, reference):
    return np.max(np.abs(values / reference - 1))


def differences(form, reference):
    """Return those of the readings, and of the losses of rows up to the peak."""
    rows = np.geomspace(1e-7, 10.0, NUM_STEPS) <= reference["readings"][..., 1].min()
    return (
        difference(form["readings"], reference["readings"]),
        difference(form["losses"][..., rows], reference["losses"][..., rows]),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--read", action="store_true", help=argparse.SUPPRESS)  # the processes
    if parser.parse_args().read:
        # A double has every bit of a float32, and JSON every bit of a double.
        exactly = lambda array: np.asarray(array, np.float64).tolist()
        print(json.dumps({name: jax.tree.map(exactly, run()) for name, run in forms().items()}))
        return
    print(f"jax {jax.__version__}, optax {optax.__version__}\n")
    on_devices = {number: run_process(number) for number in DEVICES}
    on_one = on_devices[1]
    stacked = on_one["as it is, stacked"]
    named = zip(("base", "peak", "suggest", "one-cycle peak"), stacked["readings"], strict=True)
    print(", ".join(f"{name} {value:.3e}" for name, value in named))
    for number in (DEVICES[0], DEVICES[-1]):
        again = [run_process(number) for _ in range(2)]
        equal = all(
            np.array_equal(values, each[name][part], equal_nan=True)
            for each in again
            for name, form in on_devices[number].items()
            for part, values in form.items()
        )
        print(f"three fresh processes of {number} devices: {'equal' if equal else 'DIFFERENT'}")
    table = {
        name: [
            differences(found[name], on_one["lanes"] if name == "lanes" else stacked)
            for found in on_devices.values()
        ]
        for name in on_one
    }
    for index, part in enumerate(("readings", "losses up to the peak")):
        header = "".join(f"{number:>9}" for number in DEVICES)
        print(f"\n{f'{part}; devices:':34}{header}")
        for name, row in table.items():
            cells = (f"{cell[index]:9.0e}" if cell[index] else f"{0:9}" for cell in row)
            print(f"{name:34}" + "".join(cells))


if __name__ == "__main__":
    main()
