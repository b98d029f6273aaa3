"""Checks of a training step, once it is traced: that its losses tell something about the values."""

from __future__ import annotations

from optax_clr._documentation import see
from optax_clr._step import Step
from optax_clr._step_facts import StepFacts


def check_sweep(step: Step, facts: StepFacts, steps_per_value: int) -> None:
    """Raise unless every loss of a sweep belongs to one value, with which the step trains."""
    if steps_per_value % facts.steps_per_update:
        raise ValueError(
            f"steps_per_value={steps_per_value} must be a multiple of the "
            f"{facts.steps_per_update} steps that the optimizer takes for one update, so that each "
            "loss belongs to its own value. Pass steps_per_value="
            f"{facts.steps_per_update}. {see('training-steps/')}"
        )
    _check_value_matters(step, facts, facts.reads_value and not facts.keeps_first_value)
    _check_one_loss(facts)


def check_run(step: Step, facts: StepFacts, num_steps: int) -> None:
    """Raise unless a run at a constant value trains with it."""
    if num_steps < facts.steps_per_update:
        raise ValueError(
            f"num_steps={num_steps} must be at least the {facts.steps_per_update} steps that the "
            "optimizer takes for one update, or no rate is ever used."
        )
    # The first value is the value of all steps, so the state may keep it.
    _check_value_matters(step, facts, facts.reads_value or facts.keeps_first_value)
    _check_one_loss(facts)


def _check_value_matters(step: Step, facts: StepFacts, trains_with_value: bool) -> None:
    if not trains_with_value:
        raise ValueError(step.unread_value if facts.reads_state else step.unread_state)


def _check_one_loss(facts: StepFacts) -> None:
    if axes := tuple(sorted(facts.waits_along)):
        raise ValueError(
            f"the loss differs along {list(axes)}, axes of jax.shard_map along which the step "
            "needs all devices: one would end the test while others wait for its gradients. Return "
            f"the mean, jax.lax.pmean(loss, {axes}). {see('sweeps/')}"
        )
