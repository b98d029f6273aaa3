"""Cyclical learning rates and the learning-rate range test for JAX and Optax.

The method in three lines: test, read, train::

    result = optax_clr.lr_range_test(loss_fn, params, optax.adamw, batches)
    schedule = optax_clr.one_cycle_schedule(result.one_cycle_peak(), total_steps)
    optimizer = optax_clr.inject_schedules(optax.adamw)(learning_rate=schedule)

Test:
    lr_range_test       train for a few hundred steps while the rate climbs
    range_test          the same for any training step and any hyperparameter
    lr_grid_test        constant rates side by side
Read, with the methods of RangeTestResult:
    suggest()           a constant rate
    one_cycle_peak()    the peak of one cycle
    bounds()            the bounds of a cycle, LRBounds
    peak_for()          the peak of any schedule
    plot(), summary()   a look at the curve
    RangeTestError says why a curve cannot be read, RangeTestWarning what is doubtful about it;
    peer_rules has the rules of other libraries, plotting draws the figures
Schedules, functions from the step to a value:
    one_cycle_schedule, warmup_stable_decay_schedule, triangular_schedule, triangular2_schedule,
    exp_range_schedule, warm_restarts_schedule, per_epoch_schedule, and cyclical_schedule with
    waves, envelopes and lengths of your own; Cycles says where each cycle ends
Train:
    inject_schedules    put schedules into an Optax optimizer
    get_hyperparams, set_hyperparams, set_step
                        read, change and resume its state
    average_at_cycle_ends, averaged_params
                        average the weights over the ends of cycles
"""

from importlib import metadata as _metadata

from optax_clr import envelopes, peer_rules, plotting, waves
from optax_clr._averaging import average_at_cycle_ends, averaged_params
from optax_clr._cycles import Cycles
from optax_clr._cyclical import (
    cyclical_schedule,
    exp_range_schedule,
    triangular2_schedule,
    triangular_schedule,
)
from optax_clr._grid_test import lr_grid_test
from optax_clr._hyperparams import get_hyperparams, set_hyperparams
from optax_clr._inject_schedules import inject_schedules
from optax_clr._one_cycle import one_cycle_schedule
from optax_clr._per_epoch import per_epoch_schedule
from optax_clr._range_test import lr_range_test, range_test
from optax_clr._reading import LRBounds, RangeTestError, RangeTestWarning
from optax_clr._result import RangeTestResult
from optax_clr._set_step import set_step
from optax_clr._warm_restarts import warm_restarts_schedule
from optax_clr._warmup_stable_decay import warmup_stable_decay_schedule

# In order of use.
__all__ = [  # noqa: RUF022
    "lr_range_test",
    "range_test",
    "lr_grid_test",
    "RangeTestResult",
    "LRBounds",
    "RangeTestError",
    "RangeTestWarning",
    "one_cycle_schedule",
    "warmup_stable_decay_schedule",
    "triangular_schedule",
    "triangular2_schedule",
    "exp_range_schedule",
    "cyclical_schedule",
    "warm_restarts_schedule",
    "per_epoch_schedule",
    "waves",
    "envelopes",
    "Cycles",
    "inject_schedules",
    "get_hyperparams",
    "set_hyperparams",
    "set_step",
    "average_at_cycle_ends",
    "averaged_params",
    "peer_rules",
    "plotting",
]

try:
    __version__ = _metadata.version("optax-clr")
except _metadata.PackageNotFoundError:  # a copy inside another package, or a frozen application
    __version__ = "0+unknown"


def __dir__() -> list[str]:
    """Return what tab completion shows."""
    return [*__all__, "__version__"]
