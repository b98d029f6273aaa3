"""Streamed batches, the bar, and what ends a test early: against the same test stacked."""

import collections
import contextlib
import functools
import gc
import itertools
import math
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_clr
from optax_clr._curve import EndedBy
from optax_clr._loop import Loop
from optax_clr._stacking import _put, aligned
from optax_clr._streams import StreamedBatches

_begin = Loop.begin
pytestmark = pytest.mark.usefixtures("optax_promotion")

NUM_STEPS = 60
INPUTS = np.random.default_rng(0).normal(size=(NUM_STEPS, 16, 4)).astype(np.float32)
TARGETS = np.tanh(INPUTS @ np.array([1.0, -2.0, 0.5, 3.0], np.float32))
PARAMS = {
    "hidden": 0.5 * jax.random.normal(jax.random.key(2), (4, 8)),
    "out": 0.5 * jax.random.normal(jax.random.key(3), (8,)),
}
STACKED = (INPUTS, TARGETS)
BATCHES = list(zip(INPUTS, TARGETS, strict=True))


def loss_fn(params, batch):
    inputs, targets = batch
    return jnp.mean((jnp.tanh(inputs @ params["hidden"]) @ params["out"] - targets) ** 2)


run = functools.partial(
    optax_clr.lr_range_test, loss_fn, PARAMS, optax.adam, max_lr=0.1, num_steps=NUM_STEPS
)


class Loader:
    """What can be iterated again and is no sequence, as data loaders are; notes what is read."""

    def __init__(self, batches):
        self.batches = batches
        self.num_read = 0

    def __iter__(self):
        for batch in self.batches:
            self.num_read += 1
            yield batch


def reused_memory(batches):
    """A loader that gives the same memory every time, filled anew."""
    inputs, targets = (np.empty_like(part) for part in batches[0])
    for batch in batches:
        inputs[...], targets[...] = batch
        yield inputs, targets


class TorchTensor:
    """As much of a torch tensor as NumPy asks for."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


# ------------------------------------------------------------------------- the same as stacked


@pytest.mark.parametrize(
    "stream",
    [
        lambda: BATCHES,
        lambda: [list(batch) for batch in BATCHES],  # as torch's default_collate gives them
        lambda: iter(BATCHES),
        lambda: Loader(BATCHES),
        lambda: Loader([tuple(map(jnp.asarray, batch)) for batch in BATCHES]),
        lambda: (tuple(map(TorchTensor, batch)) for batch in BATCHES),
        lambda: reused_memory(BATCHES),
        lambda: itertools.chain(BATCHES, itertools.repeat(BATCHES[0])),  # without end
    ],
    ids=["list", "lists", "iterator", "loader", "jax", "torch", "reused", "endless"],
)
def test_a_stream_gives_the_stacked_curve_bit_for_bit(stream):
    streamed, stacked = run(stream()), run(STACKED)
    for name, column in stacked._asdict().items():
        np.testing.assert_array_equal(getattr(streamed, name), column, err_msg=name)


def test_a_traced_function_gives_it_too():
    data = tuple(map(jnp.asarray, STACKED))
    traced = run(lambda step: jax.tree.map(lambda part: part[step], data))
    np.testing.assert_allclose(traced.losses, run(STACKED).losses, rtol=1e-5)


def test_metrics_and_divergence_are_streamed():
    with_metrics = lambda params, batch: (loss_fn(params, batch), {"first": params["out"][:2]})
    test = functools.partial(
        optax_clr.lr_range_test, with_metrics, PARAMS, optax.sgd, max_lr=1e4,
        num_steps=NUM_STEPS, has_aux=True,
    )  # fmt: skip
    streamed, stacked = test(BATCHES), test(STACKED)
    assert 10 < int(stacked.num_valid) < NUM_STEPS
    jax.tree.map(np.testing.assert_array_equal, streamed, stacked)


def test_a_held_out_batch_that_is_none_costs_no_batch_of_the_stream():
    stream = iter(BATCHES)
    with pytest.raises(TypeError, match="held_out"):
        run(stream, held_out="text")
    assert len(list(stream)) == len(BATCHES)


def test_a_batch_of_another_dtype_or_shape_is_told_what_to_do():
    x, y = BATCHES[1]
    with pytest.raises(ValueError, match=r"got float16.* Convert them to one dtype"):
        run([BATCHES[0], (x.astype(np.float16), y), *BATCHES[2:]])
    with pytest.raises(ValueError, match=r"Pad or crop them to one shape"):
        run([BATCHES[0], (x[:3], y[:3]), *BATCHES[2:]])


def test_keys_and_bfloat16_are_streamed():
    def step_fn(state, batch, value):
        noise = jax.random.normal(batch["key"], ())
        return state + noise, batch["x"].astype(jnp.float32).sum() + state * value

    keys = jax.random.split(jax.random.key(0), 20)
    numbers = np.arange(40).reshape(20, 2).astype(jnp.bfloat16)
    test = functools.partial(
        optax_clr.range_test, step_fn, jnp.float32(0), values=np.ones(20), stop_factor=math.inf
    )
    streamed = test([{"key": key, "x": x} for key, x in zip(keys, numbers, strict=True)])
    np.testing.assert_array_equal(streamed.losses, test({"key": keys, "x": numbers}).losses)

    on_host = [{"x": x} for x in numbers]
    sums = optax_clr.range_test(
        lambda s, b, v: (s, b["x"].astype(jnp.float32).sum() + 0 * v), 0.0, on_host, np.ones(20),
        stop_factor=math.inf,
    )  # fmt: skip
    np.testing.assert_array_equal(sums.losses, 4.0 * np.arange(20) + 1)


def test_each_value_is_held_for_several_steps():
    streamed, stacked = run(Loader(BATCHES), steps_per_value=4), run(STACKED, steps_per_value=4)
    assert streamed.losses.shape == (NUM_STEPS // 4,)
    np.testing.assert_allclose(streamed.losses, stacked.losses, rtol=1e-6)


def test_the_general_form_streams():
    def step_fn(state, batch, value):
        return state + batch, state * value

    values = np.linspace(0.1, 1.0, 50)
    numbers = [{"a": np.float32(number)} for number in range(50)]
    streamed = optax_clr.range_test(
        lambda state, batch, value: step_fn(state, batch["a"], value),
        np.float32(1), numbers, values, stop_factor=math.inf,
    )  # fmt: skip
    before = 1 + np.concatenate([[0], np.cumsum(np.arange(49))])
    np.testing.assert_allclose(streamed.losses, before * values, rtol=1e-5)


def test_double_precision_is_kept_where_jax_keeps_it(x64):
    doubles = jax.tree.map(np.float64, (PARAMS, BATCHES))
    with x64():
        streamed = run_with(doubles[0], doubles[1])
        stacked = run_with(doubles[0], tuple(np.float64(part) for part in STACKED))
    assert streamed.losses.dtype == np.float64
    np.testing.assert_array_equal(streamed.losses, stacked.losses)
    assert run(doubles[1]).losses.dtype == np.float32


def run_with(params, batches):
    return optax_clr.lr_range_test(loss_fn, params, optax.adam, batches, num_steps=NUM_STEPS)


# ------------------------------------------------------------- arrays of several kinds, and workers


def loss_of_the_first_two(params, batch):
    return loss_fn(params, batch[:2])


def reused_with(extra):
    """A loader with the same NumPy memory each time, beside what it gives anew."""
    inputs, targets = (np.empty_like(part) for part in BATCHES[0])
    for step, batch in enumerate(BATCHES):
        inputs[...], targets[...] = batch
        yield inputs, targets, extra(step)


@pytest.mark.parametrize(
    "extra",
    [jnp.float32, lambda step: jax.random.key(step), np.float32, float],
    ids=["JAX array", "key", "NumPy scalar", "float"],
)
def test_reused_memory_beside_other_arrays_is_copied(extra):
    test, grid = (
        functools.partial(
            test, loss_of_the_first_two, PARAMS, optax.adam, max_lr=0.1, num_steps=NUM_STEPS
        )
        for test in (optax_clr.lr_range_test, optax_clr.lr_grid_test)
    )
    np.testing.assert_array_equal(test(reused_with(extra)).losses, run(STACKED).losses)
    np.testing.assert_allclose(
        grid(reused_with(extra)).losses,
        optax_clr.lr_grid_test(loss_fn, PARAMS, optax.adam, STACKED, max_lr=0.1).losses,
        rtol=1e-5,
    )


def test_arrays_that_are_of_another_kind_later_are_taken():
    mixed = [
        (jnp.asarray(x) if step % 2 else x, y if step % 3 else jnp.asarray(y))
        for step, (x, y) in enumerate(BATCHES)
    ]
    for stream in (mixed, [mixed[1], *mixed[1:]]):
        assert run(stream).losses.shape == (NUM_STEPS,)
    np.testing.assert_array_equal(run(mixed).losses, run(STACKED).losses)


def test_many_arrays_of_jax_are_stacked_by_a_program_of_constant_size():
    device = jax.devices()[-1]  # not the first, to which the host's arrays go
    leaves = jax.device_put({str(i): np.float32(i) for i in range(60)}, device)
    step_fn = lambda state, batch, value: (state, value * sum(batch.values()))
    result = optax_clr.range_test(
        step_fn, jax.device_put(np.float32(0), device), [leaves] * 50, np.ones(50)
    )
    np.testing.assert_allclose(result.losses, 60 * 59 / 2, rtol=1e-5)
    columns = [jnp.zeros(256)] * 60
    assert len(jax.make_jaxpr(_put)(columns, list(leaves.values()), 0).jaxpr.eqns) == 1
    assert str(jax.make_jaxpr(_put)(columns, list(leaves.values()), 0)).count("\n") < 1000


class Workers:
    """A loader whose iterators, which it keeps, are closed as those of a pool of workers are."""

    def __init__(self, batches):
        self.batches = batches
        self.num_open = 0
        self.iterators = []

    def __iter__(self):
        self.iterators.append(self.open())
        return self.iterators[-1]

    def open(self):
        self.num_open += 1
        try:
            yield from self.batches
        finally:
            self.num_open -= 1


@pytest.mark.parametrize("end", ["whole", "several passes", "divergence", "error", "unfit"])
@pytest.mark.parametrize("test", [optax_clr.lr_range_test, optax_clr.lr_grid_test])
def test_a_loader_is_closed_when_the_test_returns(test, end):
    """Without the cyclic collector, which may not come for a long time."""
    batches = BATCHES[:7] if end == "several passes" else BATCHES
    if end == "unfit":
        batches = [*BATCHES[:5], BATCHES[0][:1], *BATCHES]
    loader = Workers(batches)
    loss = (lambda params, batch: batch[2]) if end == "error" else loss_fn
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(ValueError, IndexError):
            test(
                loss, PARAMS, optax.sgd, loader, num_steps=NUM_STEPS - 10,
                max_lr=1e6 if end == "divergence" else 0.1,
            )  # fmt: skip
        assert loader.num_open == 0
    finally:
        gc.enable()


def test_an_iterator_of_the_caller_goes_on_after_the_test():
    iterator = iter(BATCHES)
    run(iterator, num_steps=20)
    np.testing.assert_array_equal(next(iterator)[0], BATCHES[20][0])


def test_pytorch_tensors_are_taken_wherever_arrays_are():
    torch = pytest.importorskip("torch")
    tensors = tuple(map(torch.from_numpy, STACKED))
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*(part.flatten(0, 1) for part in tensors)), batch_size=16
    )
    expected = run(STACKED, held_out=BATCHES[0])
    for batches in (tensors, loader, list(zip(*tensors, strict=True))):
        held_out = tuple(part[0] for part in tensors)
        result = run(batches, held_out=held_out)
        np.testing.assert_array_equal(result.losses, expected.losses)
        np.testing.assert_array_equal(result.held_out_losses, expected.held_out_losses)
        grid = optax_clr.lr_grid_test(
            loss_fn, PARAMS, optax.adam, batches, num_steps=20, max_lr=0.1, held_out=held_out
        )
        assert int(grid.num_valid) == 17


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32", "float64", "int8", "bool"])
def test_pytorch_tensors_of_any_type_are_taken(name):
    torch = pytest.importorskip("torch")
    tensor = torch.ones(20, 3).to(getattr(torch, name))
    if tensor.is_floating_point():
        tensor.requires_grad_()

    def step_fn(state, batch, value):
        return state, sum(jax.tree.leaves(batch)).astype(jnp.float32).sum() + 0 * value

    for batches in (tensor, list(zip(tensor, strict=True))):
        result = optax_clr.range_test(step_fn, 0.0, batches, np.ones(20))
        np.testing.assert_array_equal(result.losses, np.full(20, 3.0))


# ------------------------------------------------------------------------------ how it is read


class OfAQueue:
    """An iterator that must not be asked for more when it is at its end, where it would wait."""

    def __init__(self, batches):
        self.batches = iter(batches)

    def __iter__(self):
        return self

    def __next__(self):
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(lambda: pytest.fail("asked for more"), None)
            raise StopIteration
        return batch


def test_an_iterator_at_its_end_is_not_asked_for_more():
    with pytest.warns(RuntimeWarning, match="after 7 of .* no more batches, and an iterator"):
        assert int(run(OfAQueue(BATCHES[:7])).num_valid) == 7


def test_a_stream_that_can_be_read_again_is():
    streamed = run(Loader(BATCHES[:7]))
    again = [np.resize(part, (NUM_STEPS, *part.shape[1:])) for part in (INPUTS[:7], TARGETS[:7])]
    np.testing.assert_array_equal(streamed.losses, run(tuple(again)).losses)


def test_the_short_last_batch_of_an_epoch_is_left_out():
    short = tuple(part[:5] for part in BATCHES[0])
    streamed = run(Loader([*BATCHES[:7], short]))
    np.testing.assert_array_equal(streamed.losses, run(Loader(BATCHES[:7])).losses)


def test_the_default_is_300_steps():
    result = optax_clr.lr_range_test(loss_fn, PARAMS, optax.adam, Loader(BATCHES), max_lr=0.1)
    assert result.losses.shape == (300,)


def test_reading_stops_soon_after_divergence():
    loader = Loader(itertools.repeat(np.float32(1)))

    def diverges_at_once(state, batch, value):
        return state + 1, batch + value * jnp.exp(state)

    values = np.ones(100_000, np.float32)
    result = optax_clr.range_test(diverges_at_once, jnp.float32(0), loader, values)
    assert int(result.num_valid) < 100
    assert loader.num_read < 1000


def test_batches_are_read_ahead_by_a_chunk_and_no_more():
    num_trained, ahead = [], []

    def step_fn(state, batch, value):
        jax.debug.callback(num_trained.append, batch)
        return state, batch + value

    def read():
        for number in range(1000):
            ahead.append(number - len(num_trained))
            yield np.float32(number % 2)

    optax_clr.range_test(step_fn, jnp.float32(0), read(), np.ones(1000))
    jax.effects_barrier()
    assert len(num_trained) == 1000
    assert max(ahead) <= 2 * 256


@pytest.mark.parametrize("batches", [BATCHES, jax.tree.map(jnp.asarray, BATCHES)])
def test_the_step_is_traced_once_and_a_second_stream_compiles_nothing(batches, caplog):
    traces = []

    def counted(params, batch):
        traces.append(None)
        return loss_fn(params, batch)

    test = functools.partial(optax_clr.lr_range_test, counted, PARAMS, optax.adam)
    test(Loader(batches), num_steps=33)  # chunks of many lengths
    assert len(traces) == 1
    with jax.log_compiles(True):
        test(Loader(batches[3:]), num_steps=33, max_lr=0.5)
    assert len(traces) == 1
    assert "Compiling" not in caplog.text


@pytest.mark.parametrize(("seconds", "num_rows"), [(0.0, 256), (1e-3, 256), (0.5, 64), (100.0, 64)])
def test_calls_are_short_by_the_clock_whatever_it_shows(seconds, num_rows, monkeypatch):
    """A clock that stands still, one that is fast, calls of half a second, and of a minute.

    All the batches for a call are read between two looks at the clock.
    """
    looks, num_trained, ahead, of_calls = [], [], [], []

    def clock():
        looks.append(None)
        return seconds * len(looks)

    def step_fn(state, batch, value):
        jax.debug.callback(num_trained.append, batch)
        return state, batch * value

    def read():
        for number in range(1024):
            ahead.append(number - len(num_trained))
            of_calls.append(len(looks))
            yield np.float32(number % 2)

    monkeypatch.setattr(time, "perf_counter", clock)
    result = optax_clr.range_test(step_fn, jnp.float32(0), read(), np.ones(1024))
    jax.effects_barrier()
    np.testing.assert_array_equal(result.losses, np.arange(1024) % 2)
    assert max(ahead) <= 2 * num_rows
    assert max(collections.Counter(of_calls).values()) == num_rows


@pytest.mark.parametrize(
    ("num_bytes", "steps_per_value", "num_rows"),
    [(2**20, 1, 8), (2**20, 2, 4), (2**25, 1, 1), (16, 1, 100), (0, 1, 100)],
)
def test_chunks_have_at_most_8_mebibytes(num_bytes, steps_per_value, num_rows):
    batches = Loader([np.zeros(num_bytes // 4, np.float32)])
    assert StreamedBatches(batches, 100, steps_per_value).most_rows == num_rows


def test_chunks_lie_where_the_cpu_backend_takes_them_without_a_copy():
    for length in range(1, 300, 7):
        array = aligned((length, 3), np.dtype(np.int8))
        assert array.ctypes.data % 64 == 0
        assert (array.shape, array.dtype) == ((length, 3), np.int8)


def test_what_the_caller_passed_lives_on():
    state = {"params": jnp.arange(3.0), "key": jax.random.key(0)}
    before = jax.tree.map(np.array, {**state, "key": jax.random.key_data(state["key"])})

    def step_fn(state, batch, value):
        key, subkey = jax.random.split(state["key"])
        params = state["params"] + value * jax.random.normal(subkey, (3,))
        return {"params": params, "key": key}, batch * jnp.sum(params)

    optax_clr.range_test(step_fn, state, Loader(np.ones(20, np.float32)), np.ones(20))
    after = {**state, "key": jax.random.key_data(state["key"])}
    jax.tree.map(np.testing.assert_array_equal, after, before)


# -------------------------------------------------------------------------- what ends it early


def assert_first_rows(result, num_rows):
    stacked = run(STACKED)
    assert int(result.num_valid) == num_rows
    np.testing.assert_array_equal(result.losses[:num_rows], stacked.losses[:num_rows])
    assert np.isnan(result.losses[num_rows:]).all()
    assert np.isnan(result.learning_rates[num_rows:]).all()


def test_an_iterator_that_runs_out_leaves_its_rows_and_a_warning():
    with pytest.warns(RuntimeWarning, match="after 37 of 60 rows.*no more batches") as caught:
        result = run(iter(BATCHES[:37]))
    assert_first_rows(result, 37)
    assert caught[0].filename == __file__


def test_batches_that_do_not_fill_a_row_are_not_used():
    with pytest.warns(RuntimeWarning, match="after 9 of 15 rows"):
        result = run(iter(BATCHES[:39]), steps_per_value=4)
    np.testing.assert_array_equal(result.losses[:9], run(STACKED, steps_per_value=4).losses[:9])


def failing(batches, error):
    yield from batches
    raise error


def test_an_exception_in_a_loader_leaves_the_rows_before_it():
    with pytest.warns(RuntimeWarning, match=r"after 23 of 60 rows.*raised OSError\('disk'\)"):
        result = run(failing(BATCHES[:23], OSError("disk")))
    assert_first_rows(result, 23)


def test_an_exception_before_the_first_row_is_raised():
    with pytest.raises(OSError, match="disk"):
        run(failing([], OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        run(failing(BATCHES[:3], OSError("disk")), steps_per_value=4)
    with pytest.raises(ValueError, match="each of steps_per_value=4 steps"):
        run(iter(BATCHES[:3]), steps_per_value=4)


def test_an_exception_after_divergence_is_of_no_interest():
    losses = [*np.linspace(2, 1, 20), math.nan, math.nan, math.nan, 1.0]
    stream = failing(np.float32(losses), OSError("disk"))
    step_fn = lambda state, batch, value: (state, batch + 0 * value)
    result = optax_clr.range_test(step_fn, 0.0, stream, np.ones(50))
    assert int(result.num_valid) == 20


@pytest.fixture
def ctrl_c_interrupts():
    """As in a terminal; what nohup or a script's & starts is born deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_ctrl_c_leaves_the_rows_so_far():
    def read():
        for number, batch in enumerate(BATCHES):
            if number == 40:
                signal.raise_signal(signal.SIGINT)
            yield batch

    with pytest.warns(RuntimeWarning, match="after 40 of 60 rows.*interrupted"):
        assert_first_rows(run(read()), 40)


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_ctrl_c_is_heard_where_no_row_is_missing():
    losses = [*np.linspace(2, 1, 20), math.nan, math.nan, math.nan, 1.0]

    def read():
        yield from np.float32(losses)
        signal.raise_signal(signal.SIGINT)

    step_fn = lambda state, batch, value: (state, batch + 0 * value)
    with pytest.warns(RuntimeWarning, match="after 20 of 50 rows.*interrupted"):
        result = optax_clr.range_test(step_fn, 0.0, read(), np.ones(50))
    assert result.ended_by == EndedBy.DIVERGENCE


class InterruptedBetweenBatches:
    """An iterator that Ctrl-C stops once, and that has more to give."""

    def __init__(self, batches, number):
        self.batches, self.number, self.given = iter(batches), number, 0

    def __next__(self):
        self.given += 1
        if self.given == self.number + 1:
            raise KeyboardInterrupt
        return next(self.batches)

    def __iter__(self):
        return self


def test_ctrl_c_between_two_batches_ends_the_reading(monkeypatch):
    """Python may raise it in the library's own frame, where no generator ends by it."""
    build = StreamedBatches.__init__

    def build_interrupted(self, *arguments):
        build(self, *arguments)
        self._next_batches = InterruptedBetweenBatches(self._next_batches, 40)

    monkeypatch.setattr(StreamedBatches, "__init__", build_interrupted)
    with pytest.warns(RuntimeWarning, match="after 40 of 60 rows.*interrupted"):
        assert_first_rows(run(Loader(BATCHES)), 40)


CTRL_C = """
import itertools, signal, numpy as np, optax_clr

signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal, wherever this runs

def endless():
    for number in itertools.count():
        if number == 500:  # beyond what is read before the first rows are trained
            print("reading", flush=True)
        yield np.float32(number % 2)

result = optax_clr.range_test(
    lambda state, batch, value: (state, batch * value), np.float32(0), endless(), np.ones(10**7)
)
print("rows", int(result.num_valid), result.losses[:4])
"""


def test_a_real_ctrl_c_in_a_real_process():
    process = subprocess.Popen(
        [sys.executable, "-c", CTRL_C], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "reading\n"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "RuntimeWarning: the range test ended after" in errors
    assert int(output.split()[1]) > 0
    assert "[0. 1. 0. 1.]" in output


# -------------------------------------------------------------------------------------- the bar


def test_the_bar_shows_rows_rate_and_loss(capsys):
    result = run(STACKED, progress=True)
    np.testing.assert_array_equal(result.losses, run(STACKED).losses)
    shown = capsys.readouterr().err.rpartition("\r")[2]
    assert "60/60" in shown
    assert "rate=1.00e-01" in shown
    assert f"loss={float(result.smoothed_losses[-1]):.4g}" in shown


def test_the_bar_stops_at_the_rows_of_a_test_that_diverged(capsys):
    result = optax_clr.lr_range_test(loss_fn, PARAMS, optax.sgd, STACKED, max_lr=1e4, progress=True)
    shown = capsys.readouterr().err.rpartition("\r")[2]
    assert f"{int(result.num_valid)}/60" in shown
    assert f"rate={result.learning_rates[result.num_valid - 1]:.2e}" in shown


def test_there_is_no_bar_unless_asked_for(capsys):
    run(Loader(BATCHES))
    assert capsys.readouterr().err == ""


def test_a_bar_without_tqdm_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match="pip install tqdm"):
        run(STACKED, progress=True)


# ----------------------------------------------------------------------------- convolutions


def convolution_step(state, batch, value):
    def loss(kernel):
        return jnp.mean(jax.lax.conv(batch, kernel, (1, 1), "SAME") ** 2)

    value_of, gradient = jax.value_and_grad(loss)(state)
    return state - value * gradient, value_of


IMAGES = np.random.default_rng(0).normal(size=(20, 2, 3, 8, 8)).astype(np.float32)
KERNEL = np.random.default_rng(1).normal(size=(3, 3, 3, 3)).astype(np.float32)
convolution_test = functools.partial(
    optax_clr.range_test, convolution_step, KERNEL, values=np.geomspace(1e-3, 0.1, 20)
)


def traced_image(step):
    return jnp.asarray(IMAGES)[step]


def losses_of_convolutions(batches, steps_per_value):
    values = np.geomspace(1e-3, 0.1, 20 // steps_per_value)
    return optax_clr.range_test(
        convolution_step, KERNEL, batches, values, steps_per_value=steps_per_value
    ).losses


convolutions_in_one_program = jax.jit(losses_of_convolutions, static_argnums=1)


@pytest.mark.parametrize("batches", [IMAGES, Loader(IMAGES), traced_image])
@pytest.mark.parametrize("steps_per_value", [1, 5])
def test_a_step_with_convolutions_gives_the_curve_of_one_program(batches, steps_per_value):
    by_rows = losses_of_convolutions(batches, steps_per_value)
    one_program = convolutions_in_one_program(IMAGES, steps_per_value)
    np.testing.assert_allclose(by_rows, one_program, rtol=1e-4)


def test_a_convolution_may_have_a_lane_for_each_rule():
    values = np.geomspace(1e-3, 0.1, 20)
    losses = lambda factor: (
        optax_clr.range_test(convolution_step, KERNEL, IMAGES, values, stop_factor=factor).losses
    )
    lanes = jax.vmap(losses)(jnp.array([0.5, 2.0]))
    for lane, factor in zip(lanes, (0.5, 2.0), strict=True):
        np.testing.assert_allclose(lane, losses(factor), rtol=1e-4)


def test_convolutions_on_a_cpu_are_called_row_by_row_and_nothing_else_is(monkeypatch):
    """A loop of XLA's CPU backend takes ten times as long for them; nobody would see it here."""
    if jax.default_backend() != "cpu":
        pytest.skip("a loop of an accelerator computes convolutions as well as anything")
    calls = []
    whole = Loop.whole
    monkeypatch.setattr(Loop, "whole", lambda *args: calls.append("whole") or whole(*args))
    monkeypatch.setattr(Loop, "begin", lambda *args: calls.append("rows") or begin(*args))
    begin = _begin

    def dot_step(state, batch, value):
        return state - value * batch.mean(), jnp.sum(state) * batch.mean()

    def nested_step(state, batch, value):
        return jax.lax.cond(value > 0, jax.jit(convolution_step), lambda s, b, v: (s, 0.0 * v),
                            state, batch, value)  # fmt: skip

    for step_fn, way in [(convolution_step, "rows"), (nested_step, "rows"), (dot_step, "whole")]:
        calls.clear()
        not_yet_compiled = functools.partial(step_fn)
        optax_clr.range_test(not_yet_compiled, KERNEL, IMAGES, np.geomspace(1e-3, 0.1, 20))
        assert calls == [way]


@pytest.mark.parametrize("default", ["device", "name"])
def test_the_device_of_a_test_is_the_default_one_and_not_that_of_the_backend(default, monkeypatch):
    """As on a machine with a GPU that the caller does not use."""
    if default == "name" and jax.__version_info__ < (0, 6):
        pytest.skip("this JAX takes no name for a device")
    cpu = jax.devices("cpu")[0] if default == "device" else "cpu"
    calls = []
    begin = Loop.begin
    monkeypatch.setattr(Loop, "begin", lambda *args: calls.append("rows") or begin(*args))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with jax.default_device(cpu):
        optax_clr.range_test(
            functools.partial(convolution_step), KERNEL, IMAGES, np.geomspace(1e-3, 0.1, 20)
        )
    assert calls == ["rows"]


def test_labels_of_64_bits_are_streamed_as_jax_has_them():
    batches = [(np.ones(2, np.float64), np.arange(2, dtype=np.int64))] * 4
    loss_fn = lambda params, batch: jnp.sum(params * batch[0]) + batch[1].sum().astype(jnp.float32)
    result = optax_clr.lr_range_test(loss_fn, jnp.zeros(2), optax.sgd, batches)
    assert float(result.losses[0]) == 1.0
