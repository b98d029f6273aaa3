"""Whether an optimizer trains at the rates it is given, or has a schedule of its own."""

from __future__ import annotations

import optax

from optax_clr._documentation import see
from optax_clr._swept_optimizer import SweptOptimizer

OTHER_RATE = (
    "the optimizer has a schedule of its own, or a scale such as that of a plateau rule or a line "
    "search, so the rates in the result are not those that it trained with. Test without it, "
    "lambda rate: optax.adam(rate), and give the schedule the peak that is read, "
    f"result.peak_for(schedule, num_steps). {see('range-test/#the-optimizer')}"
)
_SEARCHING = (
    optax.ScaleByBacktrackingLinesearchState,
    optax.ScaleByZoomLinesearchState,
)
_SCALING = (*_SEARCHING, optax.ScaleByScheduleState, optax.contrib.ReduceLROnPlateauState)


def trains_at_other_rates(optimizer: SweptOptimizer) -> bool:
    """Whether a schedule, or a scale that the optimizer finds, changes the rate it is given.

    Other injected hyperparameters, such as a momentum, may have schedules too, but meet the value
    only in the update, together with data. A schedule of the rate shows in something that is
    computed from the value and a count alone.
    """
    return optimizer.has_rate and (
        any(map(optimizer.trains, optimizer.states(_SCALING)))
        # A line search that starts afresh in each step keeps no scale, but is given the value.
        or any(map(optimizer.is_given_value, optimizer.states(_SEARCHING)))
        or optimizer.meets_count
    )
