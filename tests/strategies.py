"""What the fuzzing tests draw from: sizes, values, steps in every form, schedules, curves."""

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import exact
import optax_clr

LAST = 2**31 - 1
# XLA's smallest normal float32; what is below is 0 there.
TINY = 2.0**-126


def cases(share):
    """Settings for a part of the profile's examples: what compiles, or is slow, gets fewer."""
    return hypothesis.settings(max_examples=math.ceil(share * hypothesis.settings().max_examples))


def x64():
    """64-bit types on, as a context; the name changed in JAX 0.8."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    return jax.experimental.enable_x64()


# ----------------------------------------------------------------------------- numbers and steps

lengths = st.one_of(
    st.integers(1, 20), st.integers(1, 10_000), st.integers(1, 2**30 - 1), st.just(2**30 - 1)
)
any_step = st.one_of(
    st.integers(0, 50),
    st.integers(0, 10_000),
    st.integers(0, LAST),
    st.sampled_from([2**24 - 1, 2**24 + 1, LAST - 1, LAST]),
)


def float32s(low, high):
    """Positive float32 values, every magnitude alike."""
    exponents = st.floats(math.log10(low), math.log10(high))
    return exponents.map(lambda exponent: float(np.float32(10.0**exponent)))


positive = st.one_of(float32s(1e-6, 10.0), float32s(1e-30, 1e30), st.just(1.0))
# As schedules take them: rates, momenta, zero, and what the literature has no name for.
values = st.one_of(positive, positive, st.just(0.0), positive.map(lambda value: -value))


@st.composite
def multiples(draw):
    """(mult, num_cycles), legal together and of at most a few thousand unequal cycles."""
    mult = draw(
        st.one_of(
            st.sampled_from([1, 1, 1.0, 2, 3, 10, LAST, 1.5, 1.01, 0.99, 0.5, 1e-9]),
            st.floats(0.3, 0.99),
            st.floats(1.01, 4.0),
        )
    )
    few = st.integers(1, 60)
    if mult < 1:
        return mult, draw(few)
    many = LAST if mult == 1 else min(400, 1 + int(900 / math.log2(mult)))
    return mult, draw(st.one_of(st.none(), few.filter(many.__ge__), st.integers(1, many)))


@st.composite
def steps_near(draw, moments, count=6):
    """``count`` steps anywhere and within three of some moments."""
    near = st.tuples(st.sampled_from(moments), st.integers(-3, 3)).map(sum)
    steps = draw(st.lists(st.one_of(any_step, near), min_size=count, max_size=count))
    return [min(max(step, 0), LAST) for step in steps]


INTEGER_DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


# ------------------------------------------------------------------------------------- schedules


class Spec(NamedTuple):
    """A schedule as a function of its values, and the same in exact arithmetic.

    Attributes:
      text: for the report of a failure.
      build: from the values to the schedule.
      values: as many numbers.
      exact: ``(step, *values) -> Decimal``.
      moments: steps near which it turns or restarts.
      rtol: the relative error that is promised.
      own: whether a function of the user's is in it, of which the library cannot know how far it
        is below 1: near the smaller value the error is then relative to the larger one.
      from_zero: whether it moves between its values and 0.
    """

    text: str
    build: Callable
    values: tuple
    exact: Callable
    moments: list
    rtol: float = 1e-6
    own: bool = False
    from_zero: bool = False

    def __repr__(self):
        return f"{self.text} of {self.values}"


def squared(height):
    """A wave of the user's own."""
    return height**2


def harmonic(cycle, step):
    """An envelope of the user's own."""
    return 1 / (1 + jnp.asarray(cycle, jnp.float32))


WAVES = {
    optax_clr.waves.linear: exact.linear,
    optax_clr.waves.cosine: exact.cosine,
    optax_clr.waves.welch: exact.welch,
    squared: lambda height: exact.as_decimal(Fraction(height) ** 2),
}


@st.composite
def envelopes(draw):
    """(envelope, the same in decimals, text, relative error)."""
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return None, None, "None", 1e-6
    if kind == 1:
        return (
            optax_clr.envelopes.halving,
            lambda cycle, step: Decimal(2) ** -cycle,
            "halving",
            1e-6,
        )
    if kind == 2:
        return harmonic, lambda cycle, step: 1 / (1 + Decimal(cycle)), "harmonic", 1e-6
    gamma = draw(
        st.one_of(st.floats(1e-9, 0.5).map(lambda loss: 1 - loss), st.floats(1e-4, 1), st.just(1.0))
    )
    power = lambda cycle, step: exact.as_decimal(gamma) ** step
    return optax_clr.envelopes.exponential(gamma), power, f"exponential({gamma})", 2e-6


@st.composite
def cyclical(draw):
    base, peak = draw(values), draw(values)
    rise = draw(lengths)
    fall = draw(st.one_of(st.none(), lengths))
    wave = draw(st.sampled_from(list(WAVES)))
    envelope, scale, text, rtol = draw(envelopes())
    mult, num_cycles = draw(multiples())
    options = {"wave": wave, "envelope": envelope, "mult": mult, "num_cycles": num_cycles}
    fall_steps = rise if fall is None else fall

    def oracle(step, base, peak):
        if mult != 1 or num_cycles is None:
            return exact.cyclical(
                step, base, peak, rise, fall_steps, WAVES[wave], scale, mult, num_cycles
            )
        # It would count a billion cycles one by one; every wave here ends at the base.
        if step >= num_cycles * (rise + fall_steps):
            return exact.as_decimal(base)
        return exact.cyclical(step, base, peak, rise, fall_steps, WAVES[wave], scale)

    return Spec(
        text=f"cyclical_schedule(*values, {rise}, {fall}, wave={wave.__name__}, envelope={text}, "
        f"mult={mult!r}, num_cycles={num_cycles})",
        build=lambda base, peak: optax_clr.cyclical_schedule(base, peak, rise, fall, **options),
        values=(base, peak),
        exact=oracle,
        moments=[*exact.boundaries(rise + fall_steps, mult, num_cycles), rise],
        rtol=rtol,
        own=wave is squared or envelope is harmonic,
    )


@st.composite
def named(draw):
    """Smith's three."""
    base, peak = draw(values), draw(values)
    rise = draw(lengths)
    fall = draw(st.one_of(st.none(), lengths))
    name = draw(st.sampled_from(["triangular", "triangular2", "exp_range"]))
    factory = getattr(optax_clr, f"{name}_schedule")
    gamma = draw(st.floats(0.9, 1.0)) if name == "exp_range" else None
    scale = {
        "triangular": None,
        "triangular2": lambda cycle, step: Decimal(2) ** -cycle,
        "exp_range": lambda cycle, step: exact.as_decimal(gamma) ** step,
    }[name]
    options = {} if gamma is None else {"gamma": gamma}
    fall_steps = rise if fall is None else fall
    return Spec(
        text=f"{name}_schedule(*values, {rise}, {fall}, **{options})",
        build=lambda base, peak: factory(base, peak, rise, fall, **options),
        values=(base, peak),
        exact=lambda step, base, peak: exact.cyclical(
            step, base, peak, rise, fall_steps, scale=scale
        ),
        moments=[*exact.boundaries(rise + fall_steps), rise],
        rtol=1e-6 if gamma is None else 2e-6,
    )


@st.composite
def warm_restarts(draw):
    decay = draw(st.one_of(st.just(1.0), float32s(0.01, 1.0)))
    base, peak = draw(values), draw(values)
    if decay != 1:
        base, peak = sorted([abs(base), abs(peak)])
    steps = draw(st.one_of(lengths, st.just(LAST)))
    mult, num_cycles = draw(multiples())
    shortest = max(1, round(steps * mult ** (num_cycles - 1))) if mult < 1 else steps
    warmup = draw(st.one_of(st.just(0), st.integers(0, shortest - 1), st.just(shortest - 1)))
    options = {
        "mult": mult, "num_cycles": num_cycles, "peak_decay": decay, "warmup_steps": warmup
    }  # fmt: skip

    def oracle(step, base, peak):
        if peak < base:  # which only a peak that decays may not be: the same upside down
            return -oracle(step, -base, -peak)
        return exact.warm_restarts(step, peak, steps, base, mult, decay, warmup, num_cycles)

    return Spec(
        text=f"warm_restarts_schedule(peak_value, {steps}, base_value=base_value, **{options})",
        build=lambda base, peak: optax_clr.warm_restarts_schedule(
            peak, steps, base_value=base, **options
        ),
        values=(base, peak),
        exact=oracle,
        moments=[*exact.boundaries(steps, mult, num_cycles), warmup],
        rtol=1e-6 if decay == 1 else 2e-6,
    )


@st.composite
def one_cycle(draw):
    total = draw(st.one_of(st.integers(1, 3), lengths, st.just(LAST)))
    three_phase = draw(st.booleans())
    most = 0.5 if three_phase else 1.0
    fraction = draw(st.one_of(st.sampled_from([0, 0.0, most, 0.3]), st.floats(0, most)))
    wave = draw(st.sampled_from(list(WAVES)))
    top = fraction * total - 1
    options = {"rise_fraction": fraction, "three_phase": three_phase}

    def oracle(step, init, peak, end):
        if fraction:
            return exact.one_cycle(step, init, peak, end, total, fraction, WAVES[wave], three_phase)
        # No rise: what is left is the last phase, from the first step on.
        if step >= total - 1:
            return exact.as_decimal(end)
        height = WAVES[wave](1 - Fraction(step, total - 1))
        high = init if three_phase else peak
        return exact.as_decimal(end) + exact.as_decimal(Fraction(high) - Fraction(end)) * height

    return Spec(
        text=f"one_cycle_schedule(*values, {total}, wave={wave.__name__}, **{options})",
        build=lambda init, peak, end: optax_clr.one_cycle_schedule(
            peak, total, init_value=init, end_value=end, wave=wave, **options
        ),
        values=(draw(values), draw(values), draw(values)),
        exact=oracle,
        moments=[0, int(top), int(2 * top), total],
        own=wave is squared,
    )


@st.composite
def warmup_stable_decay(draw):
    total = draw(st.one_of(st.integers(1, 3), lengths, st.just(LAST)))
    warmup = draw(st.one_of(st.just(0), st.integers(0, total)))
    rest = total - warmup
    decay = draw(st.one_of(st.sampled_from([0, rest]), st.integers(0, rest)))
    rising, falling = draw(st.sampled_from(list(WAVES))), draw(st.sampled_from(list(WAVES)))
    counts = {"warmup_steps": warmup, "decay_steps": decay}
    return Spec(
        text=f"warmup_stable_decay_schedule(*values, {total}, **{counts}, "
        f"warmup_wave={rising.__name__}, decay_wave={falling.__name__})",
        build=lambda peak, end: optax_clr.warmup_stable_decay_schedule(
            peak, total, end_value=end, warmup_wave=rising, decay_wave=falling, **counts
        ),
        values=(draw(values), draw(values)),
        exact=lambda step, peak, end: exact.warmup_stable_decay(
            step, peak, end, total, warmup, decay, WAVES[rising], WAVES[falling]
        ),
        moments=[0, warmup, total - decay, total],
        own=squared in (rising, falling),
        from_zero=True,
    )


@st.composite
def of_epochs(draw, specs):
    """The same, of the epoch."""
    spec, epoch = draw(specs), draw(lengths)
    return spec._replace(
        text=f"per_epoch_schedule({spec.text}, {epoch})",
        build=lambda *values: optax_clr.per_epoch_schedule(spec.build(*values), epoch),
        exact=lambda step, *values: spec.exact(step // epoch, *values),
        moments=[moment * epoch for moment in spec.moments],
    )


_plain = st.one_of(cyclical(), named(), warm_restarts(), one_cycle(), warmup_stable_decay())
schedules = st.one_of(_plain, _plain, of_epochs(_plain))


# ---------------------------------------------------------------------------------------- curves

ROWS = 60


@st.composite
def scripts(draw, num_rows=ROWS):
    """Losses of a range test that someone might run, and some that nobody should: f32[num_rows]."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    row = np.arange(num_rows)
    bottom = draw(st.integers(0, num_rows))
    width = draw(st.floats(1.0, num_rows))
    losses = 2 - draw(st.floats(0, 1.5)) * np.exp(-(((row - bottom) / width) ** 2))
    losses += draw(st.sampled_from([0.0, 1e-4, 0.02, 0.5])) * rng.normal(size=num_rows)
    end = draw(st.integers(0, 2 * num_rows))
    losses += np.exp(np.clip(draw(st.floats(0.01, 2)) * (row - end), -60, 40)) * (row >= end)
    for _ in range(draw(st.integers(0, 2))):  # plateaus, spikes
        start, length = draw(st.integers(0, num_rows)), draw(st.integers(1, num_rows))
        losses[start : start + length] = draw(st.floats(-3, 3))
        losses[draw(st.integers(0, num_rows - 1))] += draw(st.sampled_from([-5.0, 3.0, 100.0]))
    losses += draw(st.sampled_from([0.0, 0.0, -2.0, -30.0, 10.0]))
    losses *= draw(st.sampled_from([1.0, 1.0, 1.0, -1.0, 2.0**-40, 2.0**40]))
    if draw(st.booleans()):
        losses[draw(st.integers(0, num_rows - 1))] = draw(
            st.sampled_from([math.nan, math.inf, -math.inf])
        )
    # A shorter curve is one that stops.
    losses[draw(st.one_of(st.just(num_rows), st.integers(0, num_rows))) :] = math.nan
    return losses.astype(np.float32)
