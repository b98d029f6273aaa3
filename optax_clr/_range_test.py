"""The range test: train while the rate changes, as one compiled program, and record the loss."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike

from optax_clr._arguments import function, is_traced, known_float, real_scalar, whole_number
from optax_clr._batches import check_batches, check_num_steps
from optax_clr._divergence import Tracker, new_tracker, track
from optax_clr._result import RangeTest
from optax_clr._training_step import OptimizerStep, PyTree, StepFn, checked_step, describe

_CONFIG: Any = jax.config


def range_test(
    step_fn: StepFn,
    state: PyTree,
    batches: PyTree | Callable[[jax.Array], PyTree],
    values: ArrayLike,
    *,
    has_aux: bool = False,
    smoothing: ArrayLike = 0.98,
    stop_factor: ArrayLike = 1.0,
    steps_per_value: int = 1,
) -> RangeTest:
    r"""Run any training step while a value changes, as one XLA program; record the loss.

    The value need not be a learning rate, and the values may come in any order. The loss
    :math:`L_i` of row :math:`i` is smoothed with weight :math:`\beta` = ``smoothing`` and its bias
    corrected,

    .. math:: s_i = \frac{1 - \beta}{1 - \beta^{i + 1}} \sum_{j \le i} \beta^{i - j} L_j

    and the test has diverged when a loss is not finite, or when, after ten rows,

    .. math:: s_i - \min_j s_j > \text{stop\_factor} \cdot \max(\text{fall}, 4 \, \text{noise})

    where the fall is that of :math:`s` to its minimum and the noise is measured on moves downward,
    which a divergence has none of. A constant in the loss, or a factor, changes nothing. After it
    no further training step is executed (under ``jax.vmap``, where lanes share their steps, a
    lane that has diverged is frozen).

    Args:
      step_fn: ``(state, batch, value) -> (state, loss)``, a pure training step that can be
        traced; with ``has_aux`` it returns ``(state, (loss, metrics))``. It may train anything:
        batch statistics, keys for dropout and gradient accumulators are parts of the state. It
        is traced once. Calling again with the same function, and shapes, compiles nothing.
      state: pytree of arrays that the step starts from; never changed.
      batches: pytree of arrays with a leading axis of ``n * steps_per_value`` (more are not
        used), or a function from the step, ``i32[]``, to a batch, which is traced into the
        program.
      values: ``[n]`` values to try, in this order; may be traced.
      has_aux: whether the step returns metrics beside the loss; see ``RangeTest.metrics``.
      smoothing: weight of the past in the moving average, from 0 up to but not including 1.
      stop_factor: rise of the smoothed loss, in units of its fall, that counts as divergence;
        ``math.inf`` stops for a loss that is not finite only.
      steps_per_value: training steps for each value; the row has the mean of their losses and
        metrics.

    Returns:
      A :class:`RangeTest` with ``n`` rows.

    Raises:
      TypeError: if the step is no function, its result is not as above, or the batches are
        neither arrays nor a function.
      ValueError: if an argument is out of range or empty, the batches are too few or do not agree
        in length, the loss is not a scalar, or the step changes the shape of its state.

    Example:
      >>> def step_fn(position, batch, rate):  # gradient descent on position**2 / 2, noisy
      ...     loss = (position - batch) ** 2 / 2
      ...     return position - rate * (position - batch), loss
      >>> noise = jax.random.normal(jax.random.key(0), (100,))
      >>> result = range_test(step_fn, jnp.float32(9.0), noise, jnp.geomspace(1e-2, 10.0, 100))
      >>> float(result.learning_rates[result.num_valid - 1]) > 2  # 2 / curvature
      True

    References:
      Smith, `Cyclical Learning Rates <https://arxiv.org/abs/1506.01186>`_, 2017, section 3.3;
      the smoothing is fastai's.
    """
    step_fn = function("step_fn", step_fn, form="(state, batch, value) -> (state, loss)")
    values = _check_values(values)
    steps_per_value = whole_number("steps_per_value", steps_per_value)
    state = _as_arrays("state", state)
    batch_fn = batches if callable(batches) else None
    if batch_fn is None:
        check_batches(batches, num_needed=values.shape[0] * steps_per_value)
    plan = _Plan(step_fn, batch_fn, bool(has_aux), steps_per_value)
    return _program(plan)(
        state,
        () if batch_fn is not None else batches,
        values,
        _check_smoothing(smoothing),
        _check_stop_factor(stop_factor),
    )


def lr_range_test(
    loss_fn: Callable[[PyTree, PyTree], Any],
    params: PyTree,
    optimizer: Callable[[Any], optax.GradientTransformation],
    batches: PyTree | Callable[[jax.Array], PyTree],
    *,
    min_value: ArrayLike = 1e-7,
    max_value: ArrayLike = 10.0,
    num_steps: int | None = None,
    spacing: str = "log",
    has_aux: bool = False,
    smoothing: ArrayLike = 0.98,
    stop_factor: ArrayLike = 1.0,
    steps_per_value: int = 1,
) -> RangeTest:
    r"""Sweep the learning rate once over a short training run, as one XLA program.

    Of ``n = num_steps / steps_per_value`` rows, row :math:`i` trains with the rate

    .. math:: \text{min\_value} \cdot (\text{max\_value} / \text{min\_value})^{i / (n - 1)}

    or the linear interpolation. For anything more than a loss, parameters and an Optax optimizer,
    such as batch statistics or dropout, see :func:`range_test`.

    Args:
      loss_fn: ``(params, batch) -> loss``, a scalar; with ``has_aux``, ``(loss, metrics)``.
      params: pytree of arrays to start from; never changed.
      optimizer: function from a learning rate to a ``GradientTransformation``: ``optax.adamw``, or
        ``lambda rate: optax.chain(optax.clip(1.0), optax.sgd(rate))``.
      batches: pytree of arrays with a leading axis of at least ``num_steps``, or a function from
        the step, ``i32[]``, to a batch, which is traced into the program.
      min_value: positive rate of the first row, may be traced.
      max_value: rate of the last row, larger than ``min_value``, may be traced.
      num_steps: training steps; ``None`` means as many as there are batches (the largest multiple
        of ``steps_per_value``), or 300 if ``batches`` is a function.
      spacing: ``"log"`` or ``"linear"`` spacing of the rates.
      has_aux: whether the loss comes with metrics; see ``RangeTest.metrics``.
      smoothing: weight of the past in the moving average, as in :func:`range_test`.
      stop_factor: when the test stops, as in :func:`range_test`.
      steps_per_value: training steps at each rate; the row has their mean loss.

    Returns:
      A :class:`RangeTest` with ``n`` rows, of which ``bounds()``, ``suggest()`` and
      ``one_cycle_peak()`` read rates to train with.

    Raises:
      TypeError: if a function is missing or returns something else, or the optimizer is one
        already built.
      ValueError: if an argument is out of range or empty, the batches are too few or do not agree
        in length, or the loss is not a scalar.

    Example:
      >>> def loss_fn(params, batch):
      ...     inputs, targets = batch
      ...     return jnp.mean((inputs @ params - targets) ** 2)
      >>> inputs = jax.random.normal(jax.random.key(0), (300, 32, 5))
      >>> result = lr_range_test(loss_fn, jnp.zeros(5), optax.adam, (inputs, inputs.sum(-1)))
      >>> result.losses.shape
      (300,)
      >>> base_value, peak_value = result.bounds()
      >>> bool(0 < base_value < peak_value)
      True

    References:
      Smith, `Cyclical Learning Rates <https://arxiv.org/abs/1506.01186>`_, 2017, section 3.3.
    """
    loss_fn = function("loss_fn", loss_fn, form="(params, batch) -> loss")
    if isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            "optimizer must be a function from a learning rate to a GradientTransformation, got "
            "one that is already built. Pass optax.adamw itself, or lambda rate: optax.adamw(rate, "
            "weight_decay=0.1)."
        )
    optimizer = function("optimizer", optimizer, form="learning_rate -> GradientTransformation")
    steps_per_value = whole_number("steps_per_value", steps_per_value)
    params = _as_arrays("params", params)
    num_steps = check_num_steps(num_steps, batches, steps_per_value)
    values = _spaced(min_value, max_value, num_steps // steps_per_value, spacing)
    transformation = optimizer(values[0])
    if not isinstance(transformation, optax.GradientTransformation):
        raise TypeError(
            f"optimizer must return a GradientTransformation, got {transformation!r} from "
            f"{optimizer!r}."
        )
    return range_test(
        OptimizerStep(loss_fn, optimizer, has_aux),
        (params, transformation.init(params)),
        batches,
        values,
        has_aux=has_aux,
        smoothing=smoothing,
        stop_factor=stop_factor,
        steps_per_value=steps_per_value,
    )


# --------------------------------------------------------------------------------- the program


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Everything a compiled range test depends on but the shapes and dtypes of its arrays."""

    step_fn: StepFn
    batch_fn: Callable[[jax.Array], PyTree] | None
    has_aux: bool
    steps_per_value: int


class _Row(NamedTuple):
    """One row of the result; ``recorded`` tells it from padding."""

    loss: jax.Array
    smoothed: jax.Array
    recorded: jax.Array
    metrics: PyTree


def _program(plan: _Plan) -> Callable[..., RangeTest]:
    """Return the compiled range test; the last few are kept, with the functions they call."""
    try:
        hash(plan)
        # Functions may close over tracers; like JAX's own caches this one then keeps none.
        keep = not _CONFIG.jax_check_tracer_leaks
    except TypeError:
        keep = False
    return _kept_program(plan) if keep else _kept_program.__wrapped__(plan)


@functools.lru_cache(maxsize=8)
def _kept_program(plan: _Plan) -> Callable[..., RangeTest]:
    @jax.jit
    def program(
        state: PyTree, batches: PyTree, values: jax.Array, smoothing: Any, stop_factor: Any
    ) -> RangeTest:
        num_rows = values.shape[0]
        num_steps = num_rows * plan.steps_per_value
        by_row = jax.tree.map(
            lambda leaf: leaf[:num_steps].reshape(num_rows, plan.steps_per_value, *leaf.shape[1:]),
            batches if plan.batch_fn is None else jnp.arange(num_steps, dtype=jnp.int32),
        )
        # Under jit so that finding the shapes and running the steps share one trace.
        train_row = jax.jit(functools.partial(_train_row, plan))
        first = jax.tree.map(lambda leaf: leaf[0], (by_row, values))
        _, output = jax.eval_shape(train_row, state, *first)
        # By full_like, which inside shard_map also notes over which devices the rows vary.
        padding = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), output)

        def scan_row(
            carry: tuple[PyTree, Tracker], inputs: tuple[PyTree, jax.Array]
        ) -> tuple[tuple[PyTree, Tracker], _Row]:
            def train(state: PyTree, tracker: Tracker) -> tuple[tuple[PyTree, Tracker], _Row]:
                state, (loss, metrics) = train_row(state, *inputs)
                tracker, smoothed, recorded = track(tracker, loss, smoothing, stop_factor)
                return (state, tracker), _Row(loss, smoothed, recorded, metrics)

            def skip(state: PyTree, tracker: Tracker) -> tuple[tuple[PyTree, Tracker], _Row]:
                loss, metrics = padding
                return (state, tracker), _Row(loss, loss, tracker.alive, metrics)

            state, tracker = carry
            return lax.cond(tracker.alive, train, skip, state, tracker)  # type: ignore[no-any-return]

        _, rows = lax.scan(scan_row, (state, new_tracker(padding[0])), (by_row, values))
        masked = functools.partial(_mask, rows.recorded)
        return RangeTest(
            learning_rates=masked(values),
            losses=masked(rows.loss),
            smoothed_losses=masked(rows.smoothed),
            num_valid=rows.recorded.sum(dtype=jnp.int32),
            metrics=jax.tree.map(masked, rows.metrics),
        )

    return program


def _train_row(
    plan: _Plan, state: PyTree, batches: PyTree, value: jax.Array
) -> tuple[PyTree, tuple[jax.Array, PyTree]]:
    """Train the steps of one row; return the state and the means of losses and metrics."""

    def train(state: PyTree, batch: PyTree) -> tuple[PyTree, tuple[jax.Array, PyTree]]:
        if plan.batch_fn is not None:
            batch = plan.batch_fn(batch)
        return checked_step(plan.step_fn, plan.has_aux, state, batch, value)

    if plan.steps_per_value == 1:
        return train(state, jax.tree.map(lambda leaf: leaf[0], batches))
    state, outputs = lax.scan(train, state, batches)
    return state, jax.tree.map(lambda leaf: leaf.mean(0), outputs)


def _mask(recorded: jax.Array, column: jax.Array) -> jax.Array:
    recorded = recorded.reshape(recorded.shape + (1,) * (column.ndim - 1))
    return jnp.where(recorded, column, jnp.nan)


# -------------------------------------------------------------------------------------- checks


def _as_arrays(name: str, tree: PyTree) -> PyTree:
    """Return the tree with strongly typed arrays for leaves, as they come back from a step."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise ValueError(f"{name} must have at least one array, got the empty pytree {tree!r}.")
    for path, leaf in leaves:
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float, complex)):
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} must be an array, got {describe(leaf)}. "
                "Leave what is not one out of the state, or close over it."
            )
    return jax.tree.map(_strongly_typed, tree)


def _strongly_typed(leaf: Any) -> jax.Array:
    if isinstance(leaf, jax.Array) and not leaf.weak_type:
        return leaf
    return jnp.asarray(leaf, dtype=jnp.result_type(leaf))


def _check_values(values: ArrayLike) -> jax.Array:
    array = jnp.asarray(values)
    if array.ndim != 1 or not array.shape[0]:
        raise ValueError(
            f"values must be one-dimensional and not empty, got an array of shape {array.shape}."
        )
    if not jnp.issubdtype(array.dtype, jnp.number) or jnp.iscomplexobj(array):
        raise TypeError(f"values must be real numbers, got dtype {array.dtype}.")
    if not is_traced(array) and not np.isfinite(np.asarray(array, np.float64)).all():
        raise ValueError(f"values must be finite, got {values!r}.")
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(jnp.float32)


def _spaced(min_value: Any, max_value: Any, num_values: int, spacing: str) -> jax.Array:
    min_value = real_scalar("min_value", min_value, positive=True)
    max_value = real_scalar("max_value", max_value, positive=True)
    low, high = known_float(min_value), known_float(max_value)
    if low is not None and high is not None and low >= high:
        raise ValueError(f"max_value={max_value} must be larger than min_value={min_value}.")
    if spacing not in ("log", "linear"):
        raise ValueError(f"spacing must be 'log' or 'linear', got {spacing!r}.")
    if low is not None and high is not None:
        space = np.geomspace if spacing == "log" else np.linspace
        return jnp.asarray(space(low, high, num_values), jnp.float32)
    start, stop = jnp.asarray(min_value, jnp.float32), jnp.asarray(max_value, jnp.float32)
    if spacing == "log":
        return jnp.geomspace(start, stop, num_values)
    return jnp.linspace(start, stop, num_values)


def _check_smoothing(smoothing: ArrayLike) -> jax.Array:
    number = known_float(real_scalar("smoothing", smoothing))
    if number is not None and not 0 <= number < 1:
        raise ValueError(
            f"smoothing must be from 0 up to but not including 1, got {smoothing!r}: it is the "
            "weight of the past in the moving average."
        )
    return jnp.asarray(smoothing, jnp.float32)


def _check_stop_factor(stop_factor: ArrayLike) -> jax.Array:
    if not (isinstance(stop_factor, float) and stop_factor == math.inf):
        stop_factor = real_scalar("stop_factor", stop_factor, positive=True)
    return jnp.asarray(stop_factor, jnp.float32)
