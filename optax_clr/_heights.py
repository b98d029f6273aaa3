"""Heights within a cycle, shaped by a wave and scaled by an envelope, and their complements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_clr import envelopes, waves
from optax_clr._arguments import function
from optax_clr._integer_powers import check_powers
from optax_clr._jaxprs import inputs_of
from optax_clr._tracing import traced_result
from optax_clr._words import shown
from optax_clr.envelopes import Envelope, Exponential
from optax_clr.waves import Wave

# 1 - wave(height) as a function of the depth, 1 - height, so that it keeps its digits near the
# peak: a momentum, or a rate that starts high, has its small values there.
_COMPLEMENTS: tuple[tuple[Wave, Wave], ...] = (
    (waves.linear, waves.linear),
    (waves.cosine, waves.cosine),
    (waves.welch, jnp.square),
)


def _complement_of(wave: Wave) -> Wave | None:
    # Compared by identity: a user's function may not be hashable.
    return next((complement for known, complement in _COMPLEMENTS if known is wave), None)


def check_wave(name: str, wave: Any) -> Wave:
    """Return ``wave`` if it returns one number for each height."""
    checked: Wave = function(name, wave, form="height -> height")
    if _complement_of(checked) is None:
        _check_result(name, checked, np.zeros(2, np.float32))
    return checked


def check_envelope(envelope: Any) -> Envelope:
    """Return ``envelope`` if it returns one number for each cycle and step."""
    checked: Envelope = function("envelope", envelope, form="(cycle, step) -> scale")
    if checked is not envelopes.halving and not isinstance(checked, Exponential):
        counts = np.zeros(2, np.int32)
        _check_result("envelope", checked, counts, counts)
        check_powers("envelope", checked, num_arguments=2)
    return checked


def _check_result(name: str, shape: Callable[..., Any], *arguments: np.ndarray) -> None:
    allowed = f"{name} must be a function of arrays, one number for each; {shown(shape)}"
    try:
        result = traced_result(shape, *arguments)
    except Exception as error:
        remedy = " Take it from jax.numpy." if isinstance(shape, np.ufunc) else ""
        raise ValueError(f"{allowed} failed: {error}{remedy}") from error
    if not isinstance(result, jax.ShapeDtypeStruct) or result.shape not in ((), (2,)):
        raise ValueError(f"{allowed} maps arrays of shape (2,) to {result}.")
    if result.shape == () and _depends_on_its_arguments(shape, arguments):
        raise ValueError(f"{allowed} returns a single number for several.")
    if jnp.issubdtype(result.dtype, jnp.complexfloating):
        raise ValueError(f"{allowed} returns complex numbers.")


def _depends_on_its_arguments(shape: Callable[..., Any], arguments: Any) -> bool:
    """Whether a function is no constant, whose single number would serve for all."""
    traced = jax.make_jaxpr(lambda *each: shape(*each))(*arguments).jaxpr
    return any(inputs_of(traced, [True]))


def shaped(wave: Wave, height: jax.Array, depth: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return ``wave(height)`` and ``1 - wave(height)``."""
    complement = _complement_of(wave)
    if complement is not None:
        return jnp.asarray(wave(height)), jnp.asarray(complement(depth))
    # XLA may replace a division by a multiplication, and so round a height to just above 1, where
    # sqrt(1 - height) is NaN. In a phase that has ended the height is far above 1.
    height = jnp.clip(height, 0, 1)
    up = jnp.broadcast_to(jnp.asarray(wave(height), height.dtype), height.shape)
    return up, 1 - up


def scaled(
    envelope: Envelope | None, cycle: jax.Array, step: jax.Array, up: jax.Array, down: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return ``up * scale`` and ``1 - up * scale`` for the scale from the envelope."""
    if envelope is None:
        return up, down
    if isinstance(envelope, Exponential):
        scale, lost = envelope.power_and_complement(step, up.dtype)
    else:
        scale = jnp.broadcast_to(jnp.asarray(envelope(cycle, step), up.dtype), up.shape)
        lost = 1 - scale
    return up * scale, down + up * lost
