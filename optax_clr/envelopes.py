"""Envelopes: how the amplitude of a cycle changes over a run.

Any pure function that maps the cycle and the step, both counted from 0, to a scale can be an
``envelope``; these are the usual ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from optax_clr._arguments import as_step, float_dtype, real_scalar
from optax_clr._tracing import known_float
from optax_clr._words import shown

__all__ = ["exponential", "halving"]

Envelope = Callable[[jax.Array, jax.Array], ArrayLike]


def halving(cycle: jax.Array, step: jax.Array) -> jax.Array:
    r"""Return an amplitude that halves after every cycle, as in ``triangular2``.

    $$e(i, t) = 2^{-i}$$

    Args:
      cycle: int32 array of any shape, the cycle counted from 0.
      step: int32 array of the same shape, not used.

    Returns:
      A float32 array of the same shape with values in (0, 1], or 0 once the amplitude is below
      the smallest normal float.

    Examples:
      >>> print(halving(jnp.arange(4), jnp.arange(4)))
      [1.    0.5   0.25  0.125]

    References:
      Smith, [Cyclical Learning Rates](https://arxiv.org/abs/1506.01186), 2017, section 3.
    """
    del step
    # Set the exponent bits of the float directly: exact, unlike XLA's exp2.
    exponent_bits = jnp.maximum(127 - as_step(cycle, "cycle"), 0) << 23
    return lax.bitcast_convert_type(exponent_bits, jnp.float32)


def exponential(gamma: ArrayLike) -> Envelope:
    r"""Return an envelope that decays with every step, as in ``exp_range``.

    $$e(i, t) = \gamma^t$$

    If ``gamma`` is known when the envelope is built, its logarithm is computed in float64, and the
    power is accurate to a few float32 roundings at every step. If it is traced, its logarithm is a
    float32, and the relative error of the power is about ``1e-7 * abs(t * log(gamma))``.

    Args:
      gamma: positive scalar, usually a little below 1; may be traced.

    Returns:
      A function of the cycle and the step that returns floats in the shape of the step.

    Raises:
      TypeError: if ``gamma`` is not a real number.
      ValueError: if ``gamma`` is not positive, finite and a scalar.

    Examples:
      >>> envelope = exponential(0.9)
      >>> [f"{envelope(0, t):.3f}" for t in range(4)]
      ['1.000', '0.900', '0.810', '0.729']

    References:
      Smith, [Cyclical Learning Rates](https://arxiv.org/abs/1506.01186), 2017, section 3.
    """
    return Exponential(real_scalar("gamma", gamma, positive=True))


class Exponential:
    """The envelope that ``exponential`` returns, which can also compute its complement to 1."""

    def __init__(self, gamma: ArrayLike) -> None:
        self.gamma = gamma

    def __repr__(self) -> str:
        return f"exponential({shown(self.gamma)})"

    def __call__(self, cycle: ArrayLike, step: ArrayLike) -> jax.Array:
        """Return ``gamma ** step``, floats in the shape of ``step``; ``cycle`` is not used."""
        del cycle
        return self.power_and_complement(step, float_dtype(self.gamma))[0]

    def power_and_complement(
        self, step: ArrayLike, dtype: DTypeLike
    ) -> tuple[jax.Array, jax.Array]:
        """Return ``gamma ** step`` and ``1 - gamma ** step``, without cancellation at small steps.

        The exponent is kept as a float and its rounding error. Each half of the step (16 bits)
        times the head of the logarithm (8 bits) is exact in float32.
        """
        step = as_step(step)
        head, tail = self._logarithm(dtype)
        lower_half = step & 0xFFFF
        upper = (step - lower_half).astype(dtype) * head
        lower = lower_half.astype(dtype) * head
        exponent = upper + lower
        rounding = lower - (exponent - upper)  # exact: upper is the larger, or 0
        # The rest is under 1% of the exponent; the clip only matters when the power is 0 anyway.
        rest = jnp.expm1(jnp.clip(rounding + step.astype(dtype) * tail, -8, 8))
        # Keep a growing power finite: at height 0 the value must be the base, and 0 * inf is NaN.
        exponent = jnp.minimum(exponent, math.log(np.finfo(dtype).max) - 8.1)
        power = jnp.exp(exponent)
        return power * (1 + rest), -jnp.expm1(exponent) - power * rest

    def _logarithm(self, dtype: DTypeLike) -> tuple[ArrayLike, ArrayLike]:
        """Return the logarithm of gamma as a head of 8 significant bits and a tail."""
        known_gamma = known_float(self.gamma)
        if known_gamma is None:
            gamma = jnp.asarray(self.gamma, dtype)
            # Near 1, gamma - 1 is exact, so the logarithm is accurate to its last digits.
            logarithm = jnp.where(gamma > 0.5, jnp.log1p(gamma - 1), jnp.log(gamma))
            exponent_bits = 8 if dtype == jnp.float32 else 11
            traced_head = lax.reduce_precision(logarithm, exponent_bits, 7)
            return traced_head, logarithm - traced_head
        exact = math.log(known_gamma)
        mantissa, exponent = math.frexp(exact)
        head = math.ldexp(round(mantissa * 2**8), exponent - 8)
        return jnp.asarray(head, dtype), jnp.asarray(exact - head, dtype)
