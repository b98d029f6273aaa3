"""How many cases does the fuzzing try, and how many fail? The nightly profile, counted.

    python tests/tools/fuzz.py                       # over 100,000 cases
    python tests/tools/fuzz.py --profile default     # those of CI, in a minute
    python tests/tools/fuzz.py readings schedules    # of two files

A case is one example of Hypothesis that ran to its end; what it rejected is not counted. The
nightly cases are others each time, and a failure prints what reproduces it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import pathlib
import platform
import re
import resource
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted(path.stem.removeprefix("fuzz_") for path in ROOT.glob("tests/fuzz_*.py"))
COUNTS = re.compile(r"^ +- (\d+) passing, (\d+) failing, and \d+ invalid test cases", re.MULTILINE)
VERDICT = re.compile(r"^(FAILED \S+)", re.MULTILINE)


def processor_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def fuzzed(name, profile):
    """Return the cases of a file, the tests that failed, and seconds of processor time."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "--hypothesis-show-statistics"]
    begun = processor_seconds()
    run = subprocess.run(
        [*command, f"tests/fuzz_{name}.py"], cwd=ROOT, text=True, capture_output=True,
        env={**os.environ, "HYPOTHESIS_PROFILE": profile}, check=False,
    )  # fmt: skip
    failed = VERDICT.findall(run.stdout)
    if run.returncode:
        print(run.stdout, run.stderr, sep="\n", flush=True)
        failed = failed or [f"pytest itself, which ended with {run.returncode}"]
    cases = sum(int(passed) + int(failing) for passed, failing in COUNTS.findall(run.stdout))
    return cases, failed, processor_seconds() - begun


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", default=FILES, metavar="file", help=", ".join(FILES))
    parser.add_argument("--profile", default="nightly", help="of Hypothesis, in tests/conftest.py")
    arguments = parser.parse_args()
    if unknown := set(arguments.files) - set(FILES):
        parser.error(f"no such file: {', '.join(sorted(unknown))}; there are {', '.join(FILES)}")

    versions = [
        f"{name} {importlib.metadata.version(name)}"
        for name in ("jax", "optax", "numpy", "hypothesis")
    ]
    print(f"profile {arguments.profile}; Python {platform.python_version()},", ", ".join(versions))
    begun, total, failures = time.perf_counter(), 0, []
    for name in arguments.files:
        cases, failed, seconds = fuzzed(name, arguments.profile)
        print(f"{name:14}{cases:9,} cases{len(failed):4} failures{seconds:8.0f} s CPU", flush=True)
        total, failures = total + cases, failures + failed
    minutes = (time.perf_counter() - begun) / 60
    print(f"{'all':14}{total:9,} cases{len(failures):4} failures{minutes:8.1f} minutes")
    print(*failures, sep="\n")
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
