"""Reading a data loader, pass by pass, and what its batches must be to be stacked."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, NamedTuple

import jax

from optax_clr._arrays import OPEN_IT, as_array, is_numeric, is_opaque
from optax_clr._step import PyTree


class Batch(NamedTuple):
    """One batch, flattened."""

    leaves: list[Any]
    structure: Any
    types: list[Any]  # shapes and dtypes of the leaves


class UnfitBatchError(ValueError):
    """A batch that cannot be stacked with the first."""


def passes_of(batches: Iterable[PyTree]) -> Generator[Batch, None, None]:
    """Yield the batches, pass after pass if they can be read again.

    Closing this generator closes the loader's own iterator too, with its workers and threads.
    """
    first: Batch | None = None
    again = True
    while again:
        again = False
        iterator = iter(batches)
        is_exhausted = False
        unfit: str | None = None
        try:
            for tree in iterator:
                if unfit is not None:
                    raise UnfitBatchError(unfit)
                leaves, structure = jax.tree.flatten(tree)
                leaves = [as_array("batches", leaf) for leaf in leaves]
                batch = Batch(leaves, structure, [(leaf.shape, leaf.dtype) for leaf in leaves])
                if first is None:
                    first = _checked_first(batch, tree)
                unfit = _difference(batch, first)
                if unfit is None:
                    # Do not restart an iterator: at its end one, such as a queue's, may block.
                    again = iterator is not batches
                    yield batch
            # A last batch that does not fit is the remainder of the data, and is left out.
            is_exhausted = True
        finally:
            if not is_exhausted and iterator is not batches and hasattr(iterator, "close"):
                iterator.close()


def _checked_first(batch: Batch, tree: PyTree) -> Batch:
    if not batch.leaves or not all(is_numeric(leaf.dtype) for leaf in batch.leaves):
        for leaf in filter(is_opaque, jax.tree.leaves(tree)):
            raise TypeError(
                "batches must give pytrees of numeric arrays; got one with a "
                f"{type(leaf).__name__} in it. {OPEN_IT}"
            )
        raise TypeError(
            f"batches must give pytrees of numeric arrays; got {batch.structure} of "
            f"{_in_words(batch.types)}. Encode what is not a number, or leave it out."
        )
    return batch


def _difference(batch: Batch, first: Batch) -> str | None:
    """Return what is wrong with a batch that differs from the first; None if it does not."""
    if batch.structure != first.structure:
        return (
            f"batches must all have the structure of the first, {first.structure}; got "
            f"{batch.structure}."
        )
    if batch.types != first.types:
        shapes = [[shape for shape, _ in each.types] for each in (batch, first)]
        remedy = "Convert them to one dtype."
        if shapes[0] != shapes[1]:
            remedy = (
                "Pad or crop them to one shape. Only the last of an epoch may be another, and is "
                "left out; in a generator that goes on with the next epoch leave it out yourself."
            )
        return (
            "batches must all have the shapes and dtypes of the first, "
            f"{_in_words(first.types)}; got {_in_words(batch.types)}. {remedy}"
        )
    return None


def _in_words(types: list[Any]) -> str:
    return ", ".join(f"{dtype}{list(shape)}" for shape, dtype in types) or "nothing"
