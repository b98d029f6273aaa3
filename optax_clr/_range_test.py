"""The range test: train while the rate changes, as one compiled program, and record the loss."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
import optax
from jax.typing import ArrayLike

from optax_clr._arguments import function, whole_number
from optax_clr._batches import Batches, check_num_steps, open_batches
from optax_clr._checks import (
    check_arrays,
    check_params,
    checked_values,
    held_out_batch,
    optimizer_step,
    spaced,
    stop_rule,
)
from optax_clr._documentation import see
from optax_clr._modes import undisturbed
from optax_clr._result import RangeTestResult
from optax_clr._run import Outcome, run
from optax_clr._step import FunctionStep, PyTree, Step, StepFn
from optax_clr._step_checks import check_sweep
from optax_clr._step_facts import remarks_on
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
    r"""Run any training step while a value changes, in one compiled program, and record the loss.

    The value need not be a learning rate, and the values may come in any order. The loss
    $L_i$ of row $i$ is smoothed with weight $\beta$ = ``smoothing`` and bias correction,

    $$s_i = \frac{1 - \beta}{1 - \beta^{i + 1}} \sum_{j \le i} \beta^{i - j} L_j$$

    and the test has diverged if three losses in a row are not finite, or if, after twenty rows,

    $$s_i - \min_j s_j > \text{stop\_factor} \cdot \max(\text{fall}, 4 \, \text{noise})$$

    and each of the last three losses exceeds $\min_j s_j$ by as much. The fall is that of $s$ from
    its highest value so far to its minimum; the noise is estimated from downward moves, which a
    divergence does not have. One bad batch does not end a test: a loss that is not finite is a gap.
    Adding a constant to the loss, or multiplying it by a positive factor, changes nothing.

    Rows are trained in chunks of at most 64 (128 on an accelerator), and the rule is applied after
    each chunk: the rest of the chunk in which the loss diverges is trained, but left out of the
    result. Under ``jax.vmap`` all runs advance together: the test ends with the last of them, and
    runs that have diverged keep training until then.

    The compiled program is cached for as long as ``step_fn`` is alive, and reused while what the
    function refers to is unchanged; otherwise the step is traced again.

    Args:
      step_fn: ``(state, batch, value) -> (state, loss)``, a pure, traceable training step; with
        ``has_aux`` it returns ``(state, (loss, metrics))``. The loss is that of the batch, no
        running average. It may train anything: batch statistics, dropout keys and gradient
        accumulators are part of the state. It is traced once, and must use the value. A second test
        with the same function and shapes compiles nothing.
      state: pytree of arrays to start from; never changed.
      batches: one of

        - a pytree of arrays with a leading axis of at least ``n * steps_per_value`` (entries
          beyond that are not used);
        - a function from the step, ``i32[]``, to a batch, which is traced into the program;
        - a Python iterable of batches, such as a data loader or a list of tuples: read while the
          device computes, stacked in chunks of at most 8 MiB and 256 rows (a larger row is a
          chunk by itself), and restarted when it runs out, unless it is an iterator. A last batch
          of another shape, as at the end of an epoch, is left out.
      values: ``[n]`` values to try, in this order; may be traced.
      has_aux: whether the step also returns metrics; see ``RangeTestResult.metrics``.
      smoothing: weight of the past in the moving average, from 0 up to but not including 1.
      stop_factor: rise of the smoothed loss, in units of its fall, that counts as divergence;
        with ``math.inf`` only losses that are not finite end a test.
      steps_per_value: training steps per value; a row records the mean of their losses and
        metrics.
      progress: whether to show a progress bar with the value and the smoothed loss (needs tqdm).
        The test then runs in pieces of about half a second, driven by Python.

    Returns:
      A [`RangeTestResult`][] with ``n`` rows. If a test with a stream or a bar ends early, because
      an iterator runs out, reading raises an exception, or Ctrl-C is pressed, the result has the
      rows so far, padded as after divergence, and a ``RuntimeWarning`` says how many and why; if
      there are none, the exception is raised.

    Raises:
      TypeError: if the step is not a function or returns something else, the batches are none of
        the above, or a stream or a bar is requested inside ``jax.jit`` or ``jax.vmap``.
      ValueError: if an argument is out of range or empty, the batches are too few or differ in
        length or shape, the loss is not a scalar, the step changes the shape of its state, its
        loss does not depend on the value, or ``steps_per_value`` is not a multiple of the steps
        that ``optax.MultiSteps`` accumulates.
      ImportError: if ``progress`` is set and tqdm is not installed.
      RangeTestWarning: a warning, if every step trained on the same batch; if the last steps did,
        because a function indexes beyond the end of the data; or if an optimizer in the state has
        a schedule of its own.

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
    values = checked_values(values)
    steps_per_value = whole_number("steps_per_value", steps_per_value)
    check_arrays("state", state)
    rule = stop_rule(smoothing, stop_factor)
    source = open_batches(batches, values.shape[0], steps_per_value)
    step = FunctionStep(step_fn, bool(has_aux))
    return _swept(
        step,
        source,
        state,
        values,
        rule,
        steps_per_value=steps_per_value,
        progress=progress,
        counts_batches=False,
    )


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
    r"""Sweep the learning rate once over a short training run, in one compiled program.

    The test has ``n = num_steps / steps_per_value`` rows. Row $i$ trains with the rate

    $$\text{min\_lr} \cdot (\text{max\_lr} / \text{min\_lr})^{i / (n - 1)}$$

    or with the linear interpolation. For anything more than a loss, parameters and an Optax
    optimizer, such as batch statistics or dropout, see [`range_test`][].

    Args:
      loss_fn: ``(params, batch) -> loss``, a scalar; with ``has_aux``, ``(loss, metrics)``.
      params: pytree of arrays to start from; never changed.
      optimizer: function from a learning rate to a ``GradientTransformation``, such as
        ``optax.adamw`` or ``lambda rate: optax.chain(optax.clip(1.0), optax.sgd(rate))``.
      batches: pytree of arrays with a leading axis of at least ``num_steps``; or a function from
        the step, ``i32[]``, to a batch, which is traced into the program; or a Python iterable of
        batches, such as a data loader, which is streamed. See [`range_test`][].
      min_lr: positive rate of the first row; may be traced.
      max_lr: rate of the last row, larger than ``min_lr``; may be traced.
      num_steps: training steps; ``None`` means as many as there are batches (the largest multiple
        of ``steps_per_value``), or 300 if ``batches`` is a function or an iterable.
      spacing: ``"log"`` or ``"linear"`` spacing of the rates.
      has_aux: whether ``loss_fn`` also returns metrics; see ``RangeTestResult.metrics``.
      smoothing: weight of the past in the moving average, as in [`range_test`][].
      stop_factor: rise of the smoothed loss that ends the test, as in [`range_test`][].
      steps_per_value: training steps at each rate; a row records their mean loss.
      held_out: a batch of any size that is not trained on; its loss after each row is recorded
        too, and the readings then use it. It is less noisy than the training loss, but a test is
        too short for it to show overfitting. ``None`` means no such batch.
      progress: whether to show a progress bar, as in [`range_test`][].

    Returns:
      A [`RangeTestResult`][] with ``n`` rows; its ``bounds()``, ``suggest()`` and
      ``one_cycle_peak()`` return rates to train with. If the test ends early, the result has the
      rows so far, as in [`range_test`][].

    Raises:
      TypeError: if ``loss_fn`` or ``optimizer`` is not a function or returns something else, the
        optimizer is already built, the params are not real floats, or a stream or a bar is
        requested inside ``jax.jit`` or ``jax.vmap``.
      ValueError: if an argument is out of range or empty, the batches are too few or differ in
        length or shape, the loss is not a scalar, the optimizer ignores its rate or keeps the
        first one in its state, or ``steps_per_value`` is not a multiple of the steps that
        ``optax.MultiSteps`` accumulates.
      ImportError: if ``progress`` is set and tqdm is not installed.
      RangeTestWarning: a warning, if every step trained on the same batch; if the last steps did,
        because a function indexes beyond the end of the data; if the optimizer has a schedule of
        its own; or if a step trained on a single example and ``num_steps`` was not given.

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
    check_params(params)
    counts_batches = num_steps is None
    num_steps = check_num_steps(num_steps, batches, steps_per_value)
    values = spaced(min_lr, max_lr, num_steps // steps_per_value, spacing)
    rule = stop_rule(smoothing, stop_factor)
    held_out = held_out_batch(held_out)  # checked before the caller's iterator is read
    source = open_batches(batches, values.shape[0], steps_per_value)
    return _swept(
        step,
        source,
        params,
        values,
        rule,
        steps_per_value=steps_per_value,
        held_out=held_out,
        progress=progress,
        counts_batches=counts_batches,
    )


def _swept(
    step: Step,
    source: Batches,
    initial: PyTree,
    values: jax.Array | np.ndarray,
    rule: StopRule,
    *,
    steps_per_value: int,
    progress: bool,
    counts_batches: bool,
    held_out: PyTree = None,
) -> RangeTestResult:
    """Run a test of which each loss belongs to one value; warn of what makes it doubtful."""
    outcome = run(
        step,
        source,
        initial,
        values,
        rule,
        check=lambda facts: check_sweep(step, facts, steps_per_value),
        steps_per_value=steps_per_value,
        held_out=held_out,
        progress=progress,
    )
    for remark in _remarks(outcome, counts_batches):
        warnings.warn(remark, stacklevel=4)  # the caller of the public function
    return outcome.result


def _remarks(outcome: Outcome, counts_batches: bool) -> Iterator[Warning]:
    # Ctrl-C during the last row leaves none missing, but was caught: only this reports it.
    if outcome.ended_early or isinstance(outcome.stopped_by, KeyboardInterrupt):
        yield RuntimeWarning(_early_end(outcome))
    yield from remarks_on(outcome.facts, counts_batches)


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
