"""Reliability bins and calibration error equal scikit-learn's and known values."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from stages.evaluation.calibration_error import calibration_score, reliability


def test_reliability_equals_scikit_learn():
    generator = np.random.default_rng(3)
    confidence = generator.uniform(0.2, 1, 3000)
    correct = generator.random(3000) < confidence**2
    counts, mean_confidence, accuracy = reliability(confidence, correct)
    expected_accuracy, expected_confidence = calibration_curve(correct, confidence, n_bins=15)
    filled = counts > 0
    np.testing.assert_allclose(accuracy[filled], expected_accuracy)
    np.testing.assert_allclose(mean_confidence[filled], expected_confidence)
    gaps = np.abs(expected_accuracy - expected_confidence)
    score = calibration_score("calibration_error", "test", confidence, correct, "")
    assert score.value == pytest.approx((counts[filled] * gaps).sum() / 3000)


def test_reliability_bins_include_0_and_1():
    counts = reliability(np.array([0.0, 1.0]), np.array([False, True]))[0]
    assert counts.tolist() == [1] + [0] * 13 + [1]


@pytest.mark.parametrize(("confidence", "error"), [(0.7, 0), (1.0, 0.3)])
def test_calibration_error_of_constant_confidence(confidence, error):
    correct = np.arange(1000) % 10 < 7
    score = calibration_score("m", "test", np.full(1000, confidence), correct, "")
    assert score.value == pytest.approx(error)
