"""The range test: train while the rate changes, as one compiled program, and record the loss."""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from optax_clr._arguments import (
    float_dtype,
    function,
    is_traced,
    known_float,
    native,
    real_scalar,
    shown,
    whole_number,
)
from optax_clr._arrays import as_array, is_array, is_numeric
from optax_clr._batches import check_num_steps, is_stream, open_batches
from optax_clr._documentation import see
from optax_clr._modes import undisturbed
from optax_clr._reading import RangeTestWarning
from optax_clr._result import ONE_EXAMPLE, RangeTestResult
from optax_clr._run import Outcome, run
from optax_clr._states import is_variable
from optax_clr._step import FunctionStep, OptimizerStep, PyTree, StepFn, describe
from optax_clr._stop_rule import StopRule


@undisturbed()
def range_test(
    step_fn: StepFn,
    state: PyTree,
    batches: PyTree | Callable[[jax.Array], PyTree] | Iterable[PyTree],
    values: ArrayLike,
    *,
    has_aux: bool = False,
    smoothing: ArrayLike = 0.98,
    stop_factor: ArrayLike = 1.0,
    steps_per_value: int = 1,
    progress: bool = False,
) -> RangeTestResult:
    r"""Run any training step while a value changes, as one XLA program; record the loss.

    The value need not be a learning rate, and the values may come in any order. The loss
    $L_i$ of row $i$ is smoothed with weight $\beta$ = ``smoothing`` and its bias
    corrected,

    $$s_i = \frac{1 - \beta}{1 - \beta^{i + 1}} \sum_{j \le i} \beta^{i - j} L_j$$

    and the test has diverged when three losses in a row are not finite, or when, after twenty rows,

    $$s_i - \min_j s_j > \text{stop\_factor} \cdot \max(\text{fall}, 4 \, \text{noise})$$

    and the last three losses are as high. The fall is that of $s$ to its minimum; the noise
    is measured on moves downward, of which a divergence has none. One bad batch does not end a
    test: a loss that is not finite is a gap. A constant in the loss, or a factor, changes nothing.

    The rows are trained in chunks of at most 64, on an accelerator 128, and the rule looks at a
    chunk when it is trained: what is left of the chunk in which the loss diverges is trained, but
    not in the result. Under ``jax.vmap`` the runs go in step: the test ends with the last
    of them, and runs that have diverged train on with the others.

    A compiled program is kept while ``step_fn`` lives, and is used again while what the function
    refers to is the same; otherwise the step is traced again.

    Args:
      step_fn: ``(state, batch, value) -> (state, loss)``, a pure training step that can be
        traced; with ``has_aux`` it returns ``(state, (loss, metrics))``. It may train anything:
        batch statistics, keys for dropout and gradient accumulators are parts of the state. It
        is traced once, and must use the value. Calling again with the same function, and shapes,
        compiles nothing.
      state: pytree of arrays that the step starts from; never changed.
      batches: one of

        - a pytree of arrays with a leading axis of ``n * steps_per_value`` (more are not used);
        - a function from the step, ``i32[]``, to a batch, which is traced into the program;
        - a Python iterable of batches, such as a data loader or a list of tuples: read while the
          device computes, stacked in chunks of at most 8 MiB or 256 rows (a larger batch is a
          chunk), and read again from its start when it runs out, unless it is an iterator. A last
          batch of another shape, as at the end of an epoch, is left out.
      values: ``[n]`` values to try, in this order; may be traced.
      has_aux: whether the step returns metrics beside the loss; see ``RangeTestResult.metrics``.
      smoothing: weight of the past in the moving average, from 0 up to but not including 1.
      stop_factor: rise of the smoothed loss, in units of its fall, that counts as divergence;
        with ``math.inf`` only losses that are not finite end a test.
      steps_per_value: training steps for each value; the row has the mean of their losses and
        metrics.
      progress: whether to show a bar, with the value and the smoothed loss (needs tqdm). The test
        is then run in chunks of about half a second, by Python.

    Returns:
      A [`RangeTestResult`][] with ``n`` rows. Where a test with a stream or a bar ends early,
      because an iterator runs out, reading raises an exception, or Ctrl-C is pressed, it has the
      rows so far, padded as after divergence, and a ``RuntimeWarning`` says how many and why;
      with none, the exception is raised.

    Raises:
      TypeError: if the step is not a function, its result is not as above, the batches are none of
        the above, or a stream or a bar is asked for inside ``jax.jit`` or ``jax.vmap``.
      ValueError: if an argument is out of range or empty, the batches are too few or do not agree
        in length or shape, the loss is not a scalar, the step changes the shape of its state, its
        loss does not depend on the value, or ``optax.MultiSteps`` does not fit ``steps_per_value``.
      ImportError: if ``progress`` is asked for and tqdm is not installed.

    Examples:
      >>> def step_fn(position, batch, rate):  # gradient descent on position**2 / 2, noisy
      ...     loss = (position - batch) ** 2 / 2
      ...     return position - rate * (position - batch), loss
      >>> noise = jax.random.normal(jax.random.key(0), (100,))
      >>> result = range_test(step_fn, jnp.float32(9.0), noise, jnp.geomspace(1e-2, 10.0, 100))
      >>> float(result.learning_rates[result.num_valid - 1]) > 2  # 2 / curvature
      True

    References:
      Smith, [Cyclical Learning Rates](https://arxiv.org/abs/1506.01186), 2017, section 3.3;
      the smoothing is fastai's.
    """
    step_fn = function("step_fn", step_fn, form="(state, batch, value) -> (state, loss)")
    values = _check_values(values)
    steps_per_value = whole_number("steps_per_value", steps_per_value)
    check_arrays("state", state)
    rule = _stop_rule(smoothing, stop_factor)
    source = open_batches(batches, values.shape[0], steps_per_value)
    step = FunctionStep(step_fn, bool(has_aux))
    outcome = run(
        step, source, state, values, rule, steps_per_value=steps_per_value, progress=progress
    )
    for remark in remarks(outcome):
        warnings.warn(remark, stacklevel=3)
    return outcome.result


@undisturbed()
def lr_range_test(
    loss_fn: Callable[[PyTree, PyTree], Any],
    params: PyTree,
    optimizer: Callable[[Any], optax.GradientTransformation],
    batches: PyTree | Callable[[jax.Array], PyTree] | Iterable[PyTree],
    *,
    min_lr: ArrayLike = 1e-7,
    max_lr: ArrayLike = 10.0,
    num_steps: int | None = None,
    spacing: str = "log",
    has_aux: bool = False,
    smoothing: ArrayLike = 0.98,
    stop_factor: ArrayLike = 1.0,
    steps_per_value: int = 1,
    held_out: PyTree = None,
    progress: bool = False,
) -> RangeTestResult:
    r"""Sweep the learning rate once over a short training run, as one XLA program.

    Of ``n = num_steps / steps_per_value`` rows, row $i$ trains with the rate

    $$\text{min\_lr} \cdot (\text{max\_lr} / \text{min\_lr})^{i / (n - 1)}$$

    or the linear interpolation. For anything more than a loss, parameters and an Optax optimizer,
    such as batch statistics or dropout, see [`range_test`][].

    Args:
      loss_fn: ``(params, batch) -> loss``, a scalar; with ``has_aux``, ``(loss, metrics)``.
      params: pytree of arrays to start from; never changed.
      optimizer: function from a learning rate to a ``GradientTransformation``: ``optax.adamw``, or
        ``lambda rate: optax.chain(optax.clip(1.0), optax.sgd(rate))``.
      batches: pytree of arrays with a leading axis of at least ``num_steps``; or a function from
        the step, ``i32[]``, to a batch, which is traced into the program; or a Python iterable of
        batches, such as a data loader, which is streamed. See [`range_test`][].
      min_lr: positive rate of the first row, may be traced.
      max_lr: rate of the last row, larger than ``min_lr``, may be traced.
      num_steps: training steps; ``None`` means as many as there are batches (the largest multiple
        of ``steps_per_value``), or 300 if ``batches`` is a function or an iterable.
      spacing: ``"log"`` or ``"linear"`` spacing of the rates.
      has_aux: whether the loss comes with metrics; see ``RangeTestResult.metrics``.
      smoothing: weight of the past in the moving average, as in [`range_test`][].
      stop_factor: when the test stops, as in [`range_test`][].
      steps_per_value: training steps at each rate; the row has their mean loss.
      held_out: a batch that is not trained on, of any size; its loss after each row is recorded
        too, and the readings then read that. Training loss cannot see overfitting. ``None`` means
        none.
      progress: whether to show a bar, as in [`range_test`][].

    Returns:
      A [`RangeTestResult`][] with ``n`` rows, of which ``bounds()``, ``suggest()`` and
      ``one_cycle_peak()`` read rates to train with. One that ends early has the rows so far, as
      in [`range_test`][].

    Raises:
      TypeError: if a function is missing or returns something else, the optimizer is one already
        built, or the params are not floats.
      ValueError: if an argument is out of range or empty, the batches are too few or do not agree
        in length or shape, the loss is not a scalar, or the optimizer ignores its rate or
        keeps the first one in its state.
      RangeTestWarning: a warning, if every step trained on the same batch; or on a single example,
        where ``num_steps`` was not given.

    Examples:
      >>> def loss_fn(params, batch):
      ...     inputs, targets = batch
      ...     return jnp.mean((inputs @ params - targets) ** 2)
      >>> inputs = jax.random.normal(jax.random.key(0), (300, 32, 5))
      >>> targets = inputs.sum(-1) + jax.random.normal(jax.random.key(1), (300, 32))
      >>> result = lr_range_test(loss_fn, jnp.zeros(5), optax.sgd, (inputs, targets))
      >>> result.losses.shape
      (300,)
      >>> base_value, peak_value = result.bounds()
      >>> bool(0 < base_value < peak_value)
      True

    References:
      Smith, [Cyclical Learning Rates](https://arxiv.org/abs/1506.01186), 2017, section 3.3.
    """
    step = optimizer_step(loss_fn, optimizer, has_aux)
    steps_per_value = whole_number("steps_per_value", steps_per_value)
    check_arrays("params", params)
    counts_batches = num_steps is None
    num_steps = check_num_steps(num_steps, batches, steps_per_value)
    values = spaced(min_lr, max_lr, num_steps // steps_per_value, spacing)
    rule = _stop_rule(smoothing, stop_factor)
    held_out = held_out_batch(held_out)  # before a batch of the caller's iterator is read
    source = open_batches(batches, values.shape[0], steps_per_value)
    outcome = run(
        step,
        source,
        params,
        values,
        rule,
        steps_per_value=steps_per_value,
        held_out=held_out,
        progress=progress,
    )
    for remark in remarks(outcome):
        warnings.warn(remark, stacklevel=3)
    if counts_batches and outcome.facts.batch_size == 0:
        warnings.warn(ONE_EXAMPLE, RangeTestWarning, stacklevel=3)
    return outcome.result


def optimizer_step(loss_fn: Any, optimizer: Any, has_aux: Any) -> OptimizerStep:
    """Return the training step of a loss and an optimizer, if they are functions."""
    loss_fn = function("loss_fn", loss_fn, form="(params, batch) -> loss")
    if isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            "optimizer must be a function from a learning rate to a GradientTransformation, got "
            "one that is already built. Pass optax.adamw itself, or lambda rate: optax.adamw(rate, "
            f"weight_decay=0.1). {see('first-test/')}"
        )
    optimizer = function("optimizer", optimizer, form="learning_rate -> GradientTransformation")
    if isinstance(optimizer, functools.partial):
        names = [*_argument_names(optimizer.func)[: len(optimizer.args)], *optimizer.keywords]
        if "learning_rate" in names:  # and the rates of the test would be another argument's
            raise TypeError(
                f"optimizer must leave the learning rate open, got {shown(optimizer)}. Bind other "
                f"arguments by name, functools.partial(optax.adamw, weight_decay=0.1). "
                + see("range-test/")
            )
    return OptimizerStep(loss_fn, optimizer, bool(has_aux))


def _argument_names(factory: Any) -> list[str]:
    try:
        return [*inspect.signature(factory).parameters]
    except ValueError:  # of a function in C
        return []


ONE_BATCH = (
    "every step trained on the same batch: batches is a function that is traced once, and what it "
    "returns does not depend on the step. Take rows by the step, rows[step % len(rows)], or draw "
    "them, jax.random.fold_in(key, step); what NumPy draws comes from a generator of batches. If "
    "one batch is meant, let the loss close over it, and pass lambda step: step. "
    + see("range-test/#batches")
)


def remarks(outcome: Outcome) -> Iterator[Warning]:
    """Yield what there is to say of a test, whatever its curve looks like."""
    if outcome.ended_early:
        yield RuntimeWarning(_early_end(outcome))
    if outcome.facts.is_one_batch:
        yield RangeTestWarning(ONE_BATCH)


def _early_end(outcome: Outcome) -> str:
    result, error = outcome.result, outcome.stopped_by
    if isinstance(error, KeyboardInterrupt):
        reason = "it was interrupted"
    elif error is not None:
        reason = f"reading the batches raised {error!r}"
    else:
        reason = (
            "there were no more batches, and an iterator cannot be read again: a list or a data "
            "loader can"
        )
    return (
        f"the range test ended after {result.num_valid} of {len(result.losses)} rows, which are "
        f"its result; {reason}. {see('range-test/#ending-early')}"
    )


def held_out_batch(held_out: PyTree) -> PyTree:
    """Return a batch as arrays, if it is one; None where there is none."""
    if held_out is None:
        return None
    if is_stream(held_out) and not isinstance(held_out, (list, str)):
        raise TypeError(
            f"held_out must be one batch, got the iterable {shown(held_out)}. Pass a batch of it, "
            "next(iter(loader)), or read it beside the training batches. "
            + see("recipes/#a-validation-loader-in-a-range-test")
        )
    batch = jax.tree.map(
        lambda leaf: as_array("held_out", leaf) if is_array(leaf) else leaf, held_out
    )
    check_arrays("held_out", batch)
    return batch


def check_arrays(name: str, tree: PyTree) -> None:
    leaves = jax.tree.leaves(tree)
    if not leaves:
        raise ValueError(
            f"{name} must have at least one array, got the empty pytree {shown(tree)}."
        )
    _check_is_tree(name, tree)
    if all(isinstance(leaf, jax.Array) for leaf in leaves):
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        part = f"{name}{jax.tree_util.keystr(path)}"
        if not isinstance(leaf, _ARRAYS):
            raise TypeError(
                f"{part} must be an array, got {describe(leaf)}. "
                "Leave what is not one out, or close over it; if there are arrays in it, register "
                f"its class with JAX (jax.tree_util.register_dataclass). {see('training-steps/')}"
            )
        if isinstance(leaf, np.ndarray) and not _is_taken_by_jax(part, leaf):
            raise TypeError(
                f"{part} must be an array of numbers as the device has them, got dtype "
                f"{leaf.dtype}. Convert it: array.astype(numpy.float32)."
            )


def _is_taken_by_jax(name: str, array: np.ndarray) -> bool:
    return is_numeric(array.dtype) and native(name, array) is array


_ARRAYS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)


def _check_is_tree(name: str, tree: PyTree) -> None:
    """Raise for a variable of Flax in two places, which a pytree would make two variables."""
    places: dict[int, str] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_variable):
        place = f"{name}{jax.tree_util.keystr(path)}"
        if is_variable(leaf) and places.setdefault(id(leaf), place) != place:
            raise ValueError(
                f"{name} must be a tree, but {places[id(leaf)]} and {place} are one variable, and "
                "would be trained apart. Pass what nnx.split gives, which has it once. "
                + see("training-steps/#nnx")
            )


def _check_values(values: ArrayLike) -> jax.Array | np.ndarray:
    array = values if isinstance(values, jax.Array) else np.asarray(native("values", values))
    if not jnp.issubdtype(array.dtype, jnp.number) or jnp.iscomplexobj(array):
        remedy = " Of a schedule pass schedule(jnp.arange(n))." if callable(values) else ""
        raise TypeError(f"values must be real numbers, got {shown(values)}.{remedy}")
    if array.ndim != 1 or not array.shape[0]:
        raise ValueError(
            f"values must be one-dimensional and not empty, got an array of shape {array.shape}."
        )
    # An explicit transfer, which jax.transfer_guard("disallow") allows.
    if not is_traced(array) and not np.isfinite(jax.device_get(array).astype(np.float64)).all():
        raise ValueError(f"values must be finite, got {shown(values)}.")
    return array.astype(float_dtype(array))


def spaced(min_lr: Any, max_lr: Any, num_values: int, spacing: str) -> jax.Array | np.ndarray:
    min_lr = real_scalar("min_lr", min_lr, positive=True)
    max_lr = real_scalar("max_lr", max_lr, positive=True)
    low, high = known_float(min_lr), known_float(max_lr)
    if low is not None and high is not None and low >= high:
        raise ValueError(f"max_lr={max_lr} must be larger than min_lr={min_lr}.")
    if spacing not in ("log", "linear"):
        raise ValueError(f"spacing must be 'log' or 'linear', got {shown(spacing)}.")
    if low is not None and high is not None:
        return _known_rates(low, high, num_values, spacing)
    start, stop = jnp.asarray(min_lr, jnp.float32), jnp.asarray(max_lr, jnp.float32)
    if spacing == "log":
        return jnp.geomspace(start, stop, num_values)
    return jnp.linspace(start, stop, num_values)


@functools.lru_cache(maxsize=32)  # as long to compute as a step of a small network
def _known_rates(low: float, high: float, num_values: int, spacing: str) -> np.ndarray:
    space = np.geomspace if spacing == "log" else np.linspace
    rates: np.ndarray = space(low, high, num_values).astype(np.float32)
    rates.flags.writeable = False
    return rates


def _stop_rule(smoothing: ArrayLike, stop_factor: ArrayLike) -> StopRule:
    number = known_float(real_scalar("smoothing", smoothing))
    if number is not None and not 0 <= number < 1:
        raise ValueError(
            f"smoothing must be from 0 up to but not including 1, got {shown(smoothing)}: it is "
            "the weight of the past in the moving average."
        )
    if not (isinstance(stop_factor, float) and stop_factor == math.inf):
        stop_factor = real_scalar("stop_factor", stop_factor, positive=True)
    return StopRule(_as_float32(smoothing), _as_float32(stop_factor))


def _as_float32(number: Any) -> ArrayLike:
    # NumPy's go into a compiled program as they are; JAX's would take a program each to make.
    return number.astype(jnp.float32) if isinstance(number, jax.Array) else np.float32(number)
