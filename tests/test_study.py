"""The pages show what the study has stored: every part that a script makes is made again here."""

import importlib
import pathlib

import numpy as np
import pytest

DOCS = pathlib.Path(__file__).parents[1] / "docs"


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "study")
    return importlib.import_module


def test_the_parts_of_training_and_schedules_are_made_from_what_is_stored(study):
    training, pages = study("training"), study("pages")
    sections = training.sections_of(training.load())
    for page, names in training.PARTS.items():
        text = (DOCS / "pages" / page).read_text()
        assert all(f"<!-- training: {name} -->" in text for name in names)
        assert pages.filled(text, "training", sections) == text


def test_the_parts_of_alternatives_are_made_from_what_is_stored(study):
    rivals, pages = study("rivals"), study("pages")
    sections = rivals.sections_of(rivals.loaded(rivals.TASKS), rivals.loaded(rivals.BADLY_SCALED))
    text = (DOCS / "pages" / "alternatives.md").read_text()
    assert all(f"<!-- rivals: {name} -->" in text for name in sections)
    assert pages.filled(text, "rivals", sections) == text


@pytest.mark.parametrize("name", ["todays_optimizers", "optimizer_factors"])
def test_the_tables_about_optimizers_are_made_from_what_is_stored(study, name):
    script, pages = study(name), study("pages")
    sections = script.sections_of(np.load(script.FILE))
    text = (DOCS / "pages" / "optimizer-kinds.md").read_text()
    assert all(f"<!-- {name}: {part} -->" in text for part in sections)
    assert pages.filled(text, name, sections) == text


@pytest.mark.parametrize("size", ["gpu", "small"])
def test_the_tables_of_the_language_model_are_made_from_what_is_stored(study, size):
    language_model = study("language_model")
    plan = language_model.PLANS[size]
    text = (DOCS / "study" / "README.md").read_text()
    assert "\n".join(language_model.report(plan, dict(np.load(plan.file)))) in text


def test_a_measurement_of_the_language_model_stops_in_time_and_goes_on_later(
    study, monkeypatch, tmp_path
):
    language_model = study("language_model")
    now, measured = [0.0], []

    def cell(self, length, variant):
        now[0] += length  # a second for each update
        measured.append((length, variant))
        return {"loss": np.float32(variant)}

    monkeypatch.setattr(language_model.Measurement, "__init__", lambda self, size: None)
    monkeypatch.setattr(language_model.Measurement, "test", cell)
    monkeypatch.setattr(language_model.Measurement, "training", cell)
    monkeypatch.setattr(language_model.time, "perf_counter", lambda: now[0])
    plan = language_model.QUICK._replace(file=tmp_path / "rows.npz", peaks=(1.0, 2.0, 3.0))
    language_model.measure(plan, 4, {})
    assert measured == [(80, 0), (80, 1), (30, 1.0), (30, 2.0)]  # 220 s, and 30 more are too many
    language_model.measure(plan, 4, dict(np.load(plan.file)))
    assert measured[4:] == [(30, 3.0)]
    with np.load(plan.file) as stored:
        assert language_model.grid_of(plan, stored)[30].tolist() == [1.0, 2.0, 3.0]


def test_a_loss_between_peaks_of_a_grid_is_interpolated_in_their_logarithm(study):
    losses = study("language_model").loss_at(
        [1.0, 2.0, 8.0, 20.0], (1.0, 4.0, 5.0, 16.0), np.array([3.0, 1.0, np.nan, 2.0])
    )
    np.testing.assert_allclose(losses, [3.0, 2.0, 1.5, np.nan], rtol=1e-6)


def test_a_part_that_differs_is_noticed(study):
    pages = study("pages")
    text = (
        "# A\n\n<!-- study: one -->\n\n1.00\n\n<!-- end -->\n\n<!-- other: one -->\n<!-- end -->\n"
    )
    assert pages.filled(text, "study", {"one": ["1.00"]}) == text
    assert pages.filled(text, "study", {"one": ["1.01"]}) == text.replace("1.00", "1.01")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.01, 0.02, 0.03, 0.02], "equal"),  # 2% worse, and certain to be within 5%
        ([0.30, 0.31, 0.29, 0.30], "worse"),
        ([-0.30, -0.31, -0.29, -0.30], "better"),
        ([-0.30, 0.31, 0.05, -0.02], "open"),
    ],
)
def test_a_verdict_is_of_the_interval_and_the_margin(study, values, expected):
    comparisons = study("comparisons")
    assert comparisons.verdict(np.array(values), 1, comparisons.RATIO_MARGIN) == expected


def test_intervals_are_wider_for_more_comparisons_and_a_run_that_diverged_is_ten_times_worse(study):
    comparisons = study("comparisons")
    values = np.array([1.0, 2.0, 3.0, 4.0])
    # Student's t with three degrees of freedom: 3.182 at 97.5% (from a printed table), and
    # 4.857 at 99.17%, which is 5% on both sides of three intervals.
    error = values.std(ddof=1) / 2
    np.testing.assert_allclose(comparisons.half_interval(values), 3.182 * error, rtol=1e-3)
    np.testing.assert_allclose(comparisons.half_interval(values, 3), 4.857 * error, rtol=1e-3)
    ratios = comparisons.log_ratios([np.nan, 2.0, np.inf], [1.0, 1.0, np.nan])
    np.testing.assert_allclose(ratios, [np.log(10), np.log(2), 0.0], rtol=1e-12)


def test_holm_rejects_the_smallest_until_one_is_too_large(study):
    # Of four at 5%: .0125, .0167, .025, .05; the third is above, so the fourth is kept as well.
    rejected = study("comparisons").holm([0.04, 0.001, 0.03, 0.01])
    assert rejected.tolist() == [False, True, False, True]
