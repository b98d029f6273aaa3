"""How a test runs: as one program or called from Python, and how many rows to a chunk."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from optax_clr._documentation import see
from optax_clr._step import PyTree
from optax_clr._step_facts import StepFacts
from optax_clr._tracing import any_traced, is_inside_program, is_traced

_CONFIG: Any = jax.config


class Device(NamedTuple):
    """The limits on a chunk, for one kind of device.

    A chunk that diverges is trained to its end, and judging one costs as much as training a few
    rows of the smallest network. So a chunk has no more rows than pay off, and no more operations
    than take about a tenth of a second, to an order of magnitude.
    """

    rows_per_chunk: int
    operations_per_chunk: float


_CPU = Device(rows_per_chunk=64, operations_per_chunk=4e9)
_ACCELERATOR = Device(rows_per_chunk=128, operations_per_chunk=1e12)


def runs_by_rows(facts: StepFacts, arrays: PyTree) -> bool:
    """Whether the step has a convolution, runs on a CPU, and Python can call its rows one by one.

    XLA's CPU backend computes convolutions ten times slower inside a loop.
    """
    return facts.has_convolution and not _is_inside(facts, arrays) and is_on_cpu(arrays)


def check_outside(facts: StepFacts, arrays: PyTree) -> None:
    """Raise if Python cannot call the test, since it is inside another program."""
    if _is_inside(facts, arrays):
        raise TypeError(
            "a range test with a stream of batches, or with progress=True, runs from Python: "
            "it cannot be inside jax.jit or jax.vmap. Pass stacked batches or a function step "
            f"-> batch, and progress=False. {see('range-test/#batches')}"
        )


def _is_inside(facts: StepFacts, arrays: PyTree) -> bool:
    """Whether the test is inside one of the caller's transformations, such as jax.jit."""
    return facts.closes_over_tracers or any_traced(arrays) or is_inside_program()


def is_on_cpu(arrays: PyTree) -> bool:
    """Whether the arrays are on a CPU, or will be put there."""
    return _platform(arrays) == "cpu"


def _platform(arrays: PyTree) -> str:
    for leaf in jax.tree.leaves(arrays):
        if isinstance(leaf, jax.Array) and not is_traced(leaf):
            return str(next(iter(leaf.devices())).platform)
    # A device or the name of a platform, which jax.default_backend ignores.
    default = _CONFIG.jax_default_device
    return str(getattr(default, "platform", default) or jax.default_backend())


def rows_per_chunk(arrays: PyTree, operations_per_row: int, num_rows: int, most_rows: int) -> int:
    """Return the rows per chunk: about as many as suit the device, with little padding."""
    device = _CPU if is_on_cpu(arrays) else _ACCELERATOR
    suitable = int(device.operations_per_chunk / max(operations_per_row, 1))
    most = max(1, min(suitable, device.rows_per_chunk, num_rows, most_rows))
    sizes = range(most, most // 2, -1)
    return min(sizes, key=lambda size: -num_rows % size)
