"""What a user can get wrong in a call: one table of it, in which every public function stands.

Each is refused with the argument, the value it had and what is allowed, where the object is built.
"""

import collections
import functools
import inspect
import io
import math
import pickle
import re
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from matplotlib.figure import Figure

import optax_clr
from optax_clr import Cycles, RangeTestResult, peer_rules, plotting

pytestmark = pytest.mark.usefixtures("optax_promotion")

NAN, INF, TOO_LARGE = math.nan, math.inf, 2**31


class Wrong(NamedTuple):
    """Arguments, in the place of good ones, and what is said of them."""

    change: dict
    error: type
    message: str


class Entry(NamedTuple):
    """A public function: a call that is right, its arguments by kind, and what else can be wrong.

    Attributes:
      function: or what calls it.
      good: all of its arguments.
      counts: arguments that are Python integers of at least 1.
      values: that are finite real scalars.
      positive: such scalars above 0.
      functions: that are called.
      steps: integers of any shape.
      wrong: what is special to the function.
      anything: arguments of which no value is wrong.
    """

    function: Callable
    good: dict
    counts: tuple = ()
    values: tuple = ()
    positive: tuple = ()
    functions: tuple = ()
    steps: tuple = ()
    wrong: tuple = ()
    anything: tuple = ()


# What has a dtype, or is an integer to NumPy, and no number.
DAY, SHAPE = np.timedelta64(1, "D"), jax.ShapeDtypeStruct((), jnp.float32)
_NO_SCALARS = [NAN, INF, -INF], [
    "0.1", True, None, 1j, [0.1], np.bool_(True), np.array(True), np.complex64(1), DAY, SHAPE,
]  # fmt: skip


UNMASKED = "must have no masked entries, which JAX does not support; got masked"


def has_default_none(function, name):
    parameter = inspect.signature(function).parameters.get(name)
    return parameter is not None and parameter.default is None


def by_kind(entry):
    """Yield what is wrong with every argument of a kind."""
    got = lambda bad: f".* got {re.escape(repr(bad))}"
    for name in entry.counts:
        for bad in (0, -5, TOO_LARGE):
            yield Wrong({name: bad}, ValueError, f"{name} must be a Python integer{got(bad)}")
        for bad in (True, "3", np.arange(2), 1j):
            yield Wrong({name: bad}, TypeError, f"{name} must be a Python integer{got(bad)}")
        for bad in (2.5, 2.0, np.float32(3)):
            remedy = r"\. Divide with // instead of /, or use round"
            yield Wrong(
                {name: bad}, TypeError, f"{name} must be a Python integer{got(bad)}{remedy}"
            )
    for name in (*entry.values, *entry.positive):
        for kind, bads in zip((ValueError, TypeError), _NO_SCALARS, strict=True):
            for bad in bads:
                if bad is not None or not has_default_none(entry.function, name):
                    yield Wrong({name: bad}, kind, f"{name} must be a finite.* number{got(bad)}")
        for bad in (1e39, 1e-50, np.float32(1e-40), 10**400):
            remedy = r".*3.4e\+38 in size, as float32 holds it, got .*float64|.*got 10000"
            yield Wrong({name: bad}, ValueError, f"{name} must be a finite({remedy})")
        message = rf"{name} must be a scalar, got an array of shape \(3,\). Use jax.vmap"
        yield Wrong({name: np.ones(3)}, ValueError, message)
        yield Wrong({name: jnp.ones(3)}, ValueError, message)
        yield Wrong({name: np.array(0.1, object)}, TypeError, f"{name} must be a finite.* number")
        yield Wrong({name: np.ma.array(0.1, mask=True)}, ValueError, f"{name} {UNMASKED}")
    for name in entry.positive:
        for bad in (0.0, -0.5, 0, np.float32(-1)):
            yield Wrong({name: bad}, ValueError, f"{name} must be a finite positive{got(bad)}")
    for name in entry.functions:
        for bad in (0.5, "cosine", {}):
            yield Wrong({name: bad}, TypeError, f"{name} must be a function{got(bad)}")
    for name in entry.steps:
        for bad in (1.5, np.ones(2), np.array([False]), "3", None, True, 1j, jnp.ones(()), DAY):
            yield Wrong({name: bad}, TypeError, f"{name} must be an integer")
        masked = np.ma.array([1, 2], mask=[False, True])
        yield Wrong({name: masked}, ValueError, f"{name} {UNMASKED}")
        yield Wrong({name: [[1, 2], [3]]}, ValueError, f"{name} must be .* lists of one length")


# --------------------------------------------------------------------------- cycles and schedules

MULT = (
    *(
        Wrong({"mult": bad}, ValueError, f"mult must be .* got {bad}")
        for bad in (0, -1.5, NAN, INF)
    ),
    *(Wrong({"mult": bad}, TypeError, f"mult must be .* got {bad!r}") for bad in (True, "2", None)),
    Wrong({"mult": DAY}, TypeError, "mult must be .* got np.timedelta64"),
    Wrong({"mult": SHAPE}, TypeError, "mult must be .* got ShapeDtypeStruct"),
    Wrong({"mult": TOO_LARGE}, ValueError, "mult must be .* at most .* got 2147483648"),
    Wrong({"mult": 10**400}, ValueError, "mult must be .* at most .* got 1000"),
    Wrong(
        {"mult": 0.5, "num_cycles": None}, ValueError, "mult=0.5 .* give their number, num_cycles"
    ),
    Wrong({"mult": 2, "num_cycles": 2000}, ValueError, "num_cycles=2000 .* mult=2 last longer"),
    Wrong({"mult": 1.5, "num_cycles": 2000}, ValueError, "num_cycles=2000 .* num_cycles=None"),
    Wrong({"mult": 1.0001, "num_cycles": 2**21}, ValueError, "num_cycles=2097152 .* fewer, or"),
    Wrong(
        {"mult": 0.5, "num_cycles": TOO_LARGE - 1}, ValueError, r"longer than any run; use fewer\."
    ),
)
CYCLE = {"base_value": 0.1, "peak_value": 1.0, "rise_steps": 5, "fall_steps": 5}
CYCLE_KINDS = {"values": ("base_value", "peak_value"), "counts": ("rise_steps", "fall_steps")}
TOO_LONG = Wrong({"rise_steps": TOO_LARGE - 1}, ValueError, r"rise_steps \+ fall_steps must be")
WAVE = (
    Wrong({"wave": lambda height: jnp.ones(3)}, ValueError, r"wave must be .* to .*shape=\(3,\)"),
    Wrong({"wave": lambda height: (height, height)}, ValueError, "wave must be"),
    Wrong({"wave": lambda height: "high"}, ValueError, "wave must be"),
    Wrong({"wave": math.sin}, ValueError, "wave must be .* failed"),
    Wrong({"wave": np.sqrt}, ValueError, r"wave must be .* failed: [\s\S]*Take it from jax.numpy"),
    Wrong({"wave": lambda height: 1j * height}, ValueError, "wave must .* returns complex numbers"),
    Wrong({"wave": lambda height: height.mean()}, ValueError, "a single number for several"),
    Wrong({"wave": lambda height: height[0]}, ValueError, "a single number for several"),
    Wrong({"wave": lambda height: height if height < 1 else 1}, ValueError, "wave must .* failed"),
)


def stairs(*counts):
    return 0.1 * 10 ** -(counts[-1] // 30)  # 0.01 at 30, but 0 with JAX's integers


def jnp_stairs(step):
    return 0.1 * jnp.power(10, -(step // 30))


def low_stairs(step):
    return 0.1 * 10 ** -(jnp.minimum(step, 90) // 30)


POWER = "{} must not raise an integer to a negative power, .* got <function .*stairs.*: 10.0"
ENVELOPE = (
    Wrong({"envelope": stairs}, ValueError, POWER.format("envelope")),
    Wrong({"envelope": lambda cycle, step: 2**-cycle}, ValueError, "a float"),
    Wrong({"envelope": lambda cycle: 0.5}, ValueError, "envelope must be .* failed"),
    Wrong({"envelope": lambda cycle, step: None}, ValueError, "envelope must be .* to None"),
)
ONE_CYCLE = {"init_value": 0.1, "peak_value": 1.0, "end_value": 0.0, "total_steps": 9}
RESTARTS = {"peak_value": 1.0, "steps": 10, "base_value": 0.1, "mult": 1, "num_cycles": 3}

SCHEDULES = {
    "Cycles": Entry(
        Cycles, {"steps": 3, "mult": 2, "num_cycles": 2}, ("steps", "num_cycles"), wrong=MULT
    ),
    "triangular_schedule": Entry(
        optax_clr.triangular_schedule, CYCLE, **CYCLE_KINDS, wrong=(TOO_LONG,)
    ),
    "triangular2_schedule": Entry(
        optax_clr.triangular2_schedule, CYCLE, **CYCLE_KINDS, wrong=(TOO_LONG,)
    ),
    "exp_range_schedule": Entry(
        optax_clr.exp_range_schedule,
        {**CYCLE, "gamma": 0.9},
        **CYCLE_KINDS,
        positive=("gamma",),
        wrong=(TOO_LONG,),
    ),
    "cyclical_schedule": Entry(
        optax_clr.cyclical_schedule,
        {
            **CYCLE, "wave": optax_clr.waves.cosine, "envelope": optax_clr.envelopes.halving,
            "mult": 1, "num_cycles": 3,
        },
        values=("base_value", "peak_value"),
        counts=("rise_steps", "fall_steps", "num_cycles"),
        functions=("wave", "envelope"),
        wrong=(TOO_LONG, *MULT, *WAVE, *ENVELOPE, Wrong({"wave": None}, TypeError, "wave must be")),
    ),
    "warm_restarts_schedule": Entry(
        optax_clr.warm_restarts_schedule,
        {**RESTARTS, "peak_decay": 1.0, "warmup_steps": 2},
        values=("peak_value", "base_value"),
        positive=("peak_decay",),
        counts=("steps", "num_cycles"),
        wrong=(
            *MULT,
            Wrong({"warmup_steps": -1}, ValueError, "warmup_steps must be .* from 0 .* got -1"),
            Wrong({"warmup_steps": 0.5}, TypeError, "warmup_steps must be .* got 0.5"),
            Wrong({"warmup_steps": 10}, ValueError, "warmup_steps=10 must be less"),
            Wrong(
                {"mult": 0.5, "warmup_steps": 4},
                ValueError,
                "warmup_steps=4 must be less .* shortest of which has 2",
            ),
            Wrong(
                {"peak_value": 0.1, "base_value": 1.0, "peak_decay": 0.5},
                ValueError,
                "peak_value=0.1 must not be below base_value=1.0",
            ),
        ),
    ),
    "one_cycle_schedule": Entry(
        optax_clr.one_cycle_schedule,
        {**ONE_CYCLE, "rise_fraction": 0.3, "wave": optax_clr.waves.linear, "three_phase": False},
        values=("init_value", "peak_value", "end_value"),
        counts=("total_steps",),
        functions=("wave",),
        wrong=(
            *WAVE,
            *(
                Wrong({"three_phase": bad}, TypeError, "three_phase must be True or False, got")
                for bad in ("no", 1, None)
            ),
            *(
                Wrong({"rise_fraction": bad}, ValueError, f"rise_fraction must be .* got {bad}")
                for bad in (1.1, -0.1, NAN, INF)
            ),
            *(
                Wrong({"rise_fraction": bad}, TypeError, f"rise_fraction must be .* got {bad!r}")
                for bad in ("0.3", None, 1j, True)
            ),
            Wrong({"rise_fraction": DAY}, TypeError, "rise_fraction must be .* got np.timedelta64"),
            Wrong(
                {"rise_fraction": 0.6, "three_phase": True},
                ValueError,
                "from 0 to 0.5 where three_phase=True, got 0.6",
            ),
            Wrong(
                {"peak_value": optax_clr.RangeTestResult(*3 * [jnp.ones(9)], jnp.int32(9))},
                TypeError,
                r"peak_value must be .* got Range test: .* result.one_cycle_peak\(\)\.",
            ),
            Wrong(
                {"peak_value": 1e-37, "init_value": None},
                ValueError,
                "init_value, which is peak_value / 25 if not given, must be .* got 4",
            ),
            Wrong(
                {"init_value": 1e-37, "end_value": None},
                ValueError,
                "end_value, which is init_value / 1e4 if not given, must be",
            ),
        ),
    ),
    "warmup_stable_decay_schedule": Entry(
        optax_clr.warmup_stable_decay_schedule,
        {
            "peak_value": 1.0, "total_steps": 9, "warmup_steps": 2, "decay_steps": 4,
            "end_value": 0.0, "warmup_wave": optax_clr.waves.linear,
            "decay_wave": optax_clr.waves.cosine,
        },
        values=("peak_value", "end_value"),
        counts=("total_steps",),
        functions=("warmup_wave", "decay_wave"),
        wrong=(
            *(
                Wrong({name: bad}, kind, f"{name} must be .* from 0 to .* got {bad}")
                for name in ("warmup_steps", "decay_steps")
                for bad, kind in ((-1, ValueError), (TOO_LARGE, ValueError), (0.5, TypeError))
            ),
            Wrong(
                {"warmup_steps": 6},
                ValueError,
                "warmup_steps=6 and decay_steps=4 must .* total_steps=9 .* step [+] decay_steps",
            ),
            Wrong({"decay_wave": math.sin}, ValueError, "decay_wave must be .* failed"),
            Wrong({"warmup_wave": lambda height: "high"}, ValueError, "warmup_wave must be"),
        ),
    ),
    "per_epoch_schedule": Entry(
        optax_clr.per_epoch_schedule,
        {"schedule": lambda step: step, "steps_per_epoch": 5},
        counts=("steps_per_epoch",),
        functions=("schedule",),
        wrong=(
            Wrong({"schedule": stairs}, ValueError, POWER.format("schedule")),
            Wrong({"schedule": jnp_stairs}, ValueError, POWER.format("schedule")),
            Wrong({"schedule": low_stairs}, ValueError, POWER.format("schedule")),
            Wrong(
                {"schedule": optax.schedules.WrappedSchedule(optax.constant_schedule(0.1))},
                TypeError,
                "schedule must be a function step -> value, got .*StatefulSchedule",
            ),
        ),
    ),
    "exponential": Entry(optax_clr.envelopes.exponential, {"gamma": 0.9}, positive=("gamma",)),
    "halving": Entry(
        optax_clr.envelopes.halving, {"cycle": 1, "step": 5}, steps=("cycle",), anything=("step",)
    ),
    # Formulas: they give what JAX gives.
    "linear": Entry(optax_clr.waves.linear, {"height": jnp.ones(())}, anything=("height",)),
    "cosine": Entry(optax_clr.waves.cosine, {"height": jnp.ones(())}, anything=("height",)),
    "welch": Entry(optax_clr.waves.welch, {"height": jnp.ones(())}, anything=("height",)),
}  # fmt: skip

# What schedules and cycles are asked with.
QUERIES = {
    **{
        f"{name}(...)": Entry(
            lambda step, entry=entry: entry.function(**entry.good)(step),
            {"step": 3},
            steps=("step",),
        )
        for name, entry in SCHEDULES.items()
        if name.endswith("_schedule")
    },
    **{
        f"Cycles.{name}": Entry(getattr(Cycles(3, 2), name), {"step": 3}, steps=("step",))
        for name in ("index", "fraction", "is_end")
    },
    **{
        f"Cycles.{name}": Entry(getattr(Cycles(3, 2), name), {"cycle": 3}, steps=("cycle",))
        for name in ("start", "length")
    },
}


# -------------------------------------------------------------------------------- hyperparameters

PARAMS = {"hidden": jnp.ones((4, 8)), "out": jnp.ones(8)}
SCHEDULE = optax_clr.triangular_schedule(0.1, 0.5, 3)
SCHEDULED = optax_clr.inject_schedules(optax.sgd)(SCHEDULE, momentum=jnp.float32(0.9)).init(PARAMS)
WHOLE = optax_clr.inject_schedules(lambda k: optax.scale(k))(jnp.int32(3)).init(PARAMS)
COUNTED = optax_clr.inject_schedules(lambda k: optax.scale(k))(jnp.uint32(3)).init(PARAMS)
AVERAGING = optax_clr.average_at_cycle_ends(Cycles(2))


def injected_with(factory, static_args, learning_rate, gain):
    build = optax_clr.inject_schedules(factory, static_args)
    return build(learning_rate=learning_rate, gain=gain)


def with_gain(learning_rate, gain):  # of which no annotation says what they take
    return optax.sgd(learning_rate)


def gathering(learning_rate, **others):
    return optax.sgd(learning_rate)


def by_position(rate, /):
    return optax.sgd(rate)


SHAPES = jax.eval_shape(lambda: SCHEDULED)
# Two at the path a/b/learning_rate.
WITH_SLASH = {"a": {"b": SCHEDULED}, "a/b": SCHEDULED}
TWO_AT_ONE_PATH = Wrong({"state": WITH_SLASH}, ValueError, "got two at a/b/.* Rename it")
OF_SHAPES = Wrong({"state": SHAPES}, TypeError, "state must hold arrays, got shapes, .*eval_shape")

HYPERPARAMS = {
    "inject_schedules": Entry(
        injected_with,
        {"factory": with_gain, "static_args": (), "learning_rate": 0.1, "gain": None},
        functions=("factory",),
        wrong=(
            Wrong({"factory": optax.adam(0.1)}, TypeError, "factory .* already built. Write"),
            Wrong({"static_args": "gian"}, ValueError, r"static_args=\['gian'\] must be arguments"),
            # Functions that are no schedules, and nothing else that is known.
            Wrong({"static_args": 3}, TypeError, "static_args must be names .* got 3"),
            Wrong({"static_args": [["gain"]]}, TypeError, r"static_args .* \[\['gain"),
            Wrong({"learning_rate": lambda step: 1j * step}, TypeError, "learning_rate must be a"),
            Wrong({"gain": lambda step: step["out"]}, TypeError, "gain .* static_args='gain'"),
            Wrong({"gain": lambda step: step[None]}, TypeError, "gain .* static_args='gain'"),
            Wrong({"gain": print}, TypeError, "gain must be .* static_args='gain'"),
            # Bounds in the place of the schedule between them.
            Wrong(
                {"learning_rate": (0.1, 0.5)},
                TypeError,
                r"learning_rate must be .* got \(0.1, 0.5\).*triangular_schedule\(\*bounds",
            ),
            Wrong({"learning_rate": optax_clr.LRBounds(0.1, 0.5)}, TypeError, r"\(\*bounds, rise"),
            *(
                Wrong({"learning_rate": bad}, TypeError, "learning_rate must be .*True.* Convert")
                for bad in (True, np.bool_(True))
            ),
            Wrong({"learning_rate": stairs}, ValueError, POWER.format("learning_rate")),
            Wrong({"learning_rate": np.ma.masked}, ValueError, f"learning_rate {UNMASKED}"),
            Wrong({"factory": gathering}, TypeError, r"name each argument .*\*\*others"),
            Wrong({"factory": by_position}, TypeError, "by name, got .* takes rate by position"),
            Wrong({"factory": dict}, TypeError, "factory must .* from named arguments, .* 'dict'"),
            Wrong({"factory": min}, TypeError, "factory must .* from named arguments, .* min"),
        ),
    ),
    "inject_schedules(...).init": Entry(
        lambda factory, params: optax_clr.inject_schedules(factory)(0.1).init(params),
        {"factory": optax.sgd, "params": PARAMS},
        wrong=(
            Wrong(
                {"factory": lambda rate: rate},
                TypeError,
                r"factory must return a GradientTransformation, got float from <function",
            ),
            Wrong({"factory": lambda rate: None}, TypeError, "GradientTransformation, got NoneT"),
        ),
        anything=("params",),  # Optax's to check
    ),
    "get_hyperparams": Entry(
        optax_clr.get_hyperparams,
        {"state": SCHEDULED},
        wrong=(
            Wrong({"state": optax.sgd(SCHEDULE).init(PARAMS)}, ValueError, "inject_schedules"),
            Wrong({"state": optax.sgd(SCHEDULE)}, TypeError, r"init\(params\).* got the optimizer"),
            OF_SHAPES,
            TWO_AT_ONE_PATH,
        ),
    ),
    "set_hyperparams": Entry(
        lambda state, values: optax_clr.set_hyperparams(state, **values),
        {"state": SCHEDULED, "values": {"momentum": 0.5}},
        wrong=(
            Wrong({"state": ()}, ValueError, r"momentum is not a hyperparameter .* which has \[\]"),
            Wrong(
                {"state": (optax.EmptyState(), SCHEDULED), "values": {"learning_rate": 0.1}},
                ValueError,
                "learning_rate is driven by a schedule at 1/learning_rate",
            ),
            Wrong({"values": {"b1": 0.1}}, ValueError, r"b1 is not a hyperparameter .*'momentum'"),
            Wrong(
                {"values": {"learning_rate": 0.1}},
                ValueError,
                "learning_rate is driven by a schedule at learning_rate",
            ),
            Wrong(
                {"values": {"momentum": jnp.ones(2)}},
                ValueError,
                r"momentum must be a scalar, got .*\(2,",
            ),
            Wrong({"values": {"momentum": "0.1"}}, TypeError, "momentum must be .* got '0.1'"),
            Wrong({"values": {"momentum": np.ma.masked}}, ValueError, f"momentum {UNMASKED}"),
            Wrong({"values": {"momentum": None}}, TypeError, "momentum must be .* got None"),
            *(
                Wrong({"values": {"momentum": bad}}, TypeError, "momentum must be a number")
                for bad in (SCHEDULE, DAY, SHAPE, np.float32, True)
            ),
            Wrong({"values": {"momentum": np.array("1")}}, TypeError, "momentum must be a number"),
            Wrong({"values": {"momentum": 1j}}, TypeError, "momentum must be a number.* 1j"),
            Wrong({"values": {"momentum": np.complex64(1j)}}, TypeError, "must be a real number"),
            Wrong({"values": {"momentum": math.nan}}, ValueError, "that float32 holds, got nan"),
            Wrong({"values": {"momentum": 1e60}}, ValueError, r"that float32 holds, got 1e\+60"),
            Wrong({"values": {"momentum": 10**400}}, ValueError, "that float32 holds, got 1000"),
            Wrong({"values": {"momentum": np.array(math.nan)}}, ValueError, "that float32 holds"),
            Wrong({"state": WHOLE, "values": {"k": 0.5}}, TypeError, "k must be an integer,.* 0.5"),
            Wrong({"state": WHOLE, "values": {"k": 2**40}}, ValueError, "that int32 holds, got 1"),
            Wrong({"state": COUNTED, "values": {"k": -5}}, ValueError, "that uint32 holds, got -5"),
            Wrong({"state": COUNTED, "values": {"k": jnp.int32(-5)}}, ValueError, "uint32 holds"),
            Wrong({"values": {"momentum": 1e-50}}, ValueError, "that float32 holds, got 1e-50"),
            OF_SHAPES,
            TWO_AT_ONE_PATH,
            Wrong({"state": SCHEDULED._asdict()}, ValueError, "set in a state of dicts .*restore"),
        ),
    ),
    "set_step": Entry(
        optax_clr.set_step,
        {"state": SCHEDULED, "step": 3},
        steps=("step",),
        wrong=(
            Wrong({"state": optax.adam(0.1).init(PARAMS)}, ValueError, "state has no schedule"),
            Wrong({"state": None}, ValueError, "state has no schedule whose step could be set"),
            Wrong({"step": -1}, ValueError, "step must be a scalar of at least 0, got -1"),
            Wrong({"step": np.arange(2)}, ValueError, "step must be a scalar"),
            Wrong({"step": True}, TypeError, "step must be an integer"),
            OF_SHAPES,
            Wrong({"state": (jnp.int32(3), SCHEDULED)}, ValueError, r"the integer state\[0\]"),
        ),
    ),
    "average_at_cycle_ends": Entry(
        optax_clr.average_at_cycle_ends,
        {"cycles": Cycles(2)},
        wrong=(
            Wrong({"cycles": 100}, TypeError, r"cycles must be .* got 100. .* pass Cycles\(n\)"),
            Wrong({"cycles": None}, TypeError, "cycles must be .* got None"),
        ),
    ),
    "average_at_cycle_ends(...).update": Entry(
        AVERAGING.update,
        {"updates": PARAMS, "state": AVERAGING.init(PARAMS), "params": PARAMS},
        wrong=(Wrong({"params": None}, ValueError, "needs the params: call optimizer.update"),),
        anything=("updates", "state"),  # Optax's to check
    ),
    "averaged_params": Entry(
        optax_clr.averaged_params,
        {"opt_state": AVERAGING.init(PARAMS)},
        wrong=(
            Wrong({"opt_state": SCHEDULED}, ValueError, "opt_state .* got 0. Put it last"),
            Wrong({"opt_state": None}, ValueError, "opt_state .* got 0. Put it last"),
            Wrong({"opt_state": [AVERAGING.init(PARAMS)] * 2}, ValueError, "opt_state .* got 2"),
        ),
    ),
}  # fmt: skip


# ------------------------------------------------------------------------------------ range tests

NUM_STEPS = 12
INPUTS = jnp.ones((NUM_STEPS, 16, 4))
TARGETS = jnp.ones((NUM_STEPS, 16))
BATCHES = {"inputs": INPUTS, "targets": TARGETS}
STREAM = [(np.ones(4, np.float32), np.ones(4, np.float32))] * NUM_STEPS
ODD = tuple(part[:3] for part in STREAM[0])


class Pair(NamedTuple):
    hidden: jax.Array
    out: jax.Array


def loss_fn(params, batch):
    outputs = jnp.tanh(batch["inputs"] @ params["hidden"]) @ params["out"]
    return jnp.mean((outputs - batch["targets"]) ** 2)


def stream_loss(params, batch):
    return jnp.mean(batch[0]) * params["out"].sum()


def step_fn(params, batch, rate):
    loss, gradient = jax.value_and_grad(loss_fn)(params, batch)
    return jax.tree.map(lambda leaf, slope: leaf - rate * slope, params, gradient), loss


def needs_more(rate):
    """An optimizer whose update asks for what only the caller can give."""
    inner = optax.sgd(rate)
    update = lambda updates, state, params=None, *, obj_fn: inner.update(updates, state)
    return optax.GradientTransformationExtraArgs(inner.init, update)


def keeps_rate_of_a_part(rate):
    """An optimizer that would train one part with the first rate of a sweep, in silence."""
    kept = optax_clr.inject_schedules(optax.sgd)(learning_rate=rate)
    return optax.multi_transform({"a": kept, "b": optax.sgd(rate)}, {"hidden": "a", "out": "b"})


def fails(rate):
    def update(updates, state, params=None):
        raise RuntimeError(f"no such thing as {type(rate)}")

    return optax.GradientTransformation(optax.sgd(rate).init, update)


class Loader:
    """What can be read again and is no list."""

    def __init__(self, *batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def generator_function():
    yield BATCHES


def returns(result):
    """A change of the step to one that returns ``result`` of params, batch and rate."""
    return {"step_fn": lambda state, batch, rate: result(state, batch, rate)}


ONE = jnp.float32(1)
FORM = "batches must be a pytree of arrays with a leading axis"
MASKED = np.ma.array(np.ones((NUM_STEPS, 16)), mask=np.eye(NUM_STEPS, 16))
STRUCTURED = np.zeros(NUM_STEPS, [("input", "f4"), ("label", "i4")])
HELD_BATCHES = (
    Wrong({"batches": {}}, ValueError, f"{FORM}.* empty pytree"),
    Wrong({"batches": None}, ValueError, f"{FORM}.* empty pytree"),
    Wrong({"batches": {"a": 1.0}}, TypeError, rf"{FORM}.* batches\['a'\] is float"),
    Wrong({"batches": {"a": np.float32}}, TypeError, r"batches\['a'\] is the class float32"),
    Wrong({"batches": {"a": jnp.ones(())}}, ValueError, rf"{FORM}.* batches\['a'\] is a scalar"),
    Wrong({"batches": 5}, TypeError, f"{FORM}.* batches is int"),
    Wrong({"batches": MASKED}, ValueError, f"batches {UNMASKED}"),
    Wrong({"batches": STRUCTURED}, TypeError, f"{FORM}.* has dtype .* JAX does not support"),
    Wrong(
        {"batches": {**BATCHES, "targets": TARGETS[:-1]}},
        ValueError,
        r"batches must have leading axes of one length.*'targets'\].: 11",
    ),
    Wrong({"batches": [INPUTS, TARGETS]}, TypeError, r"a list of arrays.*iter\(batches\)"),
    Wrong({"batches": [INPUTS, (TARGETS,)]}, TypeError, r"a list of arrays.*iter\(batches\)"),
    # Containers that JAX does not know, such as those of tokenizers.
    Wrong(
        {"batches": collections.UserDict(BATCHES)},
        TypeError,
        rf"{FORM}.* UserDict. .* dict\(batch\)",
    ),
    Wrong(
        {"batches": [collections.UserDict(BATCHES)]},
        TypeError,
        r"got a list of UserDict. .* dict\(batch\)",
    ),
    Wrong(
        {"batches": lambda step: np.asarray(INPUTS)[step]},
        jax.errors.TracerArrayConversionError,
        r"batches is a function.*jnp.asarray\(data\)",
    ),
    Wrong({"batches": generator_function}, TypeError, "generator function .* Call it"),
    Wrong(
        {"batches": {"inputs": [INPUTS, INPUTS], "targets": [TARGETS, TARGETS]}},
        TypeError,
        rf"{FORM}.* batches\['inputs'\] is a list. Stack it",
    ),
    Wrong({"batches": {"a": [1.0, 2.0]}}, TypeError, r"batches\['a'\] is a list. Stack it"),
    *(
        Wrong(
            {"batches": {**BATCHES, "more": np.zeros(12, dtype)}},
            TypeError,
            rf"{FORM}.* batches\['more'\] has dtype .*Encode it",
        )
        for dtype in ("U3", "S3", "O", "M8[s]")
    ),
    Wrong({"batches": Loader()}, ValueError, "batches must give at least one batch, got none"),
)
# The loss takes what is streamed; any other batches of it would do.
STREAMED = {"loss_fn": stream_loss, "num_steps": NUM_STEPS}
STREAMED_BATCHES = tuple(
    Wrong({**STREAMED, "batches": batches}, error, message)
    for batches, error, message in [
        (Loader(STREAM[0], ODD, *STREAM), ValueError, r"of the first, float32\[4\], .*\[3\]"),
        (Loader(STREAM[0], tuple(map(np.float64, STREAM[0])), *STREAM), ValueError, "got float64"),
        (Loader(STREAM[0], {"a": ODD}, *STREAM), ValueError, "structure of the first"),
        (Loader("a", "b"), TypeError, "batches must give pytrees of numeric arrays.*<U1"),
        (
            Loader(collections.UserDict(a=ODD)),
            TypeError,
            r"got one with a UserDict in it.* dict\(batch\)",
        ),
        (Loader(None), TypeError, "batches must give pytrees of numeric arrays.* nothing"),
        ("text", TypeError, "batches must give pytrees of numeric arrays"),
        (Loader(*STRUCTURED), TypeError, "batches must give pytrees of numeric arrays.*'label'"),
        (Loader(*MASKED), ValueError, f"batches {UNMASKED}"),
    ]
)
LOSS = (
    Wrong(
        {"loss_fn": lambda p, b: jnp.zeros(3) * p["out"].sum()},
        ValueError,
        r"loss_fn must return a scalar loss, got one of shape \(3,\). Take its mean",
    ),
    Wrong(
        {"loss_fn": lambda p, b: (loss_fn(p, b), 1)},
        TypeError,
        "loss_fn must return a scalar loss, got a tuple of 2; .*has_aux=True",
    ),
    Wrong(
        {"has_aux": True}, TypeError, r"loss_fn must return the pair \(loss, metrics\) where has"
    ),
    Wrong({"loss_fn": lambda p, b: jnp.int32(1)}, TypeError, "a float, got dtype int32"),
    Wrong({"loss_fn": lambda p, b: None}, TypeError, "loss_fn must return .* got NoneType"),
    Wrong({"loss_fn": PARAMS, "params": loss_fn}, TypeError, "loss_fn must be a function"),
    # An error of the user's function comes with the batch that it was given.
    Wrong(
        {"loss_fn": lambda p, b: b["images"].mean()},
        KeyError,
        r"images.*was given the batch \['inputs'\] float32\[16, 4\]",
    ),
    Wrong(
        {"batches": {**BATCHES, "inputs": INPUTS[:, 0, :3]}},
        TypeError,
        r"contracting.*was given the batch .*float32\[3\].* counts the steps. See ",
    ),
)


def widening(rate):
    update = lambda updates, state, params=None: (updates, state + 0.5)
    return optax.GradientTransformation(lambda params: jnp.int32(0), update)


TRAINING = (
    Wrong(
        {"optimizer": lambda rate: optax.chain(optax.sgd(rate), widening(rate))},
        ValueError,
        r"the update of optimizer <func.* must keep .* dtype of .* int32\[\]; got float32",
    ),
    Wrong(
        {"optimizer": optax.adam(0.1)},
        TypeError,
        "optimizer must be a function from a learning rate .* already built. Pass optax.adamw",
    ),
    Wrong(
        {"optimizer": functools.partial(optax.adamw, 1e-3)},  # the rates would be b1
        TypeError,
        "optimizer must leave the learning rate open, got .*adamw.*weight_decay=0.1",
    ),
    Wrong(
        {"optimizer": functools.partial(optax.adamw, learning_rate=1e-3)},
        TypeError,
        "optimizer must leave the learning rate open",
    ),
    Wrong(
        {"optimizer": lambda rate: rate},
        TypeError,
        r"optimizer must return a GradientTransformation, got an array float32\[\]",
    ),
    Wrong(
        {"optimizer": needs_more},
        TypeError,
        r"needs_more.*obj_fn.* was given .*value \(the loss\).*pass it to range_test",
    ),
    Wrong(
        {"optimizer": fails},
        RuntimeError,
        "no such thing.*update of optimizer <function fails.*pass it to range_test",
    ),
    Wrong(
        {"optimizer": lambda rate: optax.adam(0.1)},
        ValueError,
        "optimizer must train with the learning rate",
    ),
    Wrong(
        {"loss_fn": lambda params, batch: loss_fn(PARAMS, batch)},
        ValueError,
        "loss_fn must return the loss of the params that it is given; .* not depend .* same name",
    ),
    Wrong({"params": {}}, ValueError, "params must have at least one array"),
    Wrong({"params": {"a": "b"}}, TypeError, r"params\['a'\] must be an array, got str"),
    Wrong({"params": np.float32}, TypeError, "params must be an array, got the class float32"),
    Wrong({"params": {"a": MASKED}}, ValueError, rf"params\['a'\] {UNMASKED}"),
    *(
        Wrong({"params": {"a": array}}, TypeError, r"params\['a'\] must be an array of numbers")
        for array in (STRUCTURED, np.ones(3, ">f4"), np.ones(3, object))
    ),
    Wrong(
        {"params": {**PARAMS, "table": jnp.arange(3)}},
        TypeError,
        r"params\['table'\] must be a float to be trained, got dtype int32",
    ),
    Wrong({"held_out": MASKED}, ValueError, f"held_out {UNMASKED}"),
    Wrong({"held_out": ()}, ValueError, "held_out must have at least one array"),
    Wrong({"held_out": Loader(ODD)}, TypeError, r"held_out must be one batch.*next\(iter\("),
    Wrong(
        {"held_out": collections.UserDict(BATCHES)},
        TypeError,
        "held_out must be .* UserDict.* register",
    ),
    Wrong({"held_out": {"inputs": ODD[0]}}, TypeError, r"held-out batch is \['inputs'\] float32"),
    Wrong({"held_out": {"a": "b"}}, TypeError, r"held_out\['a'\] must be an array, got str"),
)
# A grid starts each rate with a state of its own.
KEEPS_FIRST_RATE = tuple(
    Wrong({"optimizer": keeps}, ValueError, "optimizer must train with the learning rate")
    for keeps in (
        optax.inject_hyperparams(optax.adam),
        optax_clr.inject_schedules(optax.sgd),
        keeps_rate_of_a_part,
    )
)
RATES = (
    Wrong(
        {"min_lr": 1.0, "max_lr": 0.1},
        ValueError,
        "max_lr=0.1 must be larger than min_lr=1.0",
    ),
    Wrong({"min_lr": 1.0, "max_lr": 1.0}, ValueError, "max_lr=1.0 must be larger"),
    Wrong({"spacing": "exp"}, ValueError, "spacing must be 'log' or 'linear', got 'exp'"),
    Wrong({"spacing": None}, ValueError, "spacing must be 'log' or 'linear', got None"),
    Wrong({"spacing": np.ones(2)}, ValueError, r"spacing must be 'log' or 'linear', got array\("),
)
STOP = (
    Wrong({"smoothing": 1.0}, ValueError, "smoothing must be .* got 1.0"),
    Wrong({"smoothing": -0.1}, ValueError, "smoothing must be .* got -0.1"),
    *(Wrong({"stop_factor": bad}, ValueError, f"stop_factor must be .* got {bad}")
      for bad in (0.0, -1, NAN, -INF)),
    *(Wrong({"stop_factor": bad}, TypeError, f"stop_factor must be .* got {bad!r}")
      for bad in (None, "1", True)),
)  # fmt: skip
NUM_STEPS_OF = (
    Wrong({"num_steps": 0}, ValueError, "num_steps=0 must be a multiple"),
    Wrong({"num_steps": 1}, ValueError, "num_steps=1 must be a multiple"),
    Wrong({"num_steps": -5}, ValueError, "num_steps must be .* got -5"),
    Wrong({"num_steps": 2.5}, TypeError, "num_steps must be .* got 2.5"),
    Wrong({"num_steps": True}, TypeError, "num_steps must be .* got True"),
    Wrong({"num_steps": 13}, ValueError, "at least 13, .* got 12"),
)
# A stream takes the place of arrays with a leading axis, of which the loss sees one entry.
BATCH = jax.tree.map(lambda leaf: leaf[0], BATCHES)
INSIDE = (
    Wrong({"batches": Loader(BATCH)}, TypeError, "cannot be inside jax.jit or jax.vmap"),
    Wrong({"progress": True}, TypeError, "progress=True, runs from Python"),
)
LR_RANGE_TEST = {
    "loss_fn": loss_fn, "params": PARAMS, "optimizer": optax.sgd, "batches": BATCHES,
    "min_lr": 1e-5, "max_lr": 0.1, "num_steps": NUM_STEPS, "spacing": "log",
    "has_aux": False, "smoothing": 0.9, "stop_factor": 1.0, "steps_per_value": 1,
    "held_out": None, "progress": False,
}  # fmt: skip
GRID = {
    name: LR_RANGE_TEST[name]
    for name in inspect.signature(optax_clr.lr_grid_test).parameters
    if name != "num_values"
}


def inside_jit(function):
    return lambda **arguments: jax.jit(lambda: function(**arguments))()


def inside_vmap(function):
    def call(decay, arguments):
        return function(optimizer=lambda rate: optax.adamw(rate, weight_decay=decay), **arguments)

    return lambda **arguments: jax.vmap(lambda decay: call(decay, arguments))(jnp.ones(2))


RANGE_TESTS = {
    "range_test": Entry(
        optax_clr.range_test,
        {
            "step_fn": step_fn, "state": PARAMS, "batches": BATCHES,
            "values": np.geomspace(1e-5, 0.1, NUM_STEPS), "has_aux": False, "smoothing": 0.9,
            "stop_factor": 1.0, "steps_per_value": 1, "progress": False,
        },
        counts=("steps_per_value",),
        values=("smoothing",),
        functions=("step_fn",),
        anything=("has_aux", "progress"),
        wrong=(
            *STOP,
            *HELD_BATCHES,
            Wrong({"state": ()}, ValueError, "state must have at least one array"),
            Wrong({"state": {"a": optax.sgd}}, TypeError, r"state\['a'\] must be an array, got"),
            Wrong({"steps_per_value": 2}, ValueError, "batches must .* at least 24, .* got 12"),
            Wrong({"values": np.ones(13)}, ValueError, "batches must .* at least 13, .* got 12"),
            Wrong({"values": 0.1}, ValueError, r"values must be one-dimensional .* shape \(\)"),
            Wrong({"values": np.ones(0)}, ValueError, "values must be .* not empty"),
            Wrong({"values": np.array([0.1, NAN])}, ValueError, "values must be finite"),
            *(
                Wrong({"values": np.array([0.1, size])}, ValueError, "become 0 in float32; got")
                for size in (1e300, -1e39, 1e-60)
            ),
            Wrong({"values": np.array([1j, 2j])}, TypeError, "values must be real"),
            Wrong({"values": ["a", "b"]}, TypeError, "values must be real"),
            Wrong({"values": [[0.1], [0.2, 0.3]]}, ValueError, "values must .* lists of one leng"),
            Wrong({"values": MASKED[0]}, ValueError, f"values {UNMASKED}"),
            Wrong({"values": SCHEDULE}, TypeError, r"values must be real.*schedule\(jnp.arange"),
            Wrong(returns(lambda s, b, v: s), TypeError, r"step_fn must return \(state, loss\)"),
            Wrong(
                returns(lambda s, b, v: step_fn(s, b, v)[::-1]),
                TypeError,
                r"step_fn must return \(state, loss\), in this order; .* the loss first",
            ),
            Wrong(
                returns(
                    lambda s, b, v: (
                        (step_fn(s[0], b, v)[0], jax.random.split(s[1])[0]),
                        loss_fn(PARAMS, b) + jax.random.normal(s[1]),
                    )
                )
                | {"state": (PARAMS, jax.random.key(0))},
                ValueError,
                "step_fn must return the loss of the state .* nothing in it. .* same name",
            ),
            Wrong(
                returns(lambda s, b, v: (step_fn(s, b, v)[0], loss_fn(PARAMS, b))),
                ValueError,
                "step_fn must return the loss of the state .* nothing in it. .* same name",
            ),
            *(
                Wrong(change, ValueError, "step_fn must train with the value .* does not depend")
                for change in (
                    returns(lambda s, b, v: step_fn(s, b, 0.1)),
                    # Only what is recorded reads it.
                    returns(lambda s, b, v: (step_fn(s, b, 0.1)[0], (loss_fn(s, b), {"rate": v})))
                    | {"has_aux": True},
                    # Only a part of the state that nothing else reads.
                    returns(lambda s, b, v: ((step_fn(s[0], b, 0.1)[0], v), loss_fn(s[0], b)))
                    | {"state": (PARAMS, jnp.float32(0))},
                )
            ),
            Wrong({"has_aux": True}, TypeError, "step_fn must return the pair .* has_aux=True"),
            *(
                Wrong(
                    {**returns(lambda s, b, v, m=m: (s, (ONE * v, {"m": m}))), "has_aux": True},
                    TypeError,
                    r"metrics\['m'\] must be numbers, which are recorded as floats, got",
                )
                for m in ("name", np.array("name"), np.array(None), print, jax.random.key(0))
            ),
            Wrong(returns(lambda s, b, v: (s, None)), TypeError, "step_fn must .* got NoneType"),
            Wrong(returns(lambda s, b, v: (s, s["out"])), ValueError, r"step_fn .*shape \(8,\)"),
            Wrong(
                returns(lambda s, b, v: (s["out"], ONE)),
                ValueError,
                r"a state of the structure it was given; it has lost state\['hidden'\]",
            ),
            Wrong(
                returns(lambda s, b, v: ({**s, "more": v}, ONE)),
                ValueError,
                r"step_fn .* it has gained state\['more'\]",
            ),
            Wrong(
                {"state": Pair(**PARAMS), **returns(lambda s, b, v: (tuple(s), ONE))},
                ValueError,
                "step_fn .* it has lost state.hidden",
            ),
            Wrong(
                returns(lambda s, b, v: (collections.OrderedDict(s), ONE)),
                ValueError,
                "step_fn .* its leaves have the same names, but .* became ",
            ),
            Wrong(
                returns(lambda s, b, v: ({**s, "out": s["out"] * 1j}, ONE)),
                ValueError,
                r"step_fn .* float32\[8\]; got complex64\[8\]. Cast it back",
            ),
            Wrong(
                returns(lambda s, b, v: ({**s, "out": s["out"][:1]}, ONE)),
                ValueError,
                r"keep shape and dtype of state\['out'\], float32\[8\]; got float32\[1\]",
            ),
            Wrong(returns(lambda s, b, v: s["no"]), KeyError, "was given the batch"),
        ),
    ),
    "range_test inside jax.jit": Entry(
        inside_jit(optax_clr.range_test),
        {
            "step_fn": step_fn, "state": PARAMS, "batches": BATCHES,
            "values": np.geomspace(1e-5, 0.1, NUM_STEPS), "progress": False,
        },
        wrong=INSIDE,
        anything=("step_fn", "state", "values"),
    ),
    "lr_range_test": Entry(
        optax_clr.lr_range_test,
        LR_RANGE_TEST,
        counts=("steps_per_value",),
        values=("smoothing",),
        positive=("min_lr", "max_lr"),
        functions=("loss_fn", "optimizer"),
        anything=("progress",),
        wrong=(
            Wrong(
                {"params": {"params": PARAMS, "batch_stats": PARAMS}},
                ValueError,
                r"params must be what is trained.*variables\['params'\]",
            ),
            *STOP, *HELD_BATCHES, *STREAMED_BATCHES, *LOSS, *TRAINING, *KEEPS_FIRST_RATE, *RATES,
            *NUM_STEPS_OF,
            Wrong(
                {"num_steps": 4, "steps_per_value": 4},
                ValueError,
                "num_steps=4 must be a multiple of steps_per_value=4, at least twice that",
            ),
            Wrong(
                {"steps_per_value": 5},
                ValueError,
                "num_steps=12 must be a multiple of steps_per_value=5",
            ),
            Wrong(
                {"num_steps": None, "steps_per_value": 7},
                ValueError,
                "num_steps must be given: of 12 steps, .* Pass num_steps=14 or more",
            ),
        ),
    ),
    "lr_range_test inside jax.jit": Entry(
        inside_jit(optax_clr.lr_range_test),
        {
            name: LR_RANGE_TEST[name]
            for name in ("loss_fn", "params", "optimizer", "batches", "progress")
        },
        wrong=INSIDE,
        anything=("loss_fn", "params", "optimizer"),
    ),
    # With a hyperparameter that is traced, and no array of which that can be told.
    "lr_range_test inside jax.vmap": Entry(
        inside_vmap(optax_clr.lr_range_test),
        {name: LR_RANGE_TEST[name] for name in ("loss_fn", "params", "batches", "progress")},
        wrong=INSIDE,
        anything=("loss_fn", "params"),
    ),
    "lr_grid_test": Entry(
        optax_clr.lr_grid_test,
        {**GRID, "num_values": 3},
        positive=("min_lr", "max_lr"),
        functions=("loss_fn", "optimizer"),
        wrong=(
            *HELD_BATCHES, *STREAMED_BATCHES, *LOSS, *TRAINING, *RATES, *NUM_STEPS_OF,
            *(Wrong({"num_values": bad}, kind, f"num_values must be .* got {bad!r}")
              for bad, kind in [(2.5, TypeError), (1, ValueError), (-5, ValueError)]),
            Wrong(
                {**STREAMED, "batches": iter(STREAM[:5])},
                ValueError,
                "num_steps=12 training steps, got 5; an iterator",
            ),
        ),
    ),
}  # fmt: skip


# ------------------------------------------------------------------------------ readings, figures

rates = jnp.geomspace(0.05, 5.0, 40)
valley = (jnp.log10(rates) - jnp.log10(0.5)) ** 2
RESULT = RangeTestResult(rates, valley, valley, jnp.int32(40))
MASKED = np.ma.masked_greater(np.asarray(valley), 0.5)
WRONG_FIGURES = (
    Wrong({"ax": Figure()}, TypeError, "ax must be Matplotlib Axes, got <?Figure"),
    Wrong({"rules": peer_rules.valley}, TypeError, "rules must be a list or a tuple of functions"),
    Wrong({"rules": "valley"}, TypeError, "rules must be a list or a tuple of .*got 'valley'"),
    Wrong({"rules": ["valley"]}, TypeError, r"rules\[0\] must be a function .*got 'valley'"),
)
READINGS = {
    **{
        f"RangeTestResult.{name}": Entry(
            lambda result, name=name: getattr(result, name)(),
            {"result": RESULT},
            wrong=(
                Wrong(
                    {"result": RESULT._replace(losses=valley[:-1])},
                    ValueError,
                    r"learning_rates and losses must have the same shape .*\(40,\) and \(39,\)",
                ),
                Wrong(
                    {"result": RESULT._replace(held_out_losses=valley[:-1])},
                    ValueError,
                    "learning_rates and losses must have the same shape",
                ),
                Wrong(
                    {"result": RESULT._replace(equivalent_steps=valley[:-1])},
                    ValueError,
                    r"equivalent_steps must have the shape of losses, \(40,\), got \(39,\)",
                ),
                Wrong(
                    {"result": RESULT._replace(equivalent_steps=valley.at[20].set(jnp.nan))},
                    ValueError,
                    "equivalent_steps must be finite where there are a rate and a loss, got nan",
                ),
                Wrong(
                    {"result": RESULT._replace(equivalent_steps=0 * valley)},
                    ValueError,
                    r"equivalent_steps must be positive, .* got 0\.0",
                ),
                Wrong(
                    {"result": RESULT._replace(losses=valley.astype(complex))},
                    TypeError,
                    "losses must be real numbers, got dtype complex",
                ),
                Wrong(
                    {"result": RESULT._replace(losses=MASKED)},
                    ValueError,
                    "losses must have no masked entries",
                ),
                Wrong(
                    {"result": RESULT._replace(num_valid=())},
                    TypeError,
                    r"num_valid must be an integer, or one for each curve, got \(\)",
                ),
                Wrong(
                    {"result": RESULT._replace(num_valid=np.ones(0, int))},
                    ValueError,
                    r"num_valid must have one entry for each curve, \(\), got the shape \(0,\)",
                ),
            ),
        )
        for name in ("suggest", "bounds", "one_cycle_peak", "summary")
    },
    **{
        f"peer_rules.{name}": Entry(
            getattr(peer_rules, name),
            {"learning_rates": rates, "losses": valley, **options},
            counts=("interval",) if options else (),
            positive=("threshold",) if options else (),
            wrong=(
                Wrong({"losses": valley[:-1]}, ValueError, r"same shape .*\(40,\) and \(39,\)"),
                Wrong({"learning_rates": 0.1, "losses": 2.0}, ValueError, "must have the same"),
                Wrong(
                    {"learning_rates": jnp.ones(0), "losses": jnp.ones(0)},
                    ValueError,
                    "losses must have at least .* rows, got 0",
                ),
                Wrong(
                    {"learning_rates": jnp.ones((0, 40)), "losses": jnp.ones((0, 40))},
                    ValueError,
                    "losses must have at least one curve",
                ),
                Wrong({"learning_rates": "a"}, TypeError, "learning_rates must be real numbers"),
                Wrong({"learning_rates": 0 * rates}, ValueError, "learning_rates must be positive"),
                Wrong(
                    {
                        "learning_rates": jnp.stack([rates, 2 * rates]),
                        "losses": jnp.stack([valley, valley]),
                    },
                    ValueError,
                    "learning_rates must be the same in all curves",
                ),
                Wrong({"losses": np.asarray(valley) * 1j}, TypeError, "losses must be real"),
                Wrong({"losses": MASKED}, ValueError, "losses must have no masked entries"),
                Wrong({"losses": [[1.0], []]}, ValueError, "losses must be .* lists of one length"),
            ),
        )
        for name in peer_rules.__all__
        for options in ({"interval": 9, "threshold": 0.1} if name == "slide" else {},)
    },
    "RangeTestResult.peak_for": Entry(
        lambda result, shape, num_steps: result.peak_for(shape, num_steps),
        {"result": RESULT, "shape": SCHEDULE, "num_steps": 5},
        counts=("num_steps",),
        functions=("shape",),
        wrong=(
            Wrong({"shape": lambda step: 0.0 * step}, ValueError, "shape must be a schedule of"),
            Wrong({"shape": lambda step: 1.0 - step}, ValueError, "none is negative"),
            Wrong({"shape": lambda step: 1.0 / step}, ValueError, "finite values"),
            Wrong({"shape": lambda step: 1.0 if step else 0.5}, ValueError, "jax.jit can trace"),
            Wrong({"shape": lambda step: step * jnp.ones(2)}, ValueError, "returned .* at step 0"),
            Wrong({"shape": lambda step: (step, step)}, ValueError, "returned .* at step 0"),
            Wrong({"shape": lambda step: 1j * step}, ValueError, "returned .* at step 0"),
            Wrong({"shape": stairs}, ValueError, POWER.format("shape")),
            Wrong({"shape": jax.random.key}, ValueError, "returned .* at step 0"),
            Wrong({"result": RESULT._replace(losses=valley[:-1])}, ValueError, "the same shape"),
        ),
    ),
    "RangeTestResult.plot": Entry(
        lambda result, ax, rules: result.plot(ax, rules),
        {"result": RESULT, "ax": Figure().add_subplot(), "rules": [peer_rules.minimum]},
        wrong=(
            Wrong({"result": RESULT._replace(losses=valley[:-1])}, ValueError, "the same shape"),
            *WRONG_FIGURES,
        ),
    ),
    "plotting.plot_range_test": Entry(
        plotting.plot_range_test,
        {"result": RESULT, "ax": Figure().add_subplot(), "rules": ()},
        wrong=(
            Wrong({"result": valley}, TypeError, "result must be a RangeTestResult, .*got"),
            Wrong({"result": None}, TypeError, "result must be a RangeTestResult, .*got None"),
            *WRONG_FIGURES,
        ),
    ),
    "plotting.plot_schedule": Entry(
        plotting.plot_schedule,
        {"schedule": SCHEDULE, "num_steps": 5, "ax": Figure().add_subplot()},
        counts=("num_steps",),
        functions=("schedule",),
        wrong=(
            Wrong({"ax": Figure()}, TypeError, "ax must be Matplotlib Axes, got <?Figure"),
            Wrong({"schedule": lambda step: (step, step)}, ValueError, "schedule must be a sched"),
            Wrong({"schedule": lambda step: math.sqrt(step)}, ValueError, "schedule must be a sch"),
            Wrong({"schedule": stairs}, ValueError, POWER.format("schedule")),
        ),
    ),
}

TABLE = {**SCHEDULES, **QUERIES, **HYPERPARAMS, **RANGE_TESTS, **READINGS}
CASES = [
    pytest.param(entry, wrong, id=f"{name}-{'-'.join(wrong.change)}-{number}")
    for name, entry in TABLE.items()
    for number, wrong in enumerate([*by_kind(entry), *entry.wrong])
]


@pytest.mark.parametrize(("entry", "wrong"), CASES)
def test_what_is_wrong_is_refused_and_named(entry, wrong):
    with pytest.raises(wrong.error, match=f"(?s){wrong.message}"):
        entry.function(**{**entry.good, **wrong.change})


@pytest.mark.parametrize("name", TABLE)
def test_the_call_that_is_changed_is_right(name):
    entry = TABLE[name]
    entry.function(**entry.good)


@pytest.mark.parametrize(
    ("name", "argument"), [(name, arg) for name, entry in TABLE.items() for arg in entry.counts]
)
def test_a_traced_count_is_refused_with_its_remedy(name, argument):
    entry = TABLE[name]
    with pytest.raises(
        TypeError, match=f"{argument} must be .* got a traced value. .*static_argnames"
    ):
        jax.jit(lambda count: entry.function(**{**entry.good, argument: count}))(5)


@pytest.mark.parametrize(
    ("name", "argument"),
    [(name, arg) for name, entry in TABLE.items() for arg in (*entry.values, *entry.positive)],
)
def test_a_traced_value_that_is_no_scalar_is_refused(name, argument):
    entry = TABLE[name]
    with pytest.raises(ValueError, match=f"{argument} must be a scalar.* Use jax.vmap"):
        jax.jit(lambda value: entry.function(**{**entry.good, argument: value}))(jnp.ones(3))


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("one_cycle_schedule", "rise_fraction"),
        ("triangular_schedule", "base_value"),
        ("per_epoch_schedule", "schedule"),
        ("exponential", "gamma"),
        ("Cycles", "mult"),
    ],
)
def test_a_message_does_not_print_what_jax_calls_a_traced_value(name, argument):
    entry = TABLE[name]
    with pytest.raises(TypeError, match=f"{argument} must be .* got a traced value"):
        jax.jit(lambda value: entry.function(**{**entry.good, argument: value}))(jnp.bool_(True))


def test_every_public_function_and_argument_is_in_the_table():
    public = {name: value for name, value in vars(optax_clr).items() if not name.startswith("_")}
    for module in (peer_rules, plotting):
        prefix = module.__name__.rpartition(".")[2]
        public |= {f"{prefix}.{name}": getattr(module, name) for name in module.__all__}
    is_tuple = lambda value: isinstance(value, type) and issubclass(value, (tuple, Exception))
    functions = {name for name, value in public.items() if callable(value) and not is_tuple(value)}
    assert functions <= TABLE.keys()
    for name, entry in TABLE.items():
        wrong = {argument for each in entry.wrong for argument in each.change}
        kinds = entry.counts + entry.values + entry.positive + entry.functions + entry.steps
        covered = wrong | {*kinds, *entry.anything}
        if name in functions - {"inject_schedules", "set_hyperparams"}:
            assert covered == {*inspect.signature(public[name]).parameters}, name
        assert covered == entry.good.keys(), name


# ---------------------------------------------------------------------------------- results files


@pytest.fixture
def saved(tmp_path):
    """The bytes of a result that was saved, and a function that reads others in their place."""
    path = tmp_path / "result.npz"
    np.savez(path, **RESULT._asdict())

    def read(content):
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return RangeTestResult(**file)

    return path.read_bytes(), read


def test_a_result_is_read_as_it_was_saved(saved):
    content, read = saved
    for column, expected in zip(read(content), RESULT, strict=True):
        np.testing.assert_array_equal(column, expected)
    assert read(content).bounds() == RESULT.bounds()


# What NumPy, zipfile and the result itself raise of a file that is none.
REFUSED = (ValueError, TypeError, KeyError, EOFError, OSError, zipfile.BadZipFile)


def test_a_file_that_is_cut_anywhere_is_refused(saved):
    content, read = saved
    for length in [*range(0, len(content), 7), len(content) - 1]:
        with pytest.raises(REFUSED):
            read(content[:length])


def test_a_file_with_a_changed_byte_is_refused_or_the_same(saved):
    content, read = saved
    num_refused = 0
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 0x55
        try:
            result = read(bytes(changed))
        except (*REFUSED, NotImplementedError, RuntimeError):
            num_refused += 1
        else:  # dates and the like
            for column, expected in zip(result, RESULT, strict=True):
                np.testing.assert_array_equal(column, expected)
    assert num_refused > 100


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"learning_rate,loss\n0.1,2.0\n",
        pickle.dumps({"losses": [1.0, 2.0]}),
        pickle.dumps(tuple(RESULT)),
    ],
)
def test_a_file_of_another_kind_is_refused(content, saved):
    with pytest.raises(REFUSED):
        saved[1](content)


def test_another_archive_is_refused_and_a_pickle_in_one_is_not_run(tmp_path, saved):
    class Malicious:
        def __reduce__(self):
            return (tmp_path / "was_run").touch, ()

    other = tmp_path / "other.npz"
    columns = RESULT._asdict()
    without = {name: column for name, column in columns.items() if name != "losses"}
    for content, message in [
        ({"weights": np.ones(3)}, "unexpected keyword argument 'weights'"),
        (without, "missing 1 required positional argument: 'losses'"),
        ({**columns, "metrics": np.array([Malicious()])}, "Object arrays cannot be loaded"),
    ]:
        np.savez(other, **content)
        with pytest.raises((TypeError, ValueError), match=message):
            saved[1](other.read_bytes())
    assert not (tmp_path / "was_run").exists()


class WithoutWords:
    def __repr__(self):
        raise RuntimeError("no words")


@pytest.mark.parametrize("value", [{1: 2, "a": 3}, WithoutWords()], ids=["unordered keys", "repr"])
def test_the_error_is_of_the_argument_whatever_its_value(value):
    state = optax_clr.inject_schedules(optax.sgd)(jnp.float32(0.1)).init(PARAMS)
    calls = {
        "steps": lambda: Cycles(value),
        "peak_value": lambda: optax_clr.triangular_schedule(0.0, value, 2),
        "step": lambda: optax_clr.triangular_schedule(0.0, 1.0, 2)(value),
        "learning_rate": lambda: optax_clr.set_hyperparams(state, learning_rate=value),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"{name}(=| must)"):
            call()


@pytest.mark.parametrize("name", ["params", "batches", "held_out"])
def test_what_was_donated_is_named(name):
    given = {
        "params": {"w": jnp.ones(3)},
        "batches": {"rows": jnp.ones((8, 4, 3))},
        "held_out": {"rows": jnp.ones((4, 3))},
    }
    loss_fn = lambda params, batch: jnp.mean((batch["rows"] @ params["w"] - 1) ** 2)
    test = functools.partial(optax_clr.lr_range_test, loss_fn, optimizer=optax.sgd, max_lr=1e-3)
    test(**given)
    jax.tree.leaves(given[name])[0].delete()
    with pytest.raises(ValueError, match=rf"{name}\['(w|rows)'\] must still be there.*donated"):
        test(**given)


@pytest.mark.parametrize("ask", [float, np.asarray, bool, lambda loss: loss.item()])
def test_a_loss_that_asks_for_a_value_is_told_that_it_is_traced(ask):
    def loss_fn(params, batch):
        loss = jnp.mean((batch @ params - 1) ** 2)
        ask(loss)
        return loss

    with pytest.raises(Exception, match=r"[Tt]rac") as caught:
        optax_clr.lr_range_test(loss_fn, jnp.ones(3), optax.sgd, jnp.ones((8, 4, 3)))
    assert any("write them with jax.numpy" in note for note in caught.value.__notes__)


def test_a_note_of_many_arrays_is_short():
    pair = np.ones((32, 3)), np.ones(32)
    batches = tuple(pair for _ in range(300))  # where a list is meant

    def loss_fn(params, batch):
        inputs, targets = batch
        return jnp.mean((inputs @ params - targets) ** 2)

    with pytest.raises(ValueError, match="too many values to unpack") as caught:
        optax_clr.lr_range_test(loss_fn, jnp.ones(3), optax.sgd, batches)
    assert "and 580 more. The leading axis" in caught.value.__notes__[0]
    assert len(caught.value.__notes__[0]) < 1000


def test_another_optimizer_in_a_train_state_is_named():
    params = {"w": jnp.ones(3)}
    state = TrainState.create(apply_fn=None, params=params, tx=optax.sgd(0.1))

    def step_fn(state, batch, rate):
        loss_of = lambda params: jnp.mean((batch @ params["w"] - 1) ** 2)
        loss, gradients = jax.value_and_grad(loss_of)(state.params)
        return state.replace(tx=optax.sgd(rate)).apply_gradients(grads=gradients), loss

    message = "a TrainState has another static part, such as the tx .* set_hyperparams"
    with pytest.raises(ValueError, match=message) as caught:
        optax_clr.range_test(step_fn, state, jnp.ones((8, 4, 3)), np.geomspace(1e-3, 1e-2, 8))
    assert len(str(caught.value)) < 1200


def test_an_optimizer_that_reads_its_rate_once_is_told_of_the_grid_test():
    arguments = (
        lambda params, batch: jnp.mean((batch @ params - 1) ** 2),
        jnp.ones(3),
        optax.rprop,
        jnp.ones((8, 4, 3)),
    )
    with pytest.raises(ValueError, match=r"optax\.rprop, is tested by lr_grid_test"):
        optax_clr.lr_range_test(*arguments)
    assert np.isfinite(optax_clr.lr_grid_test(*arguments, num_values=2).losses).all()
