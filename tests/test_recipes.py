"""What the page of recipes says of its code."""

import csv
import os
import pathlib
import re
import sys
import types

import chex
import jax
import numpy as np
import optax
import pytest

import optax_clr

PAGE = (pathlib.Path(__file__).parents[1] / "docs/pages/recipes.md").read_text()
pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """The names that the page defines, and the folder in which it ran."""
    folder, names = tmp_path_factory.mktemp("recipes"), {}
    before = os.getcwd()
    os.chdir(folder)
    try:
        with jax.numpy_dtype_promotion("standard"):
            for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
                exec(compile(block, "recipes.md", "exec"), names)
    finally:
        os.chdir(before)
    return types.SimpleNamespace(**names, folder=folder)


def test_a_decay_from_a_checkpoint_is_that_of_a_run_planned_so(recipes):
    planned = recipes.optimizer_until(500)
    first, second = jax.random.split(jax.random.key(0))
    start = {
        "body": jax.random.normal(first, (64, 32)) / 8,
        "head": jax.random.normal(second, (32, 10)) / 6,
    }
    from_the_start = recipes.train(planned, (start, planned.init(start)), 500)
    chex.assert_trees_all_equal(from_the_start, recipes.decayed)
    last_rate = optax_clr.get_hyperparams(recipes.decayed[1])["learning_rate"]
    np.testing.assert_allclose(last_rate, 0.005 / recipes.DECAY_STEPS, rtol=1e-6)


def test_a_decay_lowers_the_validation_loss(recipes):
    losses = [
        recipes.loss_fn(params, recipes.validation)
        for params, _ in (recipes.checkpoint, recipes.decayed)
    ]
    assert losses[1] < losses[0]


def test_the_body_learns_at_a_tenth_of_the_rate(recipes):
    optimizer = recipes.discriminative(0.1)
    params = {name: np.zeros_like(leaf) for name, leaf in recipes.params.items()}
    gradients = {name: np.ones_like(leaf) for name, leaf in recipes.params.items()}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    # The first update of Adam is the rate itself.
    np.testing.assert_allclose(updates["body"], -0.01, rtol=1e-5)
    np.testing.assert_allclose(updates["head"], -0.1, rtol=1e-5)


def test_validation_batches_are_read_as_a_held_out_batch_is(recipes):
    params, _ = recipes.start
    expected = optax_clr.lr_range_test(
        recipes.loss_fn, params, optax.adam, recipes.train_loader * 5, min_lr=1e-6, num_steps=200,
        held_out=recipes.valid_loader[0],
    )  # fmt: skip
    same_batch = [(batch, recipes.valid_loader[0]) for batch in recipes.train_loader] * 5

    result = optax_clr.range_test(
        recipes.step_fn, recipes.start, same_batch, recipes.rates, has_aux=True
    )
    validated = result._replace(held_out_losses=result.metrics)

    # The rates of later rows are so high that a last bit becomes a first.
    for column in ("losses", "held_out_losses"):
        got, wanted = (getattr(each, column)[:150] for each in (validated, expected))
        np.testing.assert_allclose(got, wanted, rtol=1e-3)
    np.testing.assert_allclose(validated.bounds(), expected.bounds(), rtol=0.05)
    assert result.bounds() != validated.bounds()


def test_the_page_reads_its_validation_loader(recipes):
    assert recipes.result.num_valid > 100
    # By another loss of the same model: close to what its training reads, and not the same.
    ratio = recipes.validated.bounds().peak_value / recipes.result.bounds().peak_value
    assert 0.3 < ratio < 3
    assert ratio != 1


def test_the_log_has_the_rates_of_the_schedule(recipes):
    with (recipes.folder / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "20", "40"]
    for row in rows:
        rate = recipes.rate(int(row["step"]))
        np.testing.assert_allclose(float(row["learning_rate"]), rate, rtol=1e-6)
        assert 0 < float(row["loss"]) < 5


def test_a_tensorboard_writer_is_given_every_value(recipes, monkeypatch):
    # TensorBoard is no dependency: a stand-in with the one method that the page calls.
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            self.close = lambda: None

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

    stand_in = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "tensorboardX", stand_in)
    (block,) = re.findall(r"```py\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(block, "recipes.md", "exec"), {"values": recipes.values, "step": 40})
    assert [(name, step) for name, _, step in written] == [("loss", 40), ("learning_rate", 40)]
    assert written[1][1] == float(recipes.values["learning_rate"])
