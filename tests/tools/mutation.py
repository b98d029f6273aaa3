"""Do the tests notice? Mutate the source, one small change at a time, and run its tests.

    python tests/tools/mutation.py                      # a sample of 300
    python tests/tools/mutation.py --sample 20 --seed 1
    python tests/tools/mutation.py --modules _cycles _heights --sample 0    # all of these
    python tests/tools/mutation.py --places _heights:193:28    # those that survived

A mutant is killed when a test of its module fails, or hangs. Changes are: an operator, comparison
or condition turned round, a number or a flag changed, a minimum taken for a maximum, the branches
of a ``where`` exchanged. What only words a message or a type is left alone. The tests run in copies
of the repository. cosmic-ray makes ten times as many mutants, at five to sixty seconds each, and
cannot sample; mutmut forks a process in which JAX's threads run.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import copy
import itertools
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]


def tests_of_modules():
    """Read the map in CONTRIBUTING.md: of each module the files of tests, the quicker first."""
    rows = re.findall(
        r"^\| `(\w+)` \| (.*) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE
    )
    return {module: re.findall(r"`test_(\w+)`", tests) for module, tests in rows}


TESTS = tests_of_modules()
MUTATED = [module for module in TESTS if module not in ("_documentation", "plotting")]

SWAPS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
NAMES = {
    "minimum": "maximum", "maximum": "minimum", "min": "max", "max": "min", "any": "all",
    "all": "any", "logical_and": "logical_or", "logical_or": "logical_and", "argmin": "argmax",
    "argmax": "argmin", "cumsum": "cumprod", "nanmax": "nanmin", "nanmin": "nanmax",
}  # fmt: skip


class Mutant(NamedTuple):
    module: str
    place: str
    change: str
    source: str


def changed(node):
    """Yield the nodes that may take the place of ``node``, each with one small change."""
    if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPS:
        yield with_fields(node, op=SWAPS[type(node.op)]())
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        yield with_fields(node, ops=[SWAPS[type(node.ops[0])](), *node.ops[1:]])
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield node.operand
    elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
        yield with_fields(node, test=ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Constant) and isinstance(node.value, float):
        yield ast.Constant(2 * node.value if node.value else 1.0)
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        yield with_fields(node, attr=NAMES[node.attr])
    elif isinstance(node, ast.Name) and node.id in NAMES and isinstance(node.ctx, ast.Load):
        yield with_fields(node, id=NAMES[node.id])
    elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "where":
        condition, first, second = node.args
        yield with_fields(node, args=[condition, second, first])


def with_fields(node, **fields):
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def places(parent):
    """Yield (parent, field, index, node) of what may be changed: not messages, types, warnings."""
    for field, value in ast.iter_fields(parent):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(node, ast.AST) or isinstance(node, (ast.Raise, ast.JoinedStr)):
                continue
            if isinstance(node, ast.AnnAssign) and node.value is None:
                continue
            yield parent, field, index, node
            yield from places(node)


def mutants(module):
    tree = ast.parse((ROOT / f"optax_clr/{module}.py").read_text())
    for parent, field, index, node in list(places(tree)):
        for new in changed(node):
            put(parent, field, index, new)
            source = ast.unparse(ast.fix_missing_locations(tree))
            put(parent, field, index, node)
            was, now = (ast.unparse(part).splitlines()[0] for part in (node, new))
            place = f"{node.lineno}:{node.col_offset}"
            yield Mutant(module, place, f"{was}  ->  {now}", source)


def put(parent, field, index, node):
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def copied_repository(folder):
    for name in ("optax_clr", "tests", "docs/pages", "pyproject.toml", "README.md"):
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return folder


def tests_fail(folder, tests, timeout):
    """Whether one of the tests fails, or they do not end, in a copy of the repository."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),  # comes before an installed optax_clr
        "PYTHONDONTWRITEBYTECODE": "1",
        "HYPOTHESIS_PROFILE": "first_failure",
        # XLA compiles once what a mutation does not change: half the time.
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    try:
        run = subprocess.run(
            [*command, *tests], cwd=folder, env=environment, timeout=timeout,
            capture_output=True, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return True
    return run.returncode != 0


def seconds_without_mutation(folder, modules):
    """Return how long each file of tests takes; XLA's programs are kept for what follows."""
    seconds = {}
    for name in sorted({name for module in modules for name in TESTS[module]}):
        begun = time.perf_counter()
        if tests_fail(folder, [f"tests/test_{name}.py"], timeout=None):
            raise SystemExit(f"tests/test_{name}.py fails without a mutation")
        seconds[name] = time.perf_counter() - begun
    return seconds


def verdict(mutant, folders, seconds):
    folder = folders.pop()
    target = folder / f"optax_clr/{mutant.module}.py"
    original = target.read_text()
    target.write_text(mutant.source)
    docstrings = f"tests/test_docs.py::test_the_examples_of_docstrings[optax_clr.{mutant.module}]"
    files = [f"tests/test_{name}.py" for name in TESTS[mutant.module]]
    # Some loops have no end then; others have all of their programs to compile again.
    timeout = 60 + 2 * sum(seconds[name] for name in TESTS[mutant.module])
    killed = tests_fail(folder, [docstrings, *files], timeout)
    target.write_text(original)
    folders.append(folder)
    return killed


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--modules", nargs="+", default=MUTATED, choices=list(TESTS))
    parser.add_argument("--places", nargs="+", help="only these, as printed of survivors")
    parser.add_argument("--sample", type=int, default=300, help="so many of them; 0 is all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()

    found = list(itertools.chain.from_iterable(map(mutants, arguments.modules)))
    if arguments.places:
        found = [
            mutant for mutant in found if f"{mutant.module}:{mutant.place}" in arguments.places
        ]
    sample = random.Random(arguments.seed).sample(found, len(found))
    sample = sample[: arguments.sample or len(found)]
    print(f"{len(sample)} of {len(found)} mutants, seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory() as work:
        numbers = range(arguments.workers)
        folders = [copied_repository(pathlib.Path(work) / str(number)) for number in numbers]
        seconds = seconds_without_mutation(folders[0], {mutant.module for mutant in sample})
        survivors = []
        with concurrent.futures.ThreadPoolExecutor(arguments.workers) as pool:
            verdicts = pool.map(lambda mutant: verdict(mutant, folders, seconds), sample)
            for number, (mutant, killed) in enumerate(zip(sample, verdicts, strict=True), 1):
                print(f"{number}", end="\r", file=sys.stderr)
                if not killed:
                    survivors.append(mutant)
                    print(f"survives: {mutant.module}:{mutant.place}  {mutant.change}", flush=True)
    killed = len(sample) - len(survivors)
    print(f"killed {killed} of {len(sample)}: {killed / len(sample):.1%}")


if __name__ == "__main__":
    main()
