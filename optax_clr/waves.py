"""Waves: functions that shape a cycle, applied to a height that is linear in the step.

Any pure function from heights in [0, 1] to heights in [0, 1] can be a ``wave``; these are the
usual ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

__all__ = ["cosine", "linear", "welch"]

Wave = Callable[[jax.Array], ArrayLike]


def linear(height: jax.Array) -> jax.Array:
    r"""Return the height unchanged: Smith's triangle.

    $$w(h) = h$$

    Args:
      height: floats of any shape in [0, 1]: 0 at the base, 1 at the peak, linear in the step.

    Returns:
      The shaped height in [0, 1], with the same shape and dtype.

    Examples:
      >>> print(linear(jnp.array([0.0, 0.5, 1.0])))
      [0.  0.5 1. ]

    References:
      Smith, [Cyclical Learning Rates](https://arxiv.org/abs/1506.01186), 2017, section 3.
    """
    return height


def cosine(height: jax.Array) -> jax.Array:
    r"""Return the height along half a cosine; rise and fall together form a Hann window.

    $$w(h) = \tfrac12 (1 - \cos \pi h) = \sin^2 (\pi h / 2)$$

    Args:
      height: floats of any shape in [0, 1]: 0 at the base, 1 at the peak, linear in the step.

    Returns:
      The shaped height in [0, 1], with the same shape and dtype.

    Examples:
      >>> [f"{cosine(jnp.float32(height)):.3f}" for height in (0.0, 0.25, 0.5, 1.0)]
      ['0.000', '0.146', '0.500', '1.000']

    References:
      Loshchilov and Hutter, [SGDR](https://arxiv.org/abs/1608.03983), 2017, equation 5.
    """
    # 1 - cos would lose digits near the base, where the rate is small.
    return jnp.square(jnp.sin(height * (math.pi / 2)))


def welch(height: jax.Array) -> jax.Array:
    r"""Return the height along a parabola that is steep at the base and flat at the peak.

    $$w(h) = 1 - (1 - h)^2 = h (2 - h)$$

    Args:
      height: floats of any shape in [0, 1]: 0 at the base, 1 at the peak, linear in the step.

    Returns:
      The shaped height in [0, 1], with the same shape and dtype.

    Examples:
      >>> print(welch(jnp.array([0.0, 0.5, 1.0])))
      [0.   0.75 1.  ]

    References:
      Smith, [Cyclical Learning Rates](https://arxiv.org/abs/1506.01186), 2017, section 3.
    """
    return height * (2 - height)
