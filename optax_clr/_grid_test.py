"""The range test at constant rates: short training runs side by side, one for each rate."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from optax_clr._arguments import whole_number
from optax_clr._batches import check_num_steps, hold_batches
from optax_clr._checks import check_params, held_out_batch, optimizer_step, spaced
from optax_clr._curve import EndedBy
from optax_clr._documentation import see
from optax_clr._modes import undisturbed
from optax_clr._result import RangeTestResult
from optax_clr._run import Outcome, look_ahead, run
from optax_clr._step import PyTree
from optax_clr._step_checks import check_run
from optax_clr._step_facts import remarks_on
from optax_clr._stop_rule import StopRule

_DEFAULT_NUM_STEPS = 50
# A run is judged by the mean of the last quarter of its losses: the last one alone is noisier.
_JUDGED_PART = 4
_STOP_AT_NAN = StopRule(smoothing=np.float32(0.0), stop_factor=np.float32(math.inf))


@undisturbed()
def lr_grid_test(
    loss_fn: Callable[[PyTree, PyTree], Any],
    params: PyTree,
    optimizer: Callable[[Any], optax.GradientTransformation],
    batches: PyTree | Callable[[jax.Array], PyTree] | Iterable[PyTree],
    *,
    min_lr: ArrayLike = 1e-7,
    max_lr: ArrayLike = 10.0,
    num_values: int = 17,
    num_steps: int | None = None,
    held_out: PyTree = None,
    spacing: str = "log",
    has_aux: bool = False,
) -> RangeTestResult:
    r"""Train at several constant rates side by side, each for a few steps, in one program.

    Each of the ``num_values`` runs starts from the same ``params``, and trains at its rate on the
    same batches for ``num_steps`` steps. Its loss is the mean over the last quarter of the steps,

    $$
    L(\eta) = \frac{1}{q} \sum_{t = T - q}^{T - 1} L_t(\eta),
    \quad q = \lceil T / 4 \rceil
    $$

    and the curve of these losses, or of the losses of a held-out batch after training, is read like
    that of [`lr_range_test`][]. The test costs ``num_values * num_steps`` training steps, and the
    memory of ``num_values`` models.

    Args:
      loss_fn: ``(params, batch) -> loss``, a scalar; with ``has_aux``, ``(loss, metrics)``.
      params: pytree of arrays to start from; never changed.
      optimizer: function from a learning rate to a ``GradientTransformation``, such as
        ``optax.adamw``.
      batches: pytree of arrays with a leading axis of at least ``num_steps``; or a function from
        the step, ``i32[]``, to a batch, which is traced into the program; or a Python iterable of
        batches, of which ``num_steps`` are read and stacked (inside ``jax.jit``, while tracing).
      min_lr: lowest rate, positive; may be traced.
      max_lr: highest rate, larger than ``min_lr``; may be traced.
      num_values: number of rates, at least 2; a reading needs 6 that do not diverge, and often
        8 or more to distinguish a fall from chance.
      num_steps: training steps for each rate; ``None`` means as many as there are batches, or 50 if
        ``batches`` is a function or an iterable.
      held_out: a batch of any size that is not trained on; its loss after training is recorded
        too, and the readings then use it. ``None`` means no such batch.
      spacing: ``"log"`` or ``"linear"`` spacing of the rates.
      has_aux: whether ``loss_fn`` also returns metrics.

    Returns:
      A [`RangeTestResult`][] with a row for each rate; ``smoothed_losses`` equals ``losses``, and
      ``metrics`` has the loss of every training step, ``f32[num_values, num_steps]``, or with
      ``has_aux`` a pair of these losses and the metrics. From the first rate whose loss was not
      finite, rows of all but ``metrics`` are NaN, and not counted in ``num_valid``.

    Raises:
      TypeError: if ``loss_fn`` or ``optimizer`` is not a function or returns something else, the
        optimizer is already built, or the params are not real floats.
      ValueError: if an argument is out of range or empty, the batches are too few or differ in
        length or shape, the loss is not a scalar, or the optimizer ignores its rate or
        accumulates more gradients for an update than there are steps.
      RangeTestWarning: a warning, if every step trains on the same batch; if the last steps do,
        because a function indexes beyond the end of the data; if the optimizer has a schedule or a
        scale of its own beside the rate; or if each step trains on a single example and
        ``num_steps`` is not given.

    Examples:
      >>> def loss_fn(params, batch):
      ...     inputs, targets = batch
      ...     return jnp.mean((inputs @ params - targets) ** 2)
      >>> inputs = jax.random.normal(jax.random.key(0), (50, 32, 5))
      >>> targets = inputs.sum(-1) + jax.random.normal(jax.random.key(1), (50, 32))
      >>> result = lr_grid_test(loss_fn, jnp.zeros(5), optax.adam, (inputs, targets))
      >>> result.losses.shape, result.metrics.shape
      ((17,), (17, 50))
      >>> base_value, peak_value = result.bounds()
      >>> bool(0 < base_value < peak_value)
      True
    """
    step = optimizer_step(loss_fn, optimizer, has_aux)
    check_params(params)
    num_values = whole_number("num_values", num_values, minimum=2)
    counts_batches = num_steps is None
    num_steps = check_num_steps(num_steps, batches, 1, default=_DEFAULT_NUM_STEPS)
    rates = jnp.asarray(spaced(min_lr, max_lr, num_values, spacing))
    # Copied, since it is read only after training: the caller may have written to it by then.
    held_out = jax.tree.map(
        lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, held_out_batch(held_out)
    )
    source = hold_batches(batches, num_steps)

    facts, by_rows = look_ahead(step, source, params, jnp.full(num_steps, rates[0]), held_out)
    for remark in remarks_on(facts, counts_batches):
        warnings.warn(remark, stacklevel=3)

    def train_at(rate: jax.Array) -> tuple[Outcome, _Row]:
        outcome = run(
            step,
            source.again(),
            params,
            jnp.full(num_steps, rate),
            _STOP_AT_NAN,
            check=lambda facts: check_run(step, facts, num_steps),
            keeps_state=True,
        )
        return outcome, _row_of(outcome, held_out, has_aux)

    if not by_rows:
        return _as_range_test(rates, jax.vmap(lambda rate: train_at(rate)[1])(rates))

    rows = _one_by_one(train_at, rates)
    if len(rows) == num_values:
        return _as_range_test(rates, _stacked(rows))
    warnings.warn(
        f"the grid test was interrupted after {len(rows)} of {num_values} rates, which are its "
        f"result. {see('range-test/#ending-early')}",
        RuntimeWarning,
        stacklevel=3,
    )
    return _interrupted(rates, rows)


class _Row(NamedTuple):
    """What a training run at one rate records, or columns of such records."""

    loss: jax.Array
    held_out_loss: Any
    metrics: PyTree
    num_updates: jax.Array
    batch_size: Any
    optimizer_factor: jax.Array


def _row_of(outcome: Outcome, held_out: PyTree, has_aux: bool) -> _Row:
    test = outcome.result
    num_steps = len(test.losses)
    is_whole = test.num_valid == num_steps
    part = test.losses[-math.ceil(num_steps / _JUDGED_PART) :]
    held_out_loss: Any = ()
    if held_out is not None:
        held_out_loss = outcome.evaluate(outcome.state, held_out)
        held_out_loss = jnp.where(is_whole, held_out_loss, jnp.nan)
    return _Row(
        loss=jnp.where(is_whole, jnp.nanmean(part), jnp.nan),  # one bad batch is a gap
        held_out_loss=held_out_loss,
        metrics=(test.losses, test.metrics) if has_aux else test.losses,
        num_updates=jnp.float32(num_steps // outcome.facts.steps_per_update),
        batch_size=test.batch_size,
        optimizer_factor=test.optimizer_factor,
    )


def _one_by_one(
    train_at: Callable[[jax.Array], tuple[Outcome, _Row]], rates: jax.Array
) -> list[_Row]:
    """Return the rows of all rates, or, after Ctrl-C, of those that are finished."""
    rows: list[_Row] = []
    try:
        for rate in rates:
            outcome, row = train_at(rate)
            if outcome.stopped_by is not None:
                raise outcome.stopped_by  # only Ctrl-C, since the batches are in memory
            rows.append(row)
    except KeyboardInterrupt:
        if not rows:
            raise
    return rows


def _interrupted(rates: jax.Array, rows: list[_Row]) -> RangeTestResult:
    """Return the result if only the first rates have their rows."""
    missing = jax.tree.map(lambda entry: jnp.full_like(entry, jnp.nan), rows[0])
    result = _as_range_test(rates, _stacked(rows + [missing] * (len(rates) - len(rows))))
    # If one of the finished rates diverged, the curve ends there instead.
    is_cut = result.num_valid == len(rows)
    ended_by = jnp.where(is_cut, np.int32(EndedBy.INTERRUPT), result.ended_by)
    return result._replace(ended_by=ended_by)


def _stacked(rows: list[_Row]) -> _Row:
    return jax.tree.map(lambda *entries: jnp.stack(entries), *rows)  # type: ignore[no-any-return]


def _as_range_test(rates: jax.Array, columns: _Row) -> RangeTestResult:
    """Return the rows before the first rate that diverged; those from it on are not data."""
    is_row = jnp.cumprod(jnp.isfinite(columns.loss)).astype(bool)
    rates, losses, held_out_losses, steps = jax.tree.map(
        lambda column: jnp.where(is_row, column, jnp.nan),
        (rates, columns.loss, columns.held_out_loss, columns.num_updates),
    )
    return RangeTestResult(
        learning_rates=rates,
        losses=losses,
        smoothed_losses=losses,
        num_valid=is_row.sum(dtype=jnp.int32),
        metrics=columns.metrics,
        held_out_losses=held_out_losses,
        equivalent_steps=steps,
        ended_by=jnp.where(is_row.all(), EndedBy.LAST_VALUE, EndedBy.DIVERGENCE).astype(jnp.int32),
        # The same for all rates.
        batch_size=jax.tree.map(lambda sizes: sizes[0], columns.batch_size),
        optimizer_factor=columns.optimizer_factor[0],
    )
