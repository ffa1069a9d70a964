"""Holm's correction, compared with statsmodels."""

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from stages.evaluation.holm import holm_adjust


@pytest.mark.parametrize("count", [1, 3, 10])
def test_equals_statsmodels_without_the_missing_tests(count):
    generator = np.random.default_rng(count)
    for scale in (0.01, 1.0):
        tested = generator.uniform(0, scale, count).round(3)  # rounding gives equal values
        expected = iter(multipletests(tested, method="holm")[1])
        p_values = tested.tolist()
        for row in generator.integers(0, count + 1, 3):
            p_values.insert(row, None)
        for p_value, adjusted in zip(p_values, holm_adjust(p_values), strict=True):
            if p_value is None:
                assert adjusted is None
            else:
                assert adjusted == pytest.approx(next(expected), abs=1e-12)


def test_one_test_needs_no_correction():
    assert holm_adjust([0.04]) == [0.04] and holm_adjust([None, 0.04]) == [None, 0.04]
    assert holm_adjust([]) == [] and holm_adjust([None]) == [None]


def test_correction_can_take_away_significance():
    assert holm_adjust([0.04, 0.03]) == [0.06, 0.06]


def test_adjusted_values_stay_probabilities():
    assert holm_adjust([1.0, 0.9, 0.0]) == [1.0, 1.0, 0.0]
