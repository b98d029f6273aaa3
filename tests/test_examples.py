"""The examples, for a few steps: they run, and say what they should."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import compiling

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(tmp_path, name, *arguments, xla_flags=compiling.FLAGS):
    # Half of the time would be XLA's, optimizing programs that run for a few steps.
    environment = {**os.environ, "XLA_FLAGS": " ".join(xla_flags)}
    finished = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.slow
def test_digits_prints_its_tables_and_writes_its_figure(tmp_path):
    output = run(tmp_path, "digits.py", "--steps", "40", "--seeds", "2")
    table = [line for line in output.splitlines() if " ± " in line[44:]]
    accuracies = [float(line[44:].split(" ± ")[0]) for line in table[:4]]
    assert all(50 < accuracy <= 100 for accuracy in accuracies)
    gains = [float(line[44:].split(" ± ")[0]) for line in table[4:]]
    default, constant, cycles, one_cycle = accuracies
    expected = [constant - default, *(one_cycle - other for other in (default, constant, cycles))]
    assert gains == pytest.approx(expected, abs=0.016)  # three numbers rounded to two decimals
    assert "At 40 steps one cycle is " in output
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")


def test_digits_says_which_differences_are_within_the_noise(capsys):
    digits = example("digits")
    # By length and seed; the seeds differ more than the schedules do, but alike in every row.
    above_the_seeds = {
        "low": [[-3, -3, -3], [-3, -3, -3]],
        "level": [[-1, 0, 2], [-1, 0, 4]],
        "first": [[3, 3.5, 4], [0, 0, 0]],
        "one cycle": [[0, 0.1, 0.2], [1, 1, 1]],
    }
    seeds = np.array([90.0, 80.0, 70.0])
    accuracies = {name: seeds + np.array(rows) for name, rows in above_the_seeds.items()}
    digits.print_gains(accuracies, [100, 300])
    output = capsys.readouterr().out.splitlines()
    assert output[-2] == (
        "At 100 steps one cycle is ahead of low; within the noise of level; behind first."
    )
    assert output[-1] == (
        "At 300 steps one cycle is ahead of low and first; within the noise of level."
    )
    # The mean of 3.0, 3.1 and 3.2, and twice 0.1 / sqrt(3).
    assert any(line.split()[-6:-3] == ["+3.10", "±", "0.12"] for line in output)


def test_weight_decay_says_what_the_tests_can_tell(capsys):
    weight_decay = example("weight_decay")
    decays, rates = [0.0, 0.1, 1.0], np.array([0.01, 0.1])
    # By decay and seed; the seeds differ more than the decays do.
    lowest = np.array([[1.0, 2.0, 3.0], [0.9, 2.1, 3.1], [1.5, 2.5, 3.5]])
    averages = np.stack([lowest, lowest + 1], axis=-1)
    read = weight_decay.print_readings(decays, [0.01] * 3, [0.03] * 3, rates, averages)
    np.testing.assert_array_equal(read, lowest)
    output = capsys.readouterr().out.splitlines()
    assert output[-2] == "The tests pick 0; within the noise of it: 0.1."
    assert output[-1] == "Tests alone, one of each seed, pick 0 in 2, 0.1 in 1."
    seeds = np.array([1.0, 2.0, 3.0])
    # Two of the tests alone pick 0, one picks 0.1; the best has a mean of 2.
    for above, verdict, higher in (
        ((0.6, 0.0, 1.0), "is not as good as 0.1: its loss is 30% higher.", 20),
        ((0.0, 0.6, 1.0), "is the best.", 10),
    ):
        losses = seeds + np.array(above)[:, None]
        weight_decay.print_trained(decays, lowest, losses, losses, 300)
        last = capsys.readouterr().out.splitlines()[-2:]
        assert last[0] == f"After 300 steps the tests' pick, 0, {verdict}"
        assert last[1] == f"The picks of tests alone are {higher}% higher, on average."


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotion")
def test_weight_decay_tests_and_trains_its_lanes_together(tmp_path, capsys, monkeypatch):
    weight_decay = example("weight_decay")
    figure = str(tmp_path / "curves.png")
    sizes = ("--decays", "0", "100", "--test-steps", "120", "--steps", "40", "--seeds", "2")
    monkeypatch.setattr(sys, "argv", ["weight_decay.py", *sizes, "--figure", figure])
    with jax.numpy_rank_promotion("allow"):  # Flax relies on it
        weight_decay.main()
    output = capsys.readouterr().out
    assert "The tests pick 0; within the noise of it: none." in output
    assert "After 40 steps the tests' pick, 0, is the best." in output
    assert pathlib.Path(figure).read_bytes().startswith(b"\x89PNG")


def test_candidates_says_whether_picking_is_better_than_a_single_choice(capsys):
    candidates = example("candidates")
    turns = np.tile([1.0, 3.0], 4)  # two candidates, each better at every second seed
    final = {"A": turns, "B": 4.5 - turns}
    better = {"A": turns, "B": np.where(turns == 1, np.nan, 2.0)}  # NaN is never picked
    worse = {"A": -turns, "B": turns - 4}
    always = {"A": np.ones(8), "B": np.full(8, 2.0)}
    losses = {name: [better[name], always[name], worse[name], final[name]] for name in "AB"}
    candidates.print_picks(losses, 10, 20)
    by_short, by_step, by_last = capsys.readouterr().out.strip().split("\n\n")
    assert by_short.startswith("Picked by short trainings of 10: A in 4, B in 4.\n")
    # Beside A four times 0 and four times -1.5: their standard deviation is 0.8018.
    assert "  A                -0.7500 ± 0.5669, -38%\n" in by_short
    assert by_short.endswith("The picks are better than the best single choice, A.")
    assert by_step.startswith("Picked by step 10 of 20: A in 8.\n")
    assert by_step.endswith("The picks cannot be told from the best single choice, A.")
    assert by_last.startswith("Picked by the last step: A in 4, B in 4.\n")
    assert by_last.endswith("The picks are worse than the best single choice, A.")


@pytest.mark.slow
def test_candidates_trains_all_of_them_and_prints_its_table(tmp_path):
    output = run(tmp_path, "candidates.py", "--short", "40", "--steps", "80", "--seeds", "2")
    table = [line for line in output.splitlines() if line.count(" ± ") == 4]
    losses = {
        line[:17].strip(): [float(part.split()[-1]) for part in line.split(" ± ")[:4]]
        for line in table
    }
    assert set(losses) == {"one cycle", "WSD", "Prodigy, cosine", "schedule-free"}
    for after_short, at_the_same_step, at_the_end, validation in losses.values():
        assert at_the_end < min(after_short, at_the_same_step)
        assert max(at_the_end, validation) < np.log(10) / 2  # half of guessing
    # Its constant rate does not depend on how long the training is; the schedules do.
    equal = {name for name, (first, second, *_) in losses.items() if abs(first / second - 1) < 1e-3}
    assert equal == {"schedule-free"}
    assert output.count("Picked by ") == 3


def test_muon_rates_says_what_the_tests_can_tell(capsys):
    muon_rates = example("muon_rates")
    seeds = np.array([1.0, 2.0, 3.0])  # they differ more than the ratios do
    lowest = seeds + np.array([[0.0, 0.1, 0.2], [0.2, 0.2, 0.0]])
    muon_rates.print_tests([0.1, 1.0], np.array([0.02, 0.03]), lowest)
    *_, low, high, picked = capsys.readouterr().out.splitlines()
    assert [row.split()[2:4] + row.split()[-1:] for row in (low, high)] == [
        ["0.02000", "0.00200", "2"],
        ["0.03000", "0.03000", "1"],
    ]
    assert picked == "The tests pick 0.1; within the noise of it: 1."
    # By ratio, part of the peak, seed: 0.1 is the best at the first part only.
    losses = np.array([[seeds, seeds + 1, seeds], [seeds + 1, seeds, seeds - [0, 0.3, 0.6]]])
    muon_rates.print_trained([0.1, 1.0], lowest, losses, 600)
    *_, at_peak, at_third, at_tenth = capsys.readouterr().out.strip().split("\nAt ")
    assert at_peak == (
        "4 x the peak the best is 0.1; within the noise of it: none.\n"
        "  The tests' pick is +0.0000 ± 0.0000 above it."
    )
    assert at_third == (
        "1 x the peak the best is 1; within the noise of it: none.\n"
        "  The tests' pick is +1.0000 ± 0.0000 above it."
    )
    assert at_tenth == (
        "0.4 x the peak the best is 1; within the noise of it: 0.1.\n"
        "  The tests' pick is +0.3000 ± 0.3464 above it."
    )


@pytest.mark.usefixtures("optax_promotion")
def test_muon_rates_trains_the_head_and_the_biases_at_the_other_rate():
    muon_rates = example("muon_rates")
    with jax.numpy_rank_promotion("allow"):  # Flax relies on it
        params = muon_rates.new_params(jax.random.key(0))
    gradients = jax.tree.map(np.ones_like, params)

    def updates_of(rate, ratio):
        optimizer = muon_rates.two_rates(rate, ratio)
        return optimizer.update(gradients, optimizer.init(params), params)[0]["params"]

    once, thrice = updates_of(0.1, 1.0), updates_of(0.1, 3.0)
    scheduled = updates_of(lambda step: 0.1, 3.0)
    for layer, updates in once.items():
        for name, update in updates.items():
            by_muon = name == "kernel" and layer != "head"
            np.testing.assert_allclose(
                thrice[layer][name], update * (1 if by_muon else 3), rtol=1e-5
            )
            np.testing.assert_allclose(scheduled[layer][name], thrice[layer][name], rtol=1e-5)


@pytest.mark.slow
def test_muon_rates_tests_and_trains_its_lanes_together(tmp_path):
    sizes = ("--ratios", "0.1", "3", "--test-steps", "120", "--steps", "40", "--seeds", "2")
    output = run(tmp_path, "muon_rates.py", *sizes)
    assert "The tests pick 0.1; within the noise of it: none." in output
    assert "At 4 x the peak the best is" in output


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the steps are few")
@pytest.mark.usefixtures("optax_promotion")
def test_a_tiny_language_model_trains_better_at_the_tested_peak_than_at_customary_ones(capsys):
    language_model = example("language_model")
    size = language_model.Size(16, 1, 2, 16, 8, 2, 40, 200_000, 16)
    with jax.numpy_rank_promotion("allow"):  # Flax relies on it
        language_model.compare(language_model.Task(size), test_batches=120, peaks=(1e-4,))
    table = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" s")]
    losses = [float(line.split()[-3]) for line in table]
    assert len(losses) == 6
    tested, customary, lowest_of_grid = losses[:3], losses[3:5], losses[5]
    assert max(tested) < min(customary) < lowest_of_grid < 1.1 * np.log(256)  # guessing


@pytest.mark.slow
def test_accuracy_bounds_prints_its_table_and_writes_its_figure(tmp_path):
    output = run(tmp_path, "accuracy_bounds.py", "--steps", "80", "--seeds", "2")
    table = [line for line in output.splitlines() if " ± " in line and "sd" not in line]
    assert len(table) == 6
    accuracies = {
        line.split(",")[1].strip(): float(line.split(" ± ")[-2].split()[-1]) for line in table
    }
    divergence = accuracies.pop("there and back")  # up to there, a run may break
    assert 0 < divergence <= 100
    assert all(50 < accuracy <= 100 for accuracy in accuracies.values())
    assert (tmp_path / "accuracy_bounds.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_swa_prints_its_table(tmp_path):
    output = run(tmp_path, "swa.py", "--steps", "160", "--seeds", "2")
    table = [line for line in output.splitlines() if line.count(" ± ") == 2 and "sd" not in line]
    assert len(table) == 4
    assert all(80 < float(line.split(" ± ")[0].split()[-1]) <= 100 for line in table)


@pytest.mark.slow
def test_sampling_finds_every_mode_with_cycles_and_fewer_at_a_constant_rate(tmp_path):
    output = run(tmp_path, "sampling.py", "--steps", "30000", "--keys", "2", xla_flags=[])
    table = [line for line in output.splitlines() if line.endswith("%")]
    assert len(table) == 6
    # Modes found, divergence and the percentage in none, by sampler and what its rate is best at.
    rows = {
        (line[:35].strip(), line[35:].split()[0]): [
            float(line.split(" (")[0].split()[-1]), *map(float, line.rstrip("%").split()[-2:])
        ]
        for line in table
    }  # fmt: skip
    modes, divergence, in_none = rows["cyclical, noise throughout", "divergence"]
    assert modes == 25
    assert rows["constant", "divergence"][0] < modes
    assert all(rows["constant", aim][1] > 4 * divergence for aim in ("divergence", "modes"))
    assert all(rows["constant", aim][2] > 4 * in_none for aim in ("divergence", "modes"))
    assert rows["cyclical, exploring without noise", "divergence"][1] < rows["constant", "modes"][1]


@pytest.mark.slow
def test_snapshots_prints_its_table_of_ensembles(tmp_path):
    output = run(tmp_path, "snapshots.py", "--steps", "500", "--seeds", "2")
    table = [line for line in output.splitlines() if " ± " in line and "sd" not in line]
    assert len(table) == 16
    accuracies, losses = {}, {}
    for line in table:
        *name, members, accuracy, _, _, loss, _, _, change, _, _ = line.split()
        accuracies[" ".join(name), int(members)] = float(accuracy)
        losses[" ".join(name), int(members)] = float(loss)
        assert abs(float(loss) - losses["one run", 1] - float(change)) < 0.002
    # Before they have converged, runs from scratch may still guess; the others may not.
    assert all(70 < a <= 100 for (name, _), a in accuracies.items() if name != "separate runs")
    assert all(0 < loss < 2.303 for loss in losses.values())  # log(10) is guessing
    assert losses["separate runs", 5] < losses["separate runs", 1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_linen.py", "train_nnx.py"])
def test_a_flax_run_that_stops_in_mid_cycle_resumes_bit_for_bit(tmp_path, name):
    # A rise is 60 steps and an epoch 30: 45 is within both.
    straight = run(tmp_path, name, "--checkpoints", "straight", "--steps", "90")
    stopped = run(tmp_path, name, "--checkpoints", "parts", "--steps", "45")
    resumed = run(tmp_path, name, "--checkpoints", "parts", "--steps", "90", "--resume")

    assert stopped.splitlines()[-1].startswith("step 45: ")
    assert straight.splitlines()[-1].startswith("step 90: ")
    assert resumed.splitlines()[-1] == straight.splitlines()[-1]
    assert "step 40: " not in resumed  # it did not begin again
    assert "step 80: " in resumed
