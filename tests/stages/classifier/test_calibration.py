"""Temperature scaling."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar

from stages.classifier.calibration import (
    PRIOR_WIDTH,
    fit_temperature,
    update_temperature,
)


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


def draw_labels(scores: torch.Tensor, temperature: float, generator) -> torch.Tensor:
    """Draw labels from softmax(scores / temperature)."""
    probabilities = torch.softmax(scores / temperature, 1).numpy()
    draws = generator.random((len(scores), 1))
    return torch.from_numpy((probabilities.cumsum(1) > draws).argmax(1))


@pytest.mark.parametrize(
    ("count", "shrinkage", "spread"),
    [(20, 0.45, 0.26), (50, 0.25, 0.2), (200, 0.1, 0.15), (1000, 0.03, 0.08)],
)
@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 2.0])
def test_more_images_move_the_temperature_from_the_prior_to_the_truth(
    count, shrinkage, spread, true_temperature
):
    """Simulate 50 draws with prior 1: mean and standard deviation of the error of log T."""
    errors = []
    for seed in range(50):
        generator = np.random.default_rng(seed)
        scores = torch.log_softmax(torch.from_numpy(generator.normal(scale=4, size=(count, 5))), 1)
        labels = draw_labels(scores, true_temperature, generator)
        temperature = update_temperature(scores.float(), labels, prior=1.0)
        errors.append(np.log(temperature / true_temperature))
    towards_prior = -np.sign(np.log(true_temperature)) * np.mean(errors)
    standard_error = np.std(errors) / 50**0.5
    if true_temperature == 1:
        assert abs(np.mean(errors)) < 3 * standard_error + 0.01
    else:
        assert -3 * standard_error < towards_prior < shrinkage
    assert np.std(errors) < spread


@pytest.mark.parametrize("prior", [0.05, 0.4, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("count", [1, 2, 30])
def test_updated_temperature_maximises_the_posterior(count, prior):
    generator = np.random.default_rng(count)
    scores = torch.log_softmax(torch.from_numpy(generator.normal(scale=4, size=(count, 3))), 1)
    labels = draw_labels(scores, 2.0, generator)

    def negative_log_posterior(log_temperature: float) -> float:
        losses = F.cross_entropy(scores / np.exp(log_temperature), labels, reduction="sum").item()
        return losses + ((log_temperature - np.log(prior)) / PRIOR_WIDTH) ** 2 / 2

    grid = np.linspace(-np.log(20), np.log(20), 1201)
    lowest = min(map(negative_log_posterior, grid))
    temperature = update_temperature(scores.float(), labels, prior=prior)
    assert 0.05 <= temperature <= 20
    assert negative_log_posterior(np.log(temperature)) == pytest.approx(lowest, abs=2e-3)


@pytest.mark.parametrize("gap", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("count", [1, 5, 20, 50, 200, 1000])
def test_validation_without_errors_lowers_the_temperature_within_bounds(count, gap):
    """The probabilities rise, but predict 0.4 errors at least, or T stays above 0.85."""
    labels = torch.arange(count) % 2
    scores = torch.log_softmax(F.one_hot(labels, 2).float() * gap, 1)
    temperature = update_temperature(scores, labels, prior=1.0)
    confidence = torch.softmax(scores / temperature, 1).max(1).values.double()
    assert temperature <= 1.001
    assert count * (1 - confidence.mean().item()) > 0.4 or temperature > 0.85


def test_one_class_keeps_the_prior():
    assert update_temperature(torch.zeros(3, 1), torch.zeros(3).long(), prior=2.0) == pytest.approx(
        2.0, rel=2e-3
    )
