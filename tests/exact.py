"""The schedules once more, from the papers' formulas, in exact rationals: an oracle for tests.

Nothing here is shared with the library: cycles are found by walking them, heights are fractions,
and only the transcendental waves and powers are rounded, to 50 decimal digits.
"""

from decimal import Decimal, getcontext
from fractions import Fraction

import numpy as np

getcontext().prec = 50
PI = Decimal("3.1415926535897932384626433832795028841971693993751058209749445923")


def as_decimal(number):
    number = Fraction(number)
    return Decimal(number.numerator) / Decimal(number.denominator)


def as_float32(number):
    """The rational that a float32 parameter really is."""
    return Fraction(float(np.float32(number)))


def sine(x):
    """Taylor series; |x| is at most pi / 2."""
    term = total = x
    k = 1
    while abs(term) > Decimal(10) ** -48:
        term = -term * x * x / ((k + 1) * (k + 2))
        total += term
        k += 2
    return total


def linear(height):
    return as_decimal(height)


def cosine(height):
    return sine(PI / 2 * as_decimal(height)) ** 2


def welch(height):
    return as_decimal(1 - (1 - Fraction(height)) ** 2)


def locate(step, steps, mult=1, num_cycles=None):
    """(cycle, position, length), the last cycle's end for every step after it."""
    if mult == 1:
        cycle = step // steps
        if num_cycles is not None and cycle >= num_cycles:
            return num_cycles - 1, steps, steps
        return cycle, step % steps, steps
    start = cycle = 0
    while True:
        length = max(1, round(steps * mult**cycle))
        if step < start + length:
            return cycle, step - start, length
        if num_cycles is not None and cycle == num_cycles - 1:
            return cycle, length, length
        start, cycle = start + length, cycle + 1


def boundaries(steps, mult=1, num_cycles=None, limit=2**31):
    """First steps of the cycles up to ``limit``, thinned to at most 200."""
    if mult == 1:
        count = limit // steps if num_cycles is None else min(num_cycles, limit // steps)
        return [steps * cycle for cycle in range(0, count + 1, max(1, count // 200))]
    starts = [0]
    while starts[-1] < limit and len(starts) - 1 != num_cycles and len(starts) < 4000:
        starts.append(starts[-1] + max(1, round(steps * mult ** (len(starts) - 1))))
    return starts[:: max(1, len(starts) // 200)]


def cyclical(step, base, peak, rise, fall, wave=linear, scale=None, mult=1, num_cycles=None):
    """``scale(cycle, step)`` is a Decimal."""
    cycle, position, length = locate(step, rise + fall, mult, num_cycles)
    x, r = Fraction(position, length), Fraction(rise, rise + fall)
    height = x / r if x <= r else (1 - x) / (1 - r)
    if num_cycles is not None:
        last, _, _ = locate(2**40, rise + fall, mult, num_cycles)
        total = sum(max(1, round((rise + fall) * mult**i)) for i in range(last + 1))
        step = min(step, total)
    amplitude = wave(height) * (1 if scale is None else scale(cycle, step))
    return as_decimal(base) + as_decimal(Fraction(peak) - Fraction(base)) * amplitude


def warm_restarts(step, peak, steps, base, mult, decay, warmup, num_cycles):
    cycle, position, length = locate(step, steps, mult, num_cycles)
    top = max(as_decimal(peak) * as_decimal(decay) ** cycle, as_decimal(base))
    if position < warmup:
        height = linear(Fraction(position, warmup))
    else:
        height = cosine(Fraction(length - position, length - warmup))
    return as_decimal(base) + (top - as_decimal(base)) * height


def one_cycle(step, init, peak, end, total, rise_fraction, wave, three_phase):
    """Torch's phases, and the end value after them."""
    last = Fraction(total - 1)
    # Rounded as torch rounds it, in float64: which phase a step falls in depends on it.
    top = Fraction(rise_fraction * total - 1)
    phases = [(Fraction(0), top, init, peak, True), (top, last, end, peak, False)]
    if three_phase:
        middle = Fraction(2 * (rise_fraction * total) - 2)
        phases[1:] = [(top, middle, init, peak, False), (middle, last, end, init, False)]
    for start, finish, low, high, rises in phases:
        if start < finish and step <= finish:
            done = (step - start) / (finish - start)
            height = wave(done if rises else 1 - done)
            return as_decimal(low) + as_decimal(Fraction(high) - Fraction(low)) * height
    return as_decimal(end)


def warmup_stable_decay(step, peak, end, total, warmup, decay, rising=linear, falling=linear):
    """Three pieces and the end; ``rising`` and ``falling`` are the waves."""
    if step < warmup:
        return as_decimal(peak) * rising(Fraction(step, warmup))
    if step < total - decay:
        return as_decimal(peak)
    if step >= total:
        return as_decimal(end)
    height = falling(1 - Fraction(step - (total - decay), decay))
    return as_decimal(end) + as_decimal(Fraction(peak) - Fraction(end)) * height
