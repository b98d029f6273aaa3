"""What long tests, long runs, many lanes and large params take, and whether anything is left over.

    python tests/tools/long_and_large.py            # all sections
    python tests/tools/long_and_large.py a e        # some of them

Every row is measured in a process of its own. Its peak is the resident memory of that process, in
which Python, JAX and XLA's compiler have 300 MB or so; arguments, results and working memory are
XLA's own account of the compiled program. Times are medians of five calls after the first; the
machine is shared, so look at how they grow and not at what they are. Rates are so low that no
test stops early. A traced test makes its batches in the program.

    a  range tests of 1,000 to 100,000 steps: time grows with the steps; so does memory, by the rows
       of the result, and by the batches where they are stacked; the program does not
    b  a schedule in an optimizer, in one lax.scan of up to a million steps: only time grows
    c  lanes, 4 to 256, of a test of 300 steps by jax.vmap: memory grows with the lanes, time less
    d  params of 10 MB to 1 GB: time and memory grow with them
    e  the same calls again and again: arrays and bytes that stay, and compilations
"""

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_clr

MB = 1e6
WIDTH = 8
BATCH_SIZE = 16
TRUE_WEIGHTS = np.linspace(-1, 1, WIDTH, dtype=np.float32)
TINY = {"weights": np.zeros(WIDTH, np.float32), "bias": np.float32(0)}
HARMLESS = {"min_lr": 1e-7, "max_lr": 1e-2}  # rates

# ---------------------------------------------------------------------------- what is measured


def loss_fn(params, batch):
    inputs, targets = batch
    return jnp.mean((inputs @ params["weights"] + params["bias"] - targets) ** 2)


def batch_at(step):
    inputs = jax.random.normal(jax.random.fold_in(jax.random.key(0), step), (BATCH_SIZE, WIDTH))
    return inputs, inputs @ TRUE_WEIGHTS


def stacked(num_steps):
    inputs = np.random.default_rng(0).standard_normal((num_steps, BATCH_SIZE, WIDTH), np.float32)
    return inputs, inputs @ TRUE_WEIGHTS


class Loader:
    """A data loader with a few batches, to be read again and again."""

    def __init__(self):
        self.batches = list(zip(*stacked(100), strict=True))

    def __iter__(self):
        return iter(self.batches)


def test(params, batches, num_steps, **options):
    options = HARMLESS | options
    return optax_clr.lr_range_test(
        loss_fn, params, optax.sgd, batches, num_steps=num_steps, **options
    )


def traced_test(num_steps):
    return lambda params: test(params, batch_at, num_steps), (TINY,)


def stacked_test(num_steps):
    return lambda params, batches: test(params, batches, num_steps), (TINY, stacked(num_steps))


def streamed_test(num_steps):
    loader = Loader()
    return lambda params: test(params, loader, num_steps), (TINY,)


def reading(num_rows):
    # Without noise in its targets the loss falls over more decades of rates than is usual.
    warnings.simplefilter("ignore", optax_clr.RangeTestWarning)
    result = test(TINY, batch_at, num_rows, max_lr=10.0)
    return lambda result: (result.bounds(), result.suggest(), result.one_cycle_peak()), (result,)


def schedule(num_steps):
    rate = optax_clr.triangular2_schedule(1e-3, 1e-1, rise_steps=2000)
    optimizer = optax_clr.inject_schedules(optax.sgd)(learning_rate=rate)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(params - 1, state, params)  # of a quadratic
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(params):
        carry, _ = jax.lax.scan(step, (params, optimizer.init(params)), length=num_steps)
        return carry

    return run, (jnp.zeros(WIDTH),)


def lanes(num_lanes):
    def lane(bias):
        return test(TINY | {"bias": bias}, batch_at, 300)

    return jax.jit(jax.vmap(lane)), (jnp.linspace(0, 1, num_lanes),)


LARGE_STEPS = 5


def large_loss(params, batch):
    return jnp.mean((params - batch) ** 2)


def large_test(num_bytes):
    batches = jnp.linspace(0, 1, LARGE_STEPS)

    def run(params):
        # As many steps are asked for: a number for each is what is meant.
        return optax_clr.lr_range_test(
            large_loss, params, optax.sgd, batches, num_steps=LARGE_STEPS, **HARMLESS
        )

    return run, (jnp.zeros(num_bytes // 4),)


def large_scan(num_bytes):
    """The same steps without the library, which returns the params as a training run would."""
    rates, batches = jnp.geomspace(1e-7, 1e-2, LARGE_STEPS), jnp.linspace(0, 1, LARGE_STEPS)

    def step(params, row):
        batch, rate = row
        loss, gradients = jax.value_and_grad(large_loss)(params, batch)
        updates, _ = optax.sgd(rate).update(gradients, optax.sgd(rate).init(params))
        return optax.apply_updates(params, updates), loss

    run = jax.jit(lambda params: jax.lax.scan(step, params, (batches, rates)))
    return run, (jnp.zeros(num_bytes // 4),)


CASES = {
    "a": {
        "traced": (traced_test, (1_000, 10_000, 100_000)),
        "stacked": (stacked_test, (1_000, 10_000, 100_000)),
        "streamed": (streamed_test, (1_000, 10_000, 100_000)),
        "reading them": (reading, (1_000, 10_000, 100_000)),
    },
    "b": {"triangular2 in SGD": (schedule, (10_000, 100_000, 1_000_000))},
    "c": {"vmap": (lanes, (4, 32, 256))},
    "d": {
        "range test": (large_test, (10**7, 10**8, 10**9)),
        "bare scan": (large_scan, (10**7, 10**8, 10**9)),
    },
}

# ------------------------------------------------------------------------------- how it is measured


def num_equations(jaxpr):
    """Return the equations of a traced program, those of its loops and branches included."""
    inner = (
        getattr(part, "jaxpr", part)
        for equation in jaxpr.eqns
        for parameter in equation.params.values()
        for part in (parameter if isinstance(parameter, (tuple, list)) else (parameter,))
    )
    return len(jaxpr.eqns) + sum(num_equations(part) for part in inner if hasattr(part, "eqns"))


def measure(build, size):
    """Return what a process of its own finds out about one size."""
    function, arguments = build(size)
    times = []
    for _ in range(6):
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(1e3 * (time.perf_counter() - started))
    found = {
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB,
        "time": statistics.median(times[1:]),
    }
    if build is streamed_test:  # it is not one program
        return found
    program = jax.jit(function)
    sizes = program.lower(*arguments).compile().memory_analysis()
    return found | {
        "equations": num_equations(jax.make_jaxpr(program)(*arguments).jaxpr),
        "arguments": sizes.argument_size_in_bytes / MB,
        "results": sizes.output_size_in_bytes / MB,
        "working": sizes.temp_size_in_bytes / MB,
    }


COLUMNS = {"equations": 11, "time": 12, "peak": 10, "arguments": 12, "results": 10, "working": 10}


def print_section(section):
    print(f"{'':20}{'size':>14}  equations     time, ms  peak, MB   arguments   results   working")
    for name, (_, sizes) in CASES[section].items():
        for size in sizes:
            command = [sys.executable, __file__, "--measure", section, name, str(size)]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            digits = {"equations": 0, "time": 1, "peak": 0}
            cells = (
                f"{found[column]:{width},.{digits.get(column, 3)}f}"
                if column in found
                else "-".rjust(width)
                for column, width in COLUMNS.items()
            )
            print(f"{name:20}{size:14,}" + "".join(cells), flush=True)


# ------------------------------------------------------------------------------- what is left over


def repeated_calls():
    """Return calls that a program may repeat as often as it likes, and have nothing grow."""
    batches, loader = jax.device_put(stacked(300)), Loader()
    params = jax.device_put(TINY)
    result = test(params, batches, 300, max_lr=10.0)
    over_lanes = jax.jit(jax.vmap(lambda bias: test(TINY | {"bias": bias}, batches, 300)))
    kernel = {"kernel": jnp.ones((3, 3, 1, 1))}
    images = jnp.ones((30, 4, 8, 8, 1))

    def convolved(params, batch):
        dimensions = ("NHWC", "HWIO", "NHWC")
        made = jax.lax.conv_general_dilated(
            batch, params["kernel"], (1, 1), "SAME", dimension_numbers=dimensions
        )
        return jnp.mean((made - batch) ** 2)

    rate = optax_clr.triangular2_schedule(1e-3, 1e-1, rise_steps=2000)
    optimizer = optax_clr.inject_schedules(optax.adam)(learning_rate=rate)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    return {
        "range test, stacked": lambda: test(params, batches, 300),
        "range test, traced": lambda: test(params, batch_at, 300),
        "range test, streamed": lambda: test(params, loader, 300),
        "range test, row by row": lambda: optax_clr.lr_range_test(
            convolved, kernel, optax.sgd, images, **HARMLESS
        ),
        "eight lanes": lambda: over_lanes(jnp.linspace(0, 1, 8)),
        "grid test": lambda: optax_clr.lr_grid_test(
            loss_fn, params, optax.sgd, batches, min_lr=1e-4, max_lr=1e-1, num_values=5
        ),
        "bounds of a result": result.bounds,
        "summary of a result": result.summary,
        "update of an optimizer": lambda: update(params, state, params),
    }


def count_compilations():
    """Return a list that grows by one with every program that XLA compiles."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: (
            compiled.append(seconds) if event.endswith("backend_compile_duration") else None
        )
    )
    return compiled


def kept():
    gc.collect()
    arrays = jax.live_arrays()
    return len(arrays), sum(array.nbytes for array in arrays) / MB


def left_over():
    compiled = count_compilations()
    calls = repeated_calls()
    print(f"{'20 calls after the first':28}arrays before, after   MB before, after   compilations")
    for name, call in calls.items():
        jax.block_until_ready(call())
        (arrays, size), num_compiled = kept(), len(compiled)
        for _ in range(20):
            jax.block_until_ready(call())
        arrays_after, size_after = kept()
        print(
            f"{name:28}{arrays:13}{arrays_after:7}{size:12.3f}{size_after:7.3f}"
            f"{len(compiled) - num_compiled:15}",
            flush=True,
        )
    arrays, size = kept()
    num_compiled = len(compiled)
    for number in range(20):
        ones = jnp.full(250_000, 1.0 + number)
        closure = lambda params, batch, ones=ones: loss_fn(params, batch) + ones.mean()
        optax_clr.lr_range_test(closure, TINY, optax.sgd, batch_at, num_steps=300, **HARMLESS)
        del ones, closure
    arrays_after, size_after = kept()
    print(
        f"{'a new function each time':28}{arrays:13}{arrays_after:7}{size:12.3f}{size_after:7.3f}"
        f"{len(compiled) - num_compiled:15}  (each closes over 1 MB)"
    )
    sizes = []
    for num_calls in (100, 1000):
        for _ in range(num_calls):
            jax.block_until_ready(calls["range test, stacked"]())
        sizes.append(resident())
    print("resident MB after 100 and after 1,100 stacked tests: {:.1f}, {:.1f}".format(*sizes))


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / MB


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    sections = {**dict.fromkeys(CASES), "e": None}
    parser.add_argument("sections", nargs="*", choices=[*sections, []], help="default: all")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)  # what the processes do
    arguments = parser.parse_args()
    if arguments.measure:
        section, name, size = arguments.measure
        print(json.dumps(measure(CASES[section][name][0], int(size))))
        return
    print(f"jax {jax.__version__}, optax {optax.__version__}, {jax.default_backend()}")
    for section in arguments.sections or sections:
        print(f"\n{section}")
        print_section(section) if section in CASES else left_over()


if __name__ == "__main__":
    main()
