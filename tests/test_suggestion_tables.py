"""The tables about suggestions in the documentation are those of what the study stored."""

import importlib.util
import itertools
import pathlib
import re

import numpy as np
import pytest

from optax_clr import _presentation

ROOT = pathlib.Path(__file__).parents[1]


def load_tables():
    """The script that makes the tables; it needs NumPy and SciPy alone."""
    path = ROOT / "docs" / "study" / "suggestion_tables.py"
    spec = importlib.util.spec_from_file_location("suggestion_tables", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLES = load_tables()


@pytest.fixture(scope="module")
def stored():
    return TABLES.load()


@pytest.mark.parametrize("page", TABLES.PAGES)
def test_a_page_has_the_tables_of_what_is_stored(page, stored):
    text = (ROOT / page).read_text()
    missing = [table.__name__ for table in TABLES.PAGES[page] if table(*stored) not in text]
    assert not missing


def test_every_table_of_suggestions_changes_with_what_is_stored(stored):
    moved = [
        {
            key: 1.7 * value if value.dtype == np.float32 and "/range test" in key else value
            for key, value in part.items()
        }
        for part in stored
    ]
    moved[1]["150/range test"] = stored[1]["150/range test"]  # or all lengths move alike
    moved[1]["600/range test"] = 1.2 * stored[1]["600/range test"]
    for table in itertools.chain(*TABLES.PAGES.values()):
        assert table(*moved) != table(*stored)


def test_the_summary_says_how_often_such_rates_are_near_the_best(stored):
    rows = TABLES.within_table(*stored).splitlines()[2:]
    shares = [int(row.split("|")[4].strip(" %")) for row in rows]
    assert "within 3x" in TABLES.within_table(*stored).splitlines()[0].split("|")[4]
    assert all(55 <= share < 75 for share in shares)
    assert "six or seven of ten held-out tasks" in _presentation._ACCURACY


def test_a_shift_that_all_tasks_share_is_told_from_chance(stored):
    """Wide intervals of the paired differences hide a mean; equal ones do not."""
    regrets, suggestions = stored
    rule = "fastai minimum"
    shifted = dict(regrets)
    for length in TABLES.LENGTHS:
        for use in TABLES.USES:
            ours = regrets[f"{length}/{TABLES.OURS}/{use}"]
            noise = 0.01 * (-1.0) ** np.arange(len(ours))
            shifted[f"{length}/{rule}/{use}"] = ours + 0.1 + noise
    row = next(
        line for line in TABLES.differences_table(shifted, suggestions).splitlines() if rule in line
    )
    assert row.count("**") == 2 * 6
    assert "+.10 ± .01" in row


def held_out_peaks():
    """``{schedule: [a row of peaks.txt for each length]}`` of the held-out tasks.

    The numbers of a row are predicted, observed, its two quartiles, and mean, median and worst
    regret.
    """
    text = (ROOT / "docs" / "study" / "peaks.txt").read_text()
    rows = {}
    for line in text[text.index("held-out") :].splitlines():
        name, *numbers = re.split(r"\s{2,}", line.strip())
        found = re.findall(r"\d+\.\d+", " ".join(numbers))
        if len(found) == 7:
            rows.setdefault(name, []).append([float(number) for number in found])
    return rows


def test_the_page_has_the_peaks_that_the_study_printed():
    text = (ROOT / "docs" / "pages" / "suggestions.md").read_text()
    section = text[text.index("## Any schedule") : text.index("## Longer trainings")]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"][2:]
    renamed = {"cosine, warm-up": "cosine", "linear decay": "linear"}
    known = held_out_peaks()
    assert {renamed.get(name, name) for name, *_ in rows} == set(known)
    for name, *cells in rows:
        short, long = known[renamed.get(name, name)]
        found = [float(number) for number in re.findall(r"\d*\.\d+", " ".join(cells))]
        expected = [short[0], long[0], short[1], long[1], short[4], short[6], long[4], long[6]]
        assert found == expected, name
