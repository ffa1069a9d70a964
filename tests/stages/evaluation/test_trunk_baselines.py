"""Logistic regression on trunk features, compared with scikit-learn directly."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from stages.evaluation.trunk_baselines import DEFAULT_PENALTY, PENALTIES, logistic_regression


def random_features(count: int, classes: int = 4, *, seed: int, scale: float = 30.0):
    """Return features, with very different variances, and labels."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 12, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(classes, (count,), generator=generator)
    features = centres[labels] + torch.randn(count, 12, generator=generator)
    return scale * features * torch.logspace(-2, 0, 12) + 5, labels


def scikit_learn_predictions(train, labels, queries, penalty: float) -> np.ndarray:
    """Return what scikit-learn predicts, from features in float64 and solved to the end."""
    centred = train.double() - train.double().mean(0)
    scale = centred.square().mean().sqrt()
    model = LogisticRegression(C=penalty, tol=1e-8, max_iter=10_000)
    model.fit((centred / scale).numpy(), labels.numpy())
    return model.predict(((queries.double() - train.double().mean(0)) / scale).numpy())


def test_predictions_equal_scikit_learn_with_a_fixed_penalty():
    (train, labels), (queries, _) = random_features(150, seed=2), random_features(200, seed=3)
    result = logistic_regression(queries, train, labels)
    assert result.penalty == DEFAULT_PENALTY
    expected = scikit_learn_predictions(train, labels, queries, DEFAULT_PENALTY)
    assert (result.labels == expected).mean() > 0.98
    assert len(set(expected)) == 4


def test_the_penalty_is_chosen_on_validation():
    (train, labels), (queries, _) = random_features(60, seed=2), random_features(200, seed=3)
    validation = random_features(80, seed=4)
    accuracies = []
    for penalty in PENALTIES:
        predicted = scikit_learn_predictions(train, labels, validation[0], penalty)
        accuracies.append((predicted == validation[1].numpy()).mean())
    result = logistic_regression(queries, train, labels, validation=validation)
    chosen = accuracies[PENALTIES.index(result.penalty)]
    assert chosen > max(accuracies) - 0.03 and chosen > min(accuracies) + 0.03
    # Validation labels at random favour another penalty: the choice depends on them.
    shuffled = (validation[0], validation[1].flip(0))
    assert (
        logistic_regression(queries, train, labels, validation=shuffled).penalty != result.penalty
    )


def test_predictions_do_not_depend_on_scale_and_offset():
    (train, labels), (queries, _) = random_features(150, seed=2), random_features(200, seed=3)
    result = logistic_regression(queries, train, labels)
    moved = logistic_regression(1e3 * queries - 7, 1e3 * train - 7, labels)
    assert (moved.labels == result.labels).mean() > 0.99


@pytest.mark.parametrize("validated", [False, True])
def test_degenerate_features(validated):
    labels = torch.tensor([0, 0, 0, 2])
    validation = (torch.ones(2, 3), torch.tensor([1, 2])) if validated else None
    equal = logistic_regression(torch.ones(5, 3), torch.ones(4, 3), labels, validation=validation)
    assert equal.labels.tolist() == [0] * 5
    one_class = torch.full((4,), 2)
    result = logistic_regression(torch.ones(5, 3), torch.randn(4, 3), one_class)
    assert result.labels.tolist() == [2] * 5
