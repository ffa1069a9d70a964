"""Temperature scaling and the choice of k on validation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clusters import make_clusters
from scipy.optimize import minimize_scalar

from stages.classifier.calibration import choose_k, fit_temperature
from stages.evaluation.knn import knn


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_temperature_is_recovered(true_temperature):
    """Draw labels from softmax(z / T): the fit returns T and agrees with a plain search."""
    generator = np.random.default_rng(0)
    scores = torch.log_softmax(torch.from_numpy(generator.normal(scale=4, size=(20_000, 5))), 1)
    probabilities = torch.softmax(scores / true_temperature, 1).numpy()
    labels = torch.from_numpy((probabilities.cumsum(1) > generator.random((20_000, 1))).argmax(1))
    temperature = fit_temperature(scores.float(), labels)
    reference = minimize_scalar(
        lambda t: F.cross_entropy(scores / t, labels).item(), bounds=(0.1, 10), method="bounded"
    ).x
    assert temperature == pytest.approx(true_temperature, rel=0.06)
    assert temperature == pytest.approx(reference, rel=0.02)


def test_probabilities_stay_below_1_without_validation_errors():
    labels = torch.arange(50) % 2
    scores = torch.log_softmax(F.one_hot(labels).float() * 3, 1)
    calibrated = torch.softmax(scores / fit_temperature(scores, labels), 1).max(1).values
    laplace = 51 / 52  # rule of succession
    assert calibrated.mean().item() == pytest.approx(laplace, abs=1e-3)


def test_k_has_best_validation_accuracy_and_ties_choose_default():
    train, validation = make_clusters(300, noise=0.8), make_clusters(150, noise=0.8, seed=1)
    k = choose_k(validation.vectors, validation.labels, train.vectors, train.labels)
    correct = {}
    for n in (1, 5, 20):
        predicted = knn(validation.vectors, train.vectors, train.labels, k=n).labels
        correct[n] = (predicted == validation.labels.numpy()).sum()
    assert correct[1] < correct[20]
    assert k > 1
    easy = make_clusters(60, noise=0.01)
    assert choose_k(easy.vectors, easy.labels, easy.vectors, easy.labels) == 5
    assert choose_k(easy.vectors[:2], easy.labels[:2], easy.vectors[:4], easy.labels[:4]) == 1
