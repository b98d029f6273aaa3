"""Cyclical learning rates and the learning-rate range test for JAX and Optax."""

from importlib import metadata as _metadata

from optax_clr import plotting as plotting
from optax_clr import suggestions as suggestions
from optax_clr._averaging import average_at_cycle_ends as average_at_cycle_ends
from optax_clr._averaging import averaged_params as averaged_params
from optax_clr._cycles import Cycles as Cycles
from optax_clr._grid_test import lr_grid_test as lr_grid_test
from optax_clr._hyperparams import get_hyperparams as get_hyperparams
from optax_clr._hyperparams import inject_schedules as inject_schedules
from optax_clr._hyperparams import set_hyperparams as set_hyperparams
from optax_clr._range_test import lr_range_test as lr_range_test
from optax_clr._range_test import range_test as range_test
from optax_clr._reading import LRBounds as LRBounds
from optax_clr._reading import RangeTestError as RangeTestError
from optax_clr._reading import RangeTestWarning as RangeTestWarning
from optax_clr._result import RangeTest as RangeTest
from optax_clr._schedules import cyclical_schedule as cyclical_schedule
from optax_clr._schedules import every_epoch as every_epoch
from optax_clr._schedules import exp_range_schedule as exp_range_schedule
from optax_clr._schedules import one_cycle_schedule as one_cycle_schedule
from optax_clr._schedules import triangular2_schedule as triangular2_schedule
from optax_clr._schedules import triangular_schedule as triangular_schedule
from optax_clr._schedules import warm_restarts_schedule as warm_restarts_schedule
from optax_clr._set_step import set_step as set_step
from optax_clr._waves import cosine as cosine
from optax_clr._waves import exponential as exponential
from optax_clr._waves import halving as halving
from optax_clr._waves import linear as linear
from optax_clr._waves import welch as welch

try:
    __version__ = _metadata.version("optax-clr")
except _metadata.PackageNotFoundError:  # a copy inside another package, or a frozen application
    __version__ = "0+unknown"
