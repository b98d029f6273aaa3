"""What a traced program consists of: its equations, and which outputs depend on which inputs."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Iterable, Iterator
from typing import Any


def equations(jaxpr: Any) -> Iterator[Any]:
    """Yield all equations, including those of loops, branches and calls."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in _inner_jaxprs(equation):
            yield from equations(inner)


def _inner_jaxprs(equation: Any) -> Iterator[Any]:
    # Those of jit, scan, cond and the like: some are closed, some are in a tuple of branches.
    for parameter in equation.params.values():
        for part in parameter if isinstance(parameter, (tuple, list)) else (parameter,):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                yield inner


def num_operations(jaxpr: Any) -> int:
    """Return roughly how many scalar operations a program performs."""
    total = 0
    for equation in jaxpr.eqns:
        turns = int(equation.params.get("length", 1))  # of a scan
        inner = sum(map(num_operations, _inner_jaxprs(equation)))
        total += turns * inner if inner else _operations_of(equation)
    return total


def _operations_of(equation: Any) -> int:
    shapes: list[tuple[int, ...]] = [
        getattr(output.aval, "shape", ()) for output in equation.outvars
    ]
    size = max([math.prod(shape) for shape in shapes], default=0)
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        shape: tuple[int, ...] = equation.invars[0].aval.shape
        num_products: int = math.prod([shape[axis] for axis in contracted])
        return 2 * size * num_products
    if equation.primitive.name == "conv_general_dilated":
        kernel: tuple[int, ...] = equation.invars[1].aval.shape
        return 2 * size * (math.prod(kernel) // max(1, *kernel))
    return size


def inputs_of(jaxpr: Any, is_wanted: list[bool]) -> list[bool]:
    """Return which inputs the wanted outputs are computed from.

    All outputs of a loop count as computed from all of its inputs.
    """
    live = _variables(jaxpr.outvars, is_wanted)
    for equation in reversed(jaxpr.eqns):
        wanted = [output in live for output in equation.outvars]
        # An equation that writes to a jax.Ref has no output that shows it.
        writes = any(type(atom.aval).__name__ == "AbstractRef" for atom in equation.invars)
        if not any(wanted) and not (writes and live & _variables(equation.invars)):
            continue
        needed = [True] * len(equation.invars)
        if equation.primitive.name in ("jit", "pjit") and not writes:
            needed = inputs_of(equation.params["jaxpr"].jaxpr, wanted)
        if equation.primitive.name == "cond" and not writes:
            branches = [inputs_of(each.jaxpr, wanted) for each in equation.params["branches"]]
            needed = [True, *map(any, zip(*branches, strict=True))]
        live |= _variables(equation.invars, needed)
    return [variable in live for variable in jaxpr.invars]


def sources(jaxpr: Any, of_inputs: list[int]) -> tuple[list[int], set[int]]:
    """Return the kinds of inputs that outputs, and any intermediate values, are computed from.

    Each kind is a bit. Loops are followed for one iteration.
    """
    known = dict(zip(jaxpr.invars, of_inputs, strict=True))
    found: set[int] = set()

    def look_up(atom: Any) -> int:
        return 0 if hasattr(atom, "val") else known.get(atom, 0)

    for equation in jaxpr.eqns:
        outputs, on_the_way = _sources_of(equation, list(map(look_up, equation.invars)))
        found.update(outputs, on_the_way)
        known.update(zip(equation.outvars, outputs, strict=True))
    return [look_up(atom) for atom in jaxpr.outvars], found


def _sources_of(equation: Any, operands: list[int]) -> tuple[list[int], set[int]]:
    """Return the sources of the outputs of one equation, and of the values inside it."""
    bodies, given, predicate = list(_inner_jaxprs(equation)), operands, 0
    if equation.primitive.name == "cond":
        predicate, *given = operands
    elif equation.primitive.name == "while":
        bodies = [equation.params["body_jaxpr"].jaxpr]
        given = operands[equation.params["cond_nconsts"] :]
    elif len(bodies) != 1:
        bodies = []
    form = len(given), len(equation.outvars)
    if not bodies or any((len(body.invars), len(body.outvars)) != form for body in bodies):
        return [_union(operands)] * len(equation.outvars), set()
    of_bodies = [sources(body, given) for body in bodies]
    of_outputs = zip(*(outputs for outputs, _ in of_bodies), strict=True)
    found = set[int]().union(*(on_the_way for _, on_the_way in of_bodies))
    return [_union(kinds) | predicate for kinds in of_outputs], found


def _union(kinds: Iterable[int]) -> int:
    return functools.reduce(operator.or_, kinds, 0)


def _variables(atoms: list[Any], is_wanted: Iterable[bool] = itertools.repeat(True)) -> set[Any]:
    """Return the wanted variables, without literals."""
    wanted = itertools.compress(atoms, is_wanted)
    return {atom for atom in wanted if not hasattr(atom, "val")}
