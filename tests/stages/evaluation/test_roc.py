"""The ROC curve of known and unknown images equals scikit-learn's."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from stages.evaluation.roc import accepted_at_95, placements


def cases():
    generator = np.random.default_rng(0)
    yield generator.normal(1, 1, 60), generator.normal(0, 1, 45)
    # Rounded, so that scores are tied.
    yield generator.normal(1, 1, 60).round(), generator.normal(0, 1, 45).round()
    yield np.zeros(5), np.zeros(3)  # all equal
    yield np.ones(1), np.zeros(1)  # separated
    yield np.zeros(4), np.ones(7)  # reversed
    yield np.arange(19.0), np.arange(21.0)  # fewer than 20 known images


@pytest.mark.parametrize(("known", "unknown"), list(cases()))
def test_equals_scikit_learn(known, unknown):
    truth = np.repeat([1, 0], [len(known), len(unknown)])
    scores = np.concatenate([known, unknown])
    assert placements(known, unknown).mean() == pytest.approx(roc_auc_score(truth, scores))
    false_rate, true_rate, _ = roc_curve(truth, scores, drop_intermediate=False)
    expected = false_rate[true_rate >= 0.95].min()
    assert accepted_at_95(known, unknown).mean() == pytest.approx(expected)


def test_placements_equal_counting():
    generator = np.random.default_rng(1)
    known, unknown = generator.integers(0, 5, 20), generator.integers(0, 5, 10)
    for value, share in zip(unknown, placements(known, unknown), strict=True):
        counted = sum(1.0 if k > value else 0.5 if k == value else 0.0 for k in known)
        assert share == pytest.approx(counted / 20)
