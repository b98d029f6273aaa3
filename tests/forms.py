"""Many forms of one kind, of which a few are tried in every run of the tests."""

import pytest


def mostly_slow(cases, usual):
    """The cases for pytest.mark.parametrize, of which all but the usual ones are marked slow.

    For those that go the same way through the library, and of which each compiles its own programs.
    """
    cases, usual = list(cases), list(usual)
    assert all(case in cases for case in usual)
    return [case if case in usual else pytest.param(case, marks=pytest.mark.slow) for case in cases]
