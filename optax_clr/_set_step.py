"""Moving the schedules of a state to another step, given what each counter counts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_clr._arguments import INT32_MAX, as_step
from optax_clr._documentation import see
from optax_clr._states import (
    Path,
    check_rebuildable,
    check_state,
    children,
    holds_array,
    in_place_of,
    is_counter,
    is_of_optax,
    is_trainer,
    key_name,
    own_buffers,
    was_restored,
)
from optax_clr._tracing import is_traced
from optax_clr._words import shown

# Counters that only schedules read. A state that is a single counter needs no entry here, unless it
# may be in a field that is not known to hold states.
_OF_SCHEDULES = {
    "AddNoiseState": "count",  # the variance of the noise falls with it
    "AveragingState": "step",
    "ConditionallyMaskState": "step",
    "ConditionallyTransformState": "step",
    "InjectHyperparamsState": "count",
    "InjectStatefulHyperparamsState": "count",
    "MultiStepsState": "gradient_step",
    "ScaleByAdemamixState": "count_m2",
    "ScaleByScheduleState": "count",
    "ScheduleFreeState": "step_count",
    "WeightDecaySchedule": "count",
}
# Counters that both a schedule and the rest of the transformation read.
_SHARED = {
    "DAdaptAdamWState": "count",
    "MadgradState": "count",
    "MomoAdamState": "count",
    "MomoState": "count",
    "ProdigyState": "count",
    "ScaleBySimplifiedAdEMAMixState": "t",
}
_MOVED = _OF_SCHEDULES | _SHARED
_FIRST = {"ScheduleFreeState": 1}  # the initial value of a counter, if not 0
# Counters that no schedule reads: bias corrections, and positions within a period.
_KEPT = {
    "ApplyEvery": {"count"},
    "ApplyIfFiniteState": {"notfinite_count", "total_notfinite"},
    "BacktrackingLinesearchInfo": {"num_linesearch_steps"},
    "EmaState": {"count"},
    "FactoredState": {"count"},
    "GaLoreState": {"count"},
    "LookaheadState": {"steps_since_sync"},
    "MechanicState": {"count"},
    "MultiStepsState": {"mini_step"},
    "MuonState": {"count"},
    "ReduceLROnPlateauState": {"cooldown_count", "count", "plateau_count"},
    "SAMState": {"steps_since_sync"},
    "AveragingState": {"num_averaged"},
    "ScaleByAdamState": {"count"},
    "ScaleByAdanState": {"t"},
    "ScaleByAdemamixState": {"count"},
    "ScaleByAmsgradState": {"count"},
    "ScaleByBeliefState": {"count"},
    "ScaleByLBFGSState": {"count"},
    "ScaleByLionState": {"count"},
    "ScaleByNovogradState": {"count"},
    "ScaleByRStdDevWithCountState": {"count"},
    "ScaleByRmsWithCountState": {"count"},
    "SophiaState": {"count"},
    "ZoomLinesearchInfo": {"num_linesearch_steps"},
}


def set_step(state: Any, step: int | jax.Array) -> Any:
    """Return the state with every schedule moved to ``step``, to resume a run there.

    A state does not record which of its counters a schedule reads, so each counter is moved or kept
    according to what it is known to count:

    - Counters of schedules move: those of injected states and the schedules in them, of
      ``scale_by_schedule``, ``add_decayed_weights``, ``add_noise``, ``conditionally_transform``,
      ``schedule_free`` and ``average_at_cycle_ends``, the actual updates of ``MultiSteps``, and any
      state that is a single counter.
    - Counters that a schedule shares with the rest of a transformation move too: those of
      ``prodigy``, ``dadapt_adamw``, ``momo``, ``momo_adam``, ``madgrad`` and
      ``simplified_ademamix``. The next update is that of a run whose first ``step`` gradients
      were all zero.
    - Adam's own step count and other bias corrections are left unchanged, and so are positions
      within a period (``lookahead``, the mini-batches that ``MultiSteps`` has accumulated) and
      the ``step`` of a ``TrainState``.
    - Any other counter, such as that of your own transformation, raises an error that names it.

    Args:
      state: an optimizer's or trainer's state, as for [`get_hyperparams`][]; not changed.
      step: integer scalar, optimizer steps done so far; the next update uses ``schedule(step)``.

    Returns:
      A new state with the same structure, all of whose arrays are copies. Until the next update,
      [`get_hyperparams`][] still returns the values of the last one.

    Raises:
      TypeError: if ``step`` is not an integer, or if ``state`` holds shapes, as from
        ``jax.eval_shape``, is an optimizer, or is an ``nnx.Optimizer`` in a version of Flax in
        which it is not a pytree.
      ValueError: if ``step`` is not a scalar or is negative; if the state has no schedule, has a
        counter that a schedule may or may not read, or was restored without its types.

    Examples:
      >>> rate = optax_clr.triangular_schedule(0.1, 0.5, rise_steps=2)
      >>> optimizer = optax_clr.inject_schedules(optax.sgd)(learning_rate=rate)
      >>> state = set_step(optimizer.init(jnp.zeros(3)), 2)
      >>> _, state = optimizer.update(jnp.ones(3), state)
      >>> optax_clr.get_hyperparams(state)
      {'learning_rate': Array(0.5, dtype=float32)}
    """
    count = as_step(step)
    if count.shape != () or (not is_traced(step) and int(step) < 0):
        raise ValueError(f"step must be a scalar of at least 0, got {shown(step)}.")
    check_state(state)
    if is_trainer(state):
        check_rebuildable(state)
    move = _Move(count)
    moved = move.state(state)
    if not move.num_moved:
        raise ValueError(
            "state has no schedule whose step could be set: all its values are constants, or it "
            "is not the state of an optimizer."
        )
    return own_buffers(moved)


class _Move:
    """One call of ``set_step``: the step, and how many counters have been moved to it."""

    def __init__(self, step: jax.Array) -> None:
        self.step = step
        self.num_moved = 0

    def state(self, node: Any, path: Path = (), known_only: bool = False) -> Any:
        """Return a state, or a container of states, with the counters of its schedules moved.

        ``known_only`` is for parts that may be params, in which an integer need not be a counter.
        """
        if is_counter(node):
            if known_only:
                return node
            raise ValueError(_not_a_state(path))
        found, build = children(node)
        if not found:
            return node
        if is_trainer(node) or was_restored(node, "opt_state"):
            visit = self.trainer_field
        elif hasattr(node, "keys") or type(node) in (tuple, list):
            visit = self.element
        else:
            visit = self.field
        return build([visit(node, (*path, key), child, known_only) for key, child in found])

    def element(self, node: Any, path: Path, child: Any, known_only: bool) -> Any:
        return self.state(child, path, known_only)

    def trainer_field(self, node: Any, path: Path, child: Any, known_only: bool) -> Any:
        # Also a critic_opt_state beside opt_state, even if the trainer is a field of an agent.
        name = key_name(path[-1])
        return self.state(child, path, known_only="opt" not in name or "state" not in name)

    def field(self, node: Any, path: Path, child: Any, known_only: bool) -> Any:
        name = key_name(path[-1])
        if is_counter(child):
            return self.counter(node, path, child, known_only)
        if name == "hyperparams_states":
            found, build = children(child)
            return build([self.schedule(state, (*path, key)) for key, state in found])
        # Optax's own states hold other states only in fields with "state" in their names.
        return self.state(child, path, known_only or "state" not in name or name == "skip_state")

    def counter(self, node: Any, path: Path, counter: Any, known_only: bool) -> Any:
        """Return the counter that is a field of ``node``, moved if it is a schedule's."""
        kind, name = type(node), key_name(path[-1])
        is_known = is_of_optax(kind)
        if is_known and _MOVED.get(kind.__name__) == name:
            return self.moved(counter, _FIRST.get(kind.__name__, 0))
        if known_only or (is_known and name in _KEPT.get(kind.__name__, ())):
            return counter
        if len(jax.tree.leaves(node)) == 1:  # there is nothing else for it to count
            return self.moved(counter)
        raise ValueError(_unknown(node, path))

    def schedule(self, state: Any, path: Path) -> Any:
        """Return the state of a schedule, which must be empty or a counter, moved."""
        leaves, treedef = jax.tree.flatten(state, is_leaf=holds_array)
        if not leaves:
            return state
        if len(leaves) > 1 or not is_counter(leaves[0]):
            raise ValueError(
                f"set_step cannot move the schedule {key_name(path[-1])!r}, an "
                "optax.schedules.StatefulSchedule whose state is more than a counter. Set its "
                f"state by hand, in state{_text(path[:-1])}, and call set_step on the other parts "
                f"of the state. {see('optimizers/#resume')}"
            )
        return jax.tree.unflatten(treedef, [self.moved(leaves[0])])

    def moved(self, counter: Any, first: int = 0) -> Any:
        """Return the step in the dtype, shape and, if it has one, nnx.Variable of a counter."""
        self.num_moved += 1
        old = jnp.asarray(counter)
        # Like Optax's own counters, it saturates instead of overflowing.
        most = min(INT32_MAX, np.iinfo(old.dtype).max)
        step = (jnp.minimum(self.step, most - first) + first).astype(old.dtype)
        return in_place_of(counter, jnp.broadcast_to(step, old.shape))


def _text(path: Path) -> str:
    return "".join(map(str, path))


def _unknown(node: Any, path: Path) -> str:
    owner, name = f"state{_text(path[:-1])}", key_name(path[-1])
    kind = f"{type(node).__module__}.{type(node).__qualname__}"
    by_hand = f"dataclasses.replace({owner}, {name}=step)"
    if hasattr(node, "_replace"):
        by_hand = f"{owner}._replace({name}=step)"
    return (
        f"set_step does not know the counter {owner}.{name}, of {kind}: the state does not say "
        f"whether a schedule reads it. Set it by hand, {by_hand}, or leave it, "
        "and call set_step on the other parts of the state. " + see("optimizers/#resume")
    )


def _not_a_state(path: Path) -> str:
    return (
        f"set_step does not know the integer state{_text(path)}, which is not in a state of Optax. "
        "If it is not the optimizer's, pass the state of the optimizer alone. If the state was "
        "restored from a checkpoint as dicts and lists, restore it with its types: "
        "checkpointer.restore(path, optimizer.init(params)). " + see("optimizers/#resume")
    )
