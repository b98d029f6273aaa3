"""The formulas of the page that explores schedules, in JavaScript, against the library."""

import json
import pathlib
import shutil
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest

import optax_clr
from optax_clr import envelopes, waves

FORMULAS = pathlib.Path(__file__).parents[1] / "docs/pages/assets/schedules.mjs"
NUM_STEPS = 1001

ONE_CYCLE = {"peak_value": 1.0, "init_value": 0.04, "end_value": 0.01, "wave": "cosine"}
WSD = {"peak_value": 1.0, "total_steps": 900, "end_value": 0.1}
CYCLES = {"base_value": 0.2, "peak_value": 1.0, "rise_steps": 30, "num_cycles": 6}
CASES = [
    ("one_cycle_schedule",
     ONE_CYCLE | {"total_steps": 1000, "rise_fraction": 0.3, "three_phase": False}),
    ("one_cycle_schedule",
     ONE_CYCLE | {"total_steps": 777, "rise_fraction": 0.25, "three_phase": True, "wave": "welch"}),
    ("warmup_stable_decay_schedule",
     WSD | {"warmup_steps": 50, "decay_steps": 200, "decay_wave": "cosine"}),
    ("warmup_stable_decay_schedule",
     WSD | {"warmup_steps": 0, "decay_steps": 0, "decay_wave": "linear"}),
    ("cyclical_schedule",
     CYCLES | {"fall_steps": 75, "wave": "linear", "envelope": "halving", "mult": 1.5}),
    ("cyclical_schedule",
     CYCLES | {"fall_steps": 20, "wave": "cosine", "envelope": "exponential(0.998)", "mult": 1}),
    ("cyclical_schedule",
     CYCLES | {"fall_steps": 30, "wave": "welch", "envelope": "none", "mult": 1.25}),
    ("warm_restarts_schedule",
     {"peak_value": 1.0, "steps": 50, "base_value": 0.1, "mult": 1.25, "peak_decay": 0.6,
      "warmup_steps": 7, "num_cycles": 5}),
]  # fmt: skip


def in_the_library(name, arguments):
    named = {
        "wave": lambda wave: getattr(waves, wave),
        "decay_wave": lambda wave: getattr(waves, wave),
        "envelope": {
            "none": None,
            "halving": envelopes.halving,
            "exponential(0.998)": envelopes.exponential(0.998),
        }.get,
    }
    arguments = {key: named.get(key, lambda value: value)(arguments[key]) for key in arguments}
    return np.asarray(getattr(optax_clr, name)(**arguments)(jnp.arange(NUM_STEPS)))


@pytest.mark.skipif(not shutil.which("node"), reason="needs node, to run JavaScript")
def test_the_explorer_draws_what_the_library_computes():
    program = f"""
        import {{ schedules }} from {json.dumps(FORMULAS.as_uri())};
        const steps = [...Array({NUM_STEPS}).keys()];
        const curves = {json.dumps(CASES)}.map(([name, values]) => steps.map(schedules[name](values)));
        console.log(JSON.stringify(curves));
    """  # noqa: E501
    run = subprocess.run(
        ["node", "--input-type=module"], input=program, capture_output=True, check=True, text=True
    )
    for case, drawn in zip(CASES, json.loads(run.stdout), strict=True):
        expected = in_the_library(*case)
        np.testing.assert_allclose(drawn, expected, rtol=3e-6, err_msg=str(case))


def test_the_cases_have_every_schedule_of_the_explorer():
    exported = FORMULAS.read_text().partition("export const schedules")[2]
    assert all(f"  {name}({{" in exported for name, _ in CASES)
    assert exported.count("_schedule({") == len({name for name, _ in CASES})
