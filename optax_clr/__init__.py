"""Cyclical learning rates and the learning-rate range test for JAX and Optax."""

from optax_clr._cycles import Cycles as Cycles
from optax_clr._hyperparams import get_hyperparams as get_hyperparams
from optax_clr._hyperparams import inject_schedules as inject_schedules
from optax_clr._hyperparams import set_hyperparams as set_hyperparams
from optax_clr._hyperparams import set_step as set_step
from optax_clr._schedules import cosine as cosine
from optax_clr._schedules import cyclical_schedule as cyclical_schedule
from optax_clr._schedules import every_epoch as every_epoch
from optax_clr._schedules import exp_range_schedule as exp_range_schedule
from optax_clr._schedules import exponential as exponential
from optax_clr._schedules import halving as halving
from optax_clr._schedules import linear as linear
from optax_clr._schedules import one_cycle_schedule as one_cycle_schedule
from optax_clr._schedules import triangular2_schedule as triangular2_schedule
from optax_clr._schedules import triangular_schedule as triangular_schedule
from optax_clr._schedules import warm_restarts_schedule as warm_restarts_schedule
from optax_clr._schedules import welch as welch
