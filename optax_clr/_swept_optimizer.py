"""Which optimizer in a state a test sweeps: there may be several, such as the two of a GAN."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from optax_clr._jaxprs import sources
from optax_clr._states import Injected, Path, is_of_optax, key_name, walk

# Bits for what something is computed from: the swept value, the count of an injected schedule, or
# other data. Each higher bit stands for the fields of one Optax state.
_VALUE, _COUNT, _OTHER, _FIRST_STATE = 1, 2, 4, 8


class SweptOptimizer:
    """What the swept value of a training step trains, and which Optax states do the training.

    A leaf outside these states is trained if it is computed from both the value and data. A state
    is one of the swept optimizer if it reaches exactly the leaves that are trained. If that is the
    generator of a GAN, the state of the discriminator is not: it also reaches the discriminator's
    params, or does not reach those of the generator.
    """

    def __init__(self, jaxpr: Any, state: Any, *, takes_rate: bool) -> None:
        """Follow the value, the last input of ``(state, batch, value) -> (state, ...)``.

        ``takes_rate`` is whether the value is known to be a rate, and the whole state to belong to
        one optimizer.
        """
        self._takes_rate = takes_rate
        self._nodes = {path: node for path, node in walk(state) if _is_of_optax(node)}
        self._bits = {path: _FIRST_STATE << place for place, path in enumerate(self._nodes)}
        leaves = jax.tree_util.tree_leaves_with_path(state)
        of_new_state, self._on_the_way = self._follow(jaxpr, leaves)
        self._kinds = dict(zip([path for path, _ in leaves], of_new_state, strict=True))
        self._rates = [
            path for path, kinds in self._kinds.items() if kinds & _VALUE and _is_rate(path)
        ]
        outside = [path for path in self._kinds if not self._around(path)]
        if takes_rate:  # the state is that of lr_range_test, (params, state of the optimizer)
            own = [(jax.tree_util.SequenceKey(1),)]
        else:
            moved = list(filter(self._is_moved, outside))
            own = [_largest_without(moved, rate) for rate in self._rates]
        # The state of a caller's own transformation, in a chain with the rate, is not outside.
        outside = [path for path in outside if not any(_is_in(path, part) for part in own)]
        self._trained = set(filter(self._is_moved, outside))
        # Only states that reach anything outside are in it.
        self._trains = {
            path: self._is_just_what_is_trained(path, reached)
            for path, bit in self._bits.items()
            if (reached := {leaf for leaf in outside if self._kinds[leaf] & bit})
        }
        # Without a rate, and if none matches, all may train: the step may store its updates too.
        if not (self.has_rate or any(self._trains.values())):
            self._trains = dict.fromkeys(self._trains, True)

    @property
    def has_rate(self) -> bool:
        """Whether the value is a learning rate: known to be one, or stored as one in the state."""
        return self._takes_rate or bool(self._rates)

    @property
    def meets_count(self) -> bool:
        """Whether something is computed from the value and a schedule's count, without data."""
        alone = _VALUE | _COUNT
        return any(kinds & (alone | _OTHER) == alone for kinds in self._on_the_way)

    def states(self, kinds: tuple[type, ...]) -> Iterator[Path]:
        """Yield the paths of the states of these kinds."""
        return (path for path, node in self._nodes.items() if isinstance(node, kinds))

    def trains(self, path: Path) -> bool:
        """Whether the state at a path is one that trains with the value."""
        return self._trains.get(path, False)

    def is_given_value(self, path: Path) -> bool:
        """Whether the value reaches the state at a path."""
        return any(kinds & _VALUE for leaf, kinds in self._kinds.items() if _is_in(leaf, path))

    def may_have(self, path: Path) -> bool:
        """Whether a node belongs to the swept optimizer, as far as can be told."""
        around = [node for node in self._trains if _is_in(path, node)]
        if around:
            return self._trains[max(around, key=len)]
        within = [trains for node, trains in self._trains.items() if _is_in(node, path)]
        return not within or any(within)

    def has_params(self, path: Path) -> bool:
        """Whether a node contains anything that is trained."""
        return any(_is_in(leaf, path) for leaf in self._trained)

    def _is_moved(self, path: Path) -> bool:
        both = _VALUE | _OTHER
        return self._kinds[path] & both == both

    def _follow(self, jaxpr: Any, leaves: list[Any]) -> tuple[list[int], set[int]]:
        from jax.interpreters.partial_eval import dce_jaxpr

        is_state = [place < len(leaves) for place in range(len(jaxpr.outvars))]
        # Drop what is only recorded, such as the rates of two optimizers.
        jaxpr, _ = dce_jaxpr(jaxpr, is_state, instantiate=True)
        of_state = [self._kind_of(path, leaf) for path, leaf in leaves]
        of_batch = [_OTHER] * (len(jaxpr.invars) - len(leaves) - 1)
        return sources(jaxpr, [*of_state, *of_batch, _VALUE])

    def _kind_of(self, path: Path, leaf: Any) -> int:
        around = self._around(path)
        if not around:
            return _OTHER
        injected = [node for node in around if isinstance(self._nodes[node], Injected)]
        is_count = leaf.shape == () and jnp.issubdtype(leaf.dtype, jnp.integer)
        # A count in the inner optimizer is not that of an injected schedule.
        if is_count and injected and key_name(path[len(injected[-1])]) != "inner_state":
            return self._bits[around[-1]] | _COUNT
        return self._bits[around[-1]] | _OTHER

    def _around(self, path: Path) -> list[Path]:
        """Return the paths of the Optax states at a path or around it, outermost first."""
        return [part for part in _parts_around(path) if part in self._nodes]

    def _is_just_what_is_trained(self, path: Path, reached: set[Path]) -> bool:
        if not self._trained:
            return True
        around = self._around(path)
        # A part of it is enough for a state that is known to belong to the optimizer of the rate.
        if self._takes_rate or any(_is_in(rate, node) for node in around for rate in self._rates):
            return reached <= self._trained
        return reached == self._trained


def _is_of_optax(node: Any) -> bool:
    return isinstance(node, tuple) and is_of_optax(type(node)) and bool(jax.tree.leaves(node))


def _parts_around(path: Path) -> list[Path]:
    """Return the paths of all subtrees that contain a path, from the whole tree to the path."""
    return [path[:length] for length in range(len(path) + 1)]


def _largest_without(moved: list[Path], path: Path) -> Path:
    """Return the path of the largest subtree around a path without any of the moved leaves."""
    parts = (
        part for part in _parts_around(path) if not any(_is_in(other, part) for other in moved)
    )
    return next(parts, path)


def _is_in(path: Path, node: Path) -> bool:
    return path[: len(node)] == node


def _is_rate(path: Path) -> bool:
    return "learning_rate" in map(key_name, path[-2:])  # an nnx variable has its value below it
