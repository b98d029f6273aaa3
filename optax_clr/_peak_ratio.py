"""How much higher the peak of a schedule may be than the best constant rate."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_clr._arguments import is_traced, shown

# A run of more steps is taken in some so many blocks, of each of which one step is looked at.
_NUM_BLOCKS = 2**15
# A block is at most this part of the steps after it: near its end a schedule matters most.
_BLOCK_OF_REST = 1 / 256
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def peak_ratio(shape: optax.Schedule, num_steps: int) -> float | jax.Array:
    r"""Return the best peak of a schedule of this form, over the best constant rate.

    For a convex loss whose gradients have norm at most $G$, begun at distance $D$ from
    the best params, the last params after rates $\gamma s_1, \dots, \gamma s_T$ are within

    $$
    \frac{D^2}{2 \gamma S_1} + \frac{\gamma G^2}{2} \Big( \frac{Q_1}{S_1}
    + \sum_{k=1}^{T-1} \frac{s_k}{S_{k+1}} \frac{Q_k}{S_k} \Big), \quad
    S_k = \sum_{t \ge k} s_t, \quad Q_k = \sum_{t \ge k} s_t^2
    $$

    of the least loss. The $\gamma$ for which this is least is a constant over the root of
    $S_1$ times the bracket; a constant rate has $T (1 + H_{T-1})$ there.

    References:
      Defazio et al., [When, Why and How Much?](https://arxiv.org/abs/2310.07831), 2023,
      theorem 10.
    """
    steps, counts = _blocks(num_steps)
    values = _values(shape, steps)
    constant = num_steps * (1 + _harmonic(num_steps - 1))
    if is_traced(values):
        heights = values / jnp.max(values)
        return jnp.sqrt(constant / _bound(jnp, heights, np.float32(counts)))
    known = np.asarray(jax.device_get(values), np.float64)
    lowest, highest = known.min(), known.max()
    if not (lowest >= 0 and 0 < highest < math.inf):
        raise ValueError(
            "shape must be a schedule of finite values of which none is negative and one is above "
            f"0; over {num_steps} steps it has values from {lowest:g} to {highest:g}."
        )
    return math.sqrt(constant / _bound(np, known / highest, counts))


def _values(shape: optax.Schedule, steps: np.ndarray) -> jax.Array:
    """Return the value of a schedule at each of the steps."""
    allowed = f"shape must be a schedule that jax.jit can trace, step -> number; {shown(shape)}"
    try:
        values = jax.vmap(shape)(steps)
    except Exception as error:
        raise ValueError(f"{allowed} failed: {error}") from error
    if not isinstance(values, jax.Array) or values.shape != steps.shape:
        one = jax.tree.map(lambda leaf: leaf[0], values)
        raise ValueError(f"{allowed} returned {shown(one)} at step {steps[0]}.")
    return values


def _bound(numpy: Any, heights: Any, counts: Any) -> Any:
    """Return ``S_1`` times the bracket, for blocks of ``counts`` steps of the same height.

    Exact where all blocks are of one step. In longer ones, ``S_k`` and ``Q_k`` are those of the
    middle.
    """
    sums, squares = _rest(numpy, counts * heights), _rest(numpy, counts * heights**2)
    after, squares_after = numpy.append(sums[1:], 0), numpy.append(squares[1:], 0)
    middle = after + heights * (counts + 1) / 2
    middle_after = after + heights * (counts - 1) / 2
    middle_squares = squares_after + heights**2 * (counts + 1) / 2
    # A block after which nothing moves the params is a constant rate of its own.
    at_end = numpy.log(numpy.maximum(counts, 2) - 0.5) + np.euler_gamma
    at_end = numpy.where(counts > 1, heights * at_end, 0)
    is_last = after == 0
    # Not over the product of the two, which is below any float32 where heights are small.
    of_sums = heights / numpy.where(is_last, 1, middle_after)
    of_squares = middle_squares / numpy.where(is_last, 1, middle)
    terms = numpy.where(is_last, at_end, counts * of_sums * of_squares)
    return squares[0] + sums[0] * terms.sum()


def _rest(numpy: Any, column: Any) -> Any:
    """Return the sum of each entry and all after it."""
    return numpy.flip(numpy.cumsum(numpy.flip(column)))


def _harmonic(number: int) -> float:
    """Return ``1 + 1/2 + ... + 1/number``."""
    if number < 100:
        return sum(1 / k for k in range(1, number + 1))
    return math.log(number) + np.euler_gamma + 1 / (2 * number) - 1 / (12 * number**2)


@functools.lru_cache(maxsize=8)
def _blocks(num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a step of each block, ``i32[b]``, and how many steps it has, ``f64[b]``."""
    longest = num_steps / _NUM_BLOCKS
    if longest <= 1:
        return np.arange(num_steps, dtype=np.int32), np.ones(num_steps)
    # How many steps come after a block: one by one, then by a ratio, then at even distances.
    one_by_one = 1 / _BLOCK_OF_REST
    num_growing = math.ceil(math.log(longest) / math.log1p(_BLOCK_OF_REST))
    growing = one_by_one * (1 + _BLOCK_OF_REST) ** np.arange(num_growing)
    even = np.linspace(one_by_one * longest, num_steps, _NUM_BLOCKS)
    edges = np.unique(np.round(np.concatenate([np.arange(one_by_one), growing, even])))
    counts = np.diff(edges)
    # Nowhere in particular within the block, lest the form be seen at one phase of short cycles.
    place = np.arange(len(counts)) * _GOLDEN_RATIO % 1
    after = edges[:-1] + np.floor(place * counts)
    return (num_steps - 1 - after[::-1]).astype(np.int32), counts[::-1]
