"""How far the bounds of a range test depend on where, and in what form, it is run.

    python tests/tools/determinism.py

A network on scikit-learn's digits, Adam, 300 steps of batches of 32, eight seeds, and what each
test reads: base and peak of bounds(), suggest() and one_cycle_peak(). Processes of 1, 2, 4 and 8
devices, which a CPU can pretend to have, run the tests

    as they are        on the first device, one after the other
    replicated         params and batches on every device
    data-parallel      every batch spread over the devices
    lanes              all seeds in one program by jax.vmap, spread over the devices

with batches that are stacked, traced and streamed. Those of 1 and 8 devices do all of it twice. The
differences are relative to the tests as they are, stacked, on one device, the largest of the eight
seeds: of the four readings, and of the losses up to the peak. Beyond it training is unstable.
"""

import argparse
import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from digits_network import loss_fn, new_params
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sklearn import datasets

import optax_clr

NUM_STEPS = 300
BATCH_SIZE = 32
NUM_SEEDS = 8
WIDTHS = (64, 128, 128, 10)
DEVICES = (1, 2, 4, 8)

# --------------------------------------------------------------------------------------- the task


def make_batches():
    images, labels = datasets.load_digits(return_X_y=True)
    rows = np.random.default_rng(0).integers(0, len(labels), (NUM_STEPS, BATCH_SIZE))
    return (images / 16).astype(np.float32)[rows], labels.astype(np.int32)[rows]


@jax.jit
def read(result):
    readings = jnp.stack([*result.bounds(), result.suggest(), result.one_cycle_peak()])
    return {"readings": readings, "losses": result.losses}


# ------------------------------------------------------------------------------ in one process


def forms():
    """Return every way to run the tests on the devices of this process."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("device",))
    spread = lambda *axes: NamedSharding(mesh, P(*axes))
    batches = make_batches()
    params = [new_params(WIDTHS, seed) for seed in range(NUM_SEEDS)]
    starts = jax.tree.map(lambda *leaves: np.stack(leaves), *params)
    test = functools.partial(
        optax_clr.lr_range_test, loss_fn, optimizer=optax.adam, num_steps=NUM_STEPS
    )

    def single(batches, place=jax.device_put):
        """Return a function that runs one test for each seed."""

        def run():
            found = [read(test(place(start), batches=batches)) for start in params]
            return jax.tree.map(lambda *parts: np.stack(parts), *found)

        return run

    def stream(sharding):
        return [jax.device_put(batch, sharding) for batch in zip(*batches, strict=True)]

    def traced(arrays, sharding=None):
        def batch_at(step):
            batch = jax.tree.map(lambda part: part[step], arrays)
            # Arrays that a function closes over are constants of the program, on every device.
            return jax.lax.with_sharding_constraint(batch, sharding) if sharding else batch

        return batch_at

    held = jax.device_put(batches)
    everywhere = jax.device_put(batches, spread())
    split = jax.device_put(batches, spread(None, "device"))
    replicate = lambda params: jax.device_put(params, spread())
    lanes = jax.jit(jax.vmap(lambda params: test(params, batches=batches)))
    return {
        "as they are, stacked": single(held),
        "as they are, traced": single(traced(held)),
        "as they are, streamed": single(list(zip(*batches, strict=True))),
        "replicated, stacked": single(everywhere, replicate),
        "replicated, traced": single(traced(everywhere), replicate),
        "replicated, streamed": single(stream(spread()), replicate),
        "data-parallel, stacked": single(split, replicate),
        "data-parallel, traced": single(traced(held, spread("device")), replicate),
        "data-parallel, streamed": single(stream(spread("device")), replicate),
        "lanes": lambda: jax.vmap(read)(lanes(jax.device_put(starts, spread("device")))),
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
    rates = np.geomspace(1e-7, 10.0, NUM_STEPS)
    up_to_peak = rates <= reference["readings"][:, 1, None]
    return (
        difference(form["readings"], reference["readings"]),
        difference(form["losses"][up_to_peak], reference["losses"][up_to_peak]),
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
    reference = on_devices[1]["as they are, stacked"]
    for name, values in zip(
        ("base", "peak", "suggest", "one-cycle peak"), reference["readings"].T, strict=True
    ):
        print(f"{name:34}{values.min():9.2e} to {values.max():.2e}, by the seed")
    for number in (DEVICES[0], DEVICES[-1]):
        again = run_process(number)
        equal = all(
            np.array_equal(values, again[name][part], equal_nan=True)
            for name, form in on_devices[number].items()
            for part, values in form.items()
        )
        print(f"two fresh processes of {number} devices: {'all equal' if equal else 'DIFFERENT'}")
    table = {
        name: [differences(found[name], reference) for found in on_devices.values()]
        for name in on_devices[1]
    }
    for index, part in enumerate(("readings", "losses up to the peak")):
        header = "".join(f"{number:>9}" for number in DEVICES)
        print(f"\n{f'{part}; devices:':34}{header}")
        for name, row in table.items():
            cells = (f"{cell[index]:9.0e}" if cell[index] else f"{0:9}" for cell in row)
            print(f"{name:34}" + "".join(cells))


if __name__ == "__main__":
    main()
