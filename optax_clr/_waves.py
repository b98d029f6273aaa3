"""Shapes of a cycle: waves, from height to height, and envelopes of the amplitude."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from optax_clr._arguments import as_step, float_dtype, function, known_float, real_scalar, shown

Wave = Callable[[jax.Array], ArrayLike]
Envelope = Callable[[jax.Array, jax.Array], ArrayLike]


# ------------------------------------------------------------------------------------------ waves


def linear(height: jax.Array) -> jax.Array:
    r"""Return the height itself: the triangle of Smith.

    .. math:: w(h) = h

    Args:
      height: float of any shape in [0, 1]; 0 at the base, 1 at the peak, linear in steps.

    Returns:
      The shaped height in [0, 1], same shape and dtype.

    Examples:
      >>> print(linear(jnp.array([0.0, 0.5, 1.0])))
      [0.  0.5 1. ]

    References:
      Smith, `Cyclical Learning Rates <https://arxiv.org/abs/1506.01186>`_, 2017, section 3.
    """
    return height


def cosine(height: jax.Array) -> jax.Array:
    r"""Return the height along half a cosine; up and down together are the Hann window.

    .. math:: w(h) = \tfrac12 (1 - \cos \pi h) = \sin^2 (\pi h / 2)

    Args:
      height: float of any shape in [0, 1]; 0 at the base, 1 at the peak, linear in steps.

    Returns:
      The shaped height in [0, 1], same shape and dtype.

    Examples:
      >>> [f"{cosine(jnp.float32(height)):.3f}" for height in (0.0, 0.25, 0.5, 1.0)]
      ['0.000', '0.146', '0.500', '1.000']

    References:
      Loshchilov and Hutter, `SGDR <https://arxiv.org/abs/1608.03983>`_, 2017, equation 5.
    """
    # 1 - cos would lose its digits near the base, where the rate is small.
    return jnp.square(jnp.sin(height * (math.pi / 2)))


def welch(height: jax.Array) -> jax.Array:
    r"""Return the height along a parabola, steep at the base and flat at the peak.

    .. math:: w(h) = 1 - (1 - h)^2 = h (2 - h)

    Args:
      height: float of any shape in [0, 1]; 0 at the base, 1 at the peak, linear in steps.

    Returns:
      The shaped height in [0, 1], same shape and dtype.

    Examples:
      >>> print(welch(jnp.array([0.0, 0.5, 1.0])))
      [0.   0.75 1.  ]

    References:
      Smith, `Cyclical Learning Rates <https://arxiv.org/abs/1506.01186>`_, 2017, section 3.
    """
    return height * (2 - height)


# 1 - wave(height), written in the depth 1 - height so that it keeps its digits near the peak: a
# momentum, or a rate that starts high, has its small values there.
_COMPLEMENTS: tuple[tuple[Wave, Wave], ...] = (
    (linear, linear),
    (cosine, cosine),
    (welch, jnp.square),
)


def _complement_of(wave: Wave) -> Wave | None:
    # Found by identity: a function of the user's may not be hashable.
    return next((complement for known, complement in _COMPLEMENTS if known is wave), None)


# -------------------------------------------------------------------------------------- envelopes


def halving(cycle: jax.Array, step: jax.Array) -> jax.Array:
    r"""Return the amplitude that halves after every cycle, the envelope of ``triangular2``.

    .. math:: e(i, t) = 2^{-i}

    Args:
      cycle: int32 of any shape, the cycle counted from 0.
      step: int32 of the same shape, not used.

    Returns:
      float32 of the same shape in (0, 1]; 0 once it is below the smallest normal float.

    Examples:
      >>> print(halving(jnp.arange(4), jnp.arange(4)))
      [1.    0.5   0.25  0.125]

    References:
      Smith, `Cyclical Learning Rates <https://arxiv.org/abs/1506.01186>`_, 2017, section 3.
    """
    del step
    # The bits of the float with that exponent: exact, where XLA's exp2 is not.
    exponent_bits = jnp.maximum(127 - as_step(cycle, "cycle"), 0) << 23
    return lax.bitcast_convert_type(exponent_bits, jnp.float32)


class exponential:  # noqa: N801 (used as a function)
    r"""Return the envelope that decays with every step, as in ``exp_range``.

    .. math:: e(i, t) = \gamma^t

    The logarithm of a ``gamma`` known when the object is built is taken in float64 and the power
    is right to a few float32 roundings at every step; that of a traced ``gamma`` is a float32,
    and the power is then right to about ``1e-7 * abs(t * log(gamma))``.

    Args:
      gamma: positive scalar, may be traced; a little below 1.

    Raises:
      TypeError: if ``gamma`` is not a real number.
      ValueError: if it is not positive, finite and a scalar.

    Examples:
      >>> envelope = exponential(0.9)
      >>> [f"{envelope(0, t):.3f}" for t in range(4)]
      ['1.000', '0.900', '0.810', '0.729']

    References:
      Smith, `Cyclical Learning Rates <https://arxiv.org/abs/1506.01186>`_, 2017, section 3.
    """

    def __init__(self, gamma: ArrayLike) -> None:
        self.gamma = real_scalar("gamma", gamma, positive=True)

    def __repr__(self) -> str:
        return f"exponential({shown(self.gamma)})"

    def __call__(self, cycle: ArrayLike, step: ArrayLike) -> jax.Array:
        """Return ``gamma ** step``: a float of the shape of ``step``; ``cycle`` is not used."""
        del cycle
        return self.power_and_complement(step, float_dtype(self.gamma))[0]

    def power_and_complement(
        self, step: ArrayLike, dtype: DTypeLike
    ) -> tuple[jax.Array, jax.Array]:
        """Return ``gamma ** step`` and ``1 - gamma ** step``, without cancellation at small steps.

        The exponent is kept as a float and what its rounding leaves over: halves of the step times
        the head of the logarithm, 16 by 8 bits, are exact in float32.
        """
        step = as_step(step)
        head, tail = self._logarithm(dtype)
        lower_half = step & 0xFFFF
        upper = (step - lower_half).astype(dtype) * head
        lower = lower_half.astype(dtype) * head
        exponent = upper + lower
        rounding = lower - (exponent - upper)  # exact: upper is the larger one, or 0
        # The rest is under 1% of the exponent; the bound only matters where the power is 0 anyway.
        rest = jnp.expm1(jnp.clip(rounding + step.astype(dtype) * tail, -8, 8))
        power = jnp.exp(exponent)
        return power * (1 + rest), -jnp.expm1(exponent) - power * rest

    def _logarithm(self, dtype: DTypeLike) -> tuple[ArrayLike, ArrayLike]:
        """Return the logarithm of gamma as a head of 8 significant bits and the tail."""
        known_gamma = known_float(self.gamma)
        if known_gamma is None:
            gamma = jnp.asarray(self.gamma, dtype)
            # Near 1 the difference is exact, and the logarithm right in its last digits.
            logarithm = jnp.where(gamma > 0.5, jnp.log1p(gamma - 1), jnp.log(gamma))
            exponent_bits = 8 if dtype == jnp.float32 else 11
            traced_head = lax.reduce_precision(logarithm, exponent_bits, 7)
            return traced_head, logarithm - traced_head
        exact = math.log(known_gamma)
        mantissa, exponent = math.frexp(exact)
        head = math.ldexp(round(mantissa * 2**8), exponent - 8)
        return jnp.asarray(head, dtype), jnp.asarray(exact - head, dtype)


# --------------------------------------------------------------------------- heights and depths


def check_wave(wave: Any) -> Wave:
    """Return ``wave`` if it maps heights to as many numbers."""
    checked: Wave = function("wave", wave, form="height -> height")
    if _complement_of(checked) is None:
        _check_result("wave", checked, np.zeros(2, np.float32))
    return checked


def check_envelope(envelope: Any) -> Envelope:
    """Return ``envelope`` if it maps cycles and steps to as many numbers."""
    checked: Envelope = function("envelope", envelope, form="(cycle, step) -> scale")
    if checked is not halving and not isinstance(checked, exponential):
        counts = np.zeros(2, np.int32)
        _check_result("envelope", checked, counts, counts)
    return checked


def _check_result(name: str, shape: Callable[..., Any], *arguments: np.ndarray) -> None:
    allowed = f"{name} must be a function of arrays, one number for each; {shape!r}"
    try:
        result = jax.eval_shape(shape, *arguments)
    except Exception as error:
        raise ValueError(f"{allowed} failed: {error}") from error
    if not isinstance(result, jax.ShapeDtypeStruct) or result.shape not in ((), (2,)):
        raise ValueError(f"{allowed} maps arrays of shape (2,) to {result}.")


def shaped(wave: Wave, height: jax.Array, depth: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return ``wave(height)`` and ``1 - wave(height)``."""
    up = jnp.broadcast_to(jnp.asarray(wave(height), height.dtype), height.shape)
    complement = _complement_of(wave)
    return up, 1 - up if complement is None else jnp.asarray(complement(depth))


def scaled(
    envelope: Envelope | None, cycle: jax.Array, step: jax.Array, up: jax.Array, down: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return ``up * scale`` and ``1 - up * scale`` for the scale that the envelope gives."""
    if envelope is None:
        return up, down
    if isinstance(envelope, exponential):
        scale, lost = envelope.power_and_complement(step, up.dtype)
    else:
        scale = jnp.broadcast_to(jnp.asarray(envelope(cycle, step), up.dtype), up.shape)
        lost = 1 - scale
    return up * scale, down + up * lost
