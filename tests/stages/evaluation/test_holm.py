"""Holm's correction, compared with statsmodels."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from stages.evaluation.holm import holm_adjust

P_VALUES = st.lists(st.one_of(st.none(), st.floats(0, 1), st.sampled_from((0.0, 0.01, 0.02, 1.0))))


@settings(max_examples=50)
@given(P_VALUES)
def test_equals_statsmodels_without_the_missing_tests(p_values):
    adjusted = holm_adjust(p_values)
    assert [value is None for value in adjusted] == [value is None for value in p_values]
    tested = [value for value in p_values if value is not None]
    if tested:
        expected = multipletests(tested, method="holm")[1]
        ours = [value for value in adjusted if value is not None]
        assert ours == pytest.approx(list(expected), abs=1e-12)


def test_one_test_needs_no_correction():
    assert holm_adjust([0.04]) == [0.04] and holm_adjust([None, 0.04]) == [None, 0.04]
    assert holm_adjust([]) == []


def test_correction_can_take_away_significance():
    assert holm_adjust([0.04, 0.03]) == [0.06, 0.06]
