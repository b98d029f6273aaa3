"""The compiled programs of a range test: one for the whole of it, and one for a chunk of rows."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from optax_clr._arguments import is_traced
from optax_clr._batches import Chunk
from optax_clr._divergence import StopRule, Tracker, new_tracker, track
from optax_clr._documentation import see
from optax_clr._lanes import advance, any_lane
from optax_clr._result import RangeTest
from optax_clr._training_step import OptimizerStep, PyTree, StepFn, as_float32, checked_step

_CONFIG: Any = jax.config


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything a compiled range test depends on but the shapes and dtypes of its arrays.

    ``batch_fn`` is None where the batches are arrays.
    """

    step_fn: StepFn
    batch_fn: Callable[[jax.Array], PyTree] | None
    has_aux: bool
    steps_per_value: int


class StepFacts(NamedTuple):
    """Whether a training step has a convolution, and whether it closes over tracers."""

    convolves: bool
    closes_over_tracers: bool


class Rows(NamedTuple):
    """The columns of the result that are recorded; NaN where no row was trained."""

    losses: jax.Array
    smoothed_losses: jax.Array
    metrics: PyTree
    held_out_losses: Any  # () where there is no held-out batch


class Programs:
    """The compiled programs of one plan. They share one trace of the training step."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rows_per_chunk = 1  # kept from one test to the next, once the pace is known
        self.facts: StepFacts | None = None
        self.step = jax.jit(functools.partial(_step, plan))
        self.whole = jax.jit(self._whole)
        self.start = jax.jit(self._start)
        self.train_chunk = jax.jit(self._train_rows, donate_argnums=0)
        self.train_single = jax.jit(self._train_single, donate_argnums=0)
        self.evaluate = jax.jit(self._evaluate)

    def _whole(
        self,
        initial: PyTree,
        batches: PyTree,
        values: jax.Array,
        rule: StopRule,
        held_out: PyTree,
    ) -> tuple[RangeTest, PyTree]:
        """Return the result of the whole test, and the state after it."""
        state, tracker = self._begin(initial, batches, values)
        chunk = Chunk(batches, jnp.int32(0), jnp.int32(values.shape[0]))
        state, tracker, rows = self._train_rows(state, tracker, chunk, values, rule, held_out)
        return finish(values, rows, tracker, self.plan.steps_per_value), state

    def _start(
        self, initial: PyTree, batches: PyTree, values: jax.Array
    ) -> tuple[PyTree, jax.Array]:
        """Return state and tracker before the first row, in buffers that may be donated."""
        return jax.tree.map(jnp.copy, self._begin(initial, batches, values))  # type: ignore[no-any-return]

    def _begin(
        self, initial: PyTree, batches: PyTree, values: jax.Array
    ) -> tuple[PyTree, jax.Array]:
        state = self._initial_state(initial, values[0])
        loss, _ = self._row_shape(state, batches, values)
        return state, new_tracker(_empty(loss))

    def _initial_state(self, initial: PyTree, value: jax.Array) -> PyTree:
        """Return the state from what the caller gave: an optimizer's is made here."""
        step_fn = self.plan.step_fn
        state = step_fn.start(initial, value) if isinstance(step_fn, OptimizerStep) else initial
        # With the types that a training step gives it back with.
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), state)

    def _train_rows(
        self,
        state: PyTree,
        tracker: jax.Array,
        chunk: Chunk,
        values: jax.Array,
        rule: StopRule,
        held_out: PyTree,
    ) -> tuple[PyTree, jax.Array, Rows]:
        """Train the rows of a chunk until all lanes have diverged; return what is after them.

        There is room for as many rows as there are values; the chunk may have fewer.
        """
        loss, metrics = self._row_shape(state, chunk.batches, values)
        room = lambda entry: jnp.broadcast_to(_empty(entry), (values.shape[0], *entry.shape))
        rows = jax.tree.map(room, Rows(loss, loss, metrics, () if held_out is None else loss))

        def goes_on(carry: tuple[jax.Array, PyTree, jax.Array, Rows]) -> jax.Array:
            row, _, tracker, _ = carry
            alive: jax.Array = any_lane(Tracker.unpack(tracker).alive)
            return jnp.logical_and(alive, row < chunk.num_rows)

        def train_next(
            carry: tuple[jax.Array, PyTree, jax.Array, Rows],
        ) -> tuple[jax.Array, PyTree, jax.Array, Rows]:
            row, state, tracker, rows = carry
            inputs = self._row_batches(chunk.batches, chunk.first + row)
            state, tracker, entries = self._train_row(
                state, tracker, inputs, values[row], rule, held_out
            )
            put = lambda column, entry: lax.dynamic_update_index_in_dim(column, entry, row, 0)
            return row + 1, state, tracker, jax.tree.map(put, rows, entries)

        carry = (jnp.int32(0), state, tracker, rows)
        _, state, tracker, rows = lax.while_loop(goes_on, train_next, carry)
        return state, tracker, rows

    def _train_single(
        self,
        state: PyTree,
        tracker: jax.Array,
        chunk: Chunk,
        values: jax.Array,
        rule: StopRule,
        held_out: PyTree,
    ) -> tuple[PyTree, jax.Array, Rows]:
        """Do the same for a chunk of one row, with no loop or branch in the program."""
        inputs = self._row_batches(chunk.batches, chunk.first)
        state, tracker, entries = self._train_row(
            state, tracker, inputs, values[0], rule, held_out, unroll=True
        )
        return state, tracker, jax.tree.map(lambda entry: entry[None], entries)

    def _train_row(
        self,
        state: PyTree,
        tracker: jax.Array,
        batches: PyTree,
        value: jax.Array,
        rule: StopRule,
        held_out: PyTree,
        *,
        unroll: bool = False,
    ) -> tuple[PyTree, jax.Array, Rows]:
        """Train the steps of one row, which has the means of their losses and metrics."""

        def train(state: PyTree, batch: PyTree) -> Any:
            return self.step(state, batch, value)

        if self.plan.steps_per_value == 1:
            after, (loss, metrics) = train(state, jax.tree.map(lambda leaf: leaf[0], batches))
        else:
            after, outputs = lax.scan(train, state, batches, unroll=unroll)
            loss, metrics = jax.tree.map(lambda leaf: leaf.mean(0), outputs)
        # Before the lanes that have diverged are frozen, or it would be that of another row.
        held_out_loss = () if held_out is None else self._evaluate(after[0], held_out)
        tracker_after, smoothed = track(tracker, loss, rule)
        alive = Tracker.unpack(tracker).alive
        state, tracker = advance(alive, (state, tracker), (after, tracker_after))
        return state, tracker, Rows(loss, smoothed, metrics, held_out_loss)

    def _evaluate(self, params: PyTree, batch: PyTree) -> jax.Array:
        """Return the loss of a batch that is not trained on, for an optimizer's step."""
        assert isinstance(self.plan.step_fn, OptimizerStep)
        return as_float32(self.plan.step_fn.evaluate(params, batch)[0])

    def _row_batches(self, batches: PyTree, row: jax.Array) -> PyTree:
        """Return what the steps of a row train on, ``[steps_per_value, ...]``."""
        length = self.plan.steps_per_value
        start = row * length
        if self.plan.batch_fn is not None:
            return start + jnp.arange(length, dtype=jnp.int32)
        return jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, start, length), batches)

    def _row_shape(self, state: PyTree, batches: PyTree, values: jax.Array) -> Any:
        """Return shapes and dtypes of the loss and the metrics of a row."""
        inputs = self._row_batches(batches, jnp.int32(0))
        batch = jax.tree.map(lambda leaf: leaf[0], inputs)
        return jax.eval_shape(self.step, state, batch, values[0])[1]

    def inspect(self, initial: PyTree, batch: PyTree, values: ArrayLike) -> StepFacts:
        """Trace the step, and return what it shows of itself; refuse one that ignores its rate."""
        value = jax.eval_shape(lambda values: values[0], values)
        state = jax.eval_shape(self._initial_state, initial, value)
        step = jax.make_jaxpr(self.step)(state, batch, value)
        step_fn = self.plan.step_fn
        if isinstance(step_fn, OptimizerStep) and not _reads_input(step.jaxpr, -1):
            raise ValueError(
                "optimizer must train with the learning rate that it is given; "
                f"{step_fn.optimizer!r} does not read it, or keeps the first one in its state, as "
                "optax.inject_hyperparams does. Pass optax.adamw itself, or lambda rate: "
                f"optax.adamw(rate, weight_decay=0.1). {see('first-test/')}"
            )
        self.facts = StepFacts(_has_convolution(step.jaxpr), any(map(is_traced, step.consts)))
        return self.facts


def programs(plan: Plan) -> Programs:
    """Return the programs of a plan; the last few are kept, with the functions they call."""
    try:
        hash(plan)
    except TypeError:
        return Programs(plan)
    # Functions may close over tracers; like JAX's own caches this one then keeps none.
    return Programs(plan) if _CONFIG.jax_check_tracer_leaks else _kept_programs(plan)


_kept_programs = functools.lru_cache(maxsize=8)(Programs)


def finish(values: jax.Array, rows: Rows, tracker: jax.Array, steps_per_value: int) -> RangeTest:
    """Return the result, with NaN for all rows that are not data."""
    num_valid = Tracker.unpack(tracker).num_rows.astype(jnp.int32)
    recorded = jnp.arange(values.shape[0], dtype=jnp.int32) < num_valid

    def mask(column: jax.Array) -> jax.Array:
        shaped = recorded.reshape(recorded.shape + (1,) * (column.ndim - 1))
        return jnp.where(shaped, column, jnp.nan)

    losses, smoothed_losses, metrics, held_out_losses = jax.tree.map(mask, rows)
    equivalent_steps = mask(steps_per_value * jnp.cumsum(values) / values)
    return RangeTest(
        mask(values),
        losses,
        smoothed_losses,
        num_valid,
        metrics,
        held_out_losses,
        equivalent_steps,
    )


def _step(
    plan: Plan, state: PyTree, batch: PyTree, value: jax.Array
) -> tuple[PyTree, tuple[jax.Array, PyTree]]:
    if plan.batch_fn is not None:
        batch = plan.batch_fn(batch)
    return checked_step(plan.step_fn, plan.has_aux, state, batch, value)


def _has_convolution(jaxpr: Any) -> bool:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            return True
        # Those of jit, scan, cond and their like; some are closed, some in a tuple of branches.
        for parameter in equation.params.values():
            for part in parameter if isinstance(parameter, (tuple, list)) else (parameter,):
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns") and _has_convolution(inner):
                    return True
    return False


def _reads_input(jaxpr: Any, index: int) -> bool:
    """Whether a program does anything with its input of that index."""
    variable = jaxpr.invars[index]
    for equation in jaxpr.eqns:
        for place, argument in enumerate(equation.invars):
            if argument is variable:
                # Of a program inside, jax.jit passes all of its arguments, read or not.
                is_jit = equation.primitive.name in ("jit", "pjit")
                if not is_jit or _reads_input(equation.params["jaxpr"].jaxpr, place):
                    return True
    return any(output is variable for output in jaxpr.outvars)


def _empty(entry: Any) -> jax.Array:
    # By full_like, which inside shard_map also notes over which devices the rows vary.
    return jnp.full_like(entry, jnp.nan)
