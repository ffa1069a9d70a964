"""Intervals equal reference implementations and cover the true value in simulations."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories import count_triplets, interval_coverage, unit_vectors
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from stages.evaluation.statistics import (
    mean_score,
    share_score,
    triplet_accuracy,
    wilson_interval,
)
from stages.evaluation.triplets_and_rankings import measure_split


@pytest.mark.parametrize(
    ("correct", "count"), [(0, 7), (7, 7), (1, 1), (93, 100), (500, 1000), (999, 1000)]
)
def test_wilson_interval_equals_statsmodels(correct, count):
    expected = proportion_confint(correct, count, method="wilson")
    np.testing.assert_allclose(wilson_interval(correct / count, count), expected, atol=1e-9)
    values = np.r_[np.ones(correct), np.zeros(count - correct)]
    score = share_score("m", "test", values, "d")
    np.testing.assert_allclose((score.low, score.high), expected, atol=1e-9)


def test_wilson_interval_covers_95_percent():
    generator, coverages = np.random.default_rng(0), []
    for count in (50, 300, 1000):
        for share in (0.7, 0.9, 0.97):

            def draw(count=count, share=share):
                correct = (generator.random(count) < share).astype(float)
                score = share_score("m", "test", correct, "d")
                return score.low, score.high

            coverages.append(interval_coverage(draw, share, draws=400))
    assert 0.93 <= np.mean(coverages) <= 0.97, coverages


@pytest.mark.slow
def test_mean_interval_covers_95_percent():
    """The values resemble average precision: in [0, 1], mostly close to 1."""
    generator, coverages = np.random.default_rng(0), []
    for count in (100, 400):
        for a, b in ((8, 1), (2, 2), (20, 2)):

            def draw(count=count, a=a, b=b):
                score = mean_score("m", "test", generator.beta(a, b, count), "d")
                return score.low, score.high

            coverages.append(interval_coverage(draw, a / (a + b), draws=300))
    assert 0.93 <= np.mean(coverages) <= 0.97, coverages


def test_mean_interval_of_shares_is_the_wilson_interval():
    """Values of 0 and 1 have the standard error of a share, except for the factor n / (n - 1)."""
    values = np.repeat([1.0, 0.0], (950, 50))
    score = mean_score("m", "test", values, "d")
    np.testing.assert_allclose((score.low, score.high), wilson_interval(0.95, 999), atol=1e-12)


def test_mean_interval_resembles_the_bootstrap():
    values = np.random.default_rng(1).beta(8, 2, 300)
    score = mean_score("m", "test", values, "d")
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=5000, rng=np.random.default_rng(2)
    ).confidence_interval
    np.testing.assert_allclose((score.low, score.high), expected, atol=2e-3)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_equal_values_have_an_interval_with_a_width(value):
    score = mean_score("m", "test", np.full(9, value), "d")
    assert (score.low, score.high) == wilson_interval(value, 9)
    assert score.high - score.low > 0.25


@pytest.mark.parametrize("classes", [2, 3])
def test_perfect_triplets_have_an_interval_with_a_width(classes):
    vectors = torch.eye(classes).repeat_interleave(9 // classes, dim=0)
    labels = torch.arange(classes).repeat_interleave(9 // classes)
    value, low, high = triplet_accuracy(measure_split(vectors, labels))
    assert (value, high) == (1, 1) and low == wilson_interval(1.0, len(labels))[0] < 0.75


def test_interval_covers_a_rare_error():
    """Most samples show no error; intervals of width 0 would cover the truth in 40% of draws.

    The Wilson interval covers it in 91% of draws for this share and count.
    """
    generator = np.random.default_rng(0)

    def draw():
        correct = (generator.random(50) < 0.99).astype(float)
        score = mean_score("m", "test", correct, "d")
        return score.low, score.high

    assert interval_coverage(draw, 0.99, draws=500) >= 0.88


def test_triplet_accuracy_is_not_a_mean_over_anchors():
    labels = torch.tensor([0] * 9 + [1] * 3)
    measures = measure_split(unit_vectors(12, 3, seed=6), labels)
    value = triplet_accuracy(measures)[0]
    assert value == measures.won.sum() / measures.total.sum()
    assert value != pytest.approx((measures.won / measures.total).mean(), abs=1e-4)


def test_triplet_jackknife_equals_leaving_out_each_image():
    vectors, labels = unit_vectors(15, 3, seed=7), torch.arange(3).repeat(5)
    value, low, high = triplet_accuracy(measure_split(vectors, labels))
    estimates = []
    for image in range(15):
        kept = np.delete(np.arange(15), image)
        counts = count_triplets(vectors[kept], labels[kept].tolist())
        estimates.append(counts["won"].sum() / counts["total"].sum())
    error = math.sqrt(14 / 15 * np.square(np.array(estimates) - np.mean(estimates)).sum())
    expected = proportion_confint(*wilson_arguments(value, error), method="wilson")
    assert (low, high) == pytest.approx(expected)


def wilson_arguments(value: float, error: float) -> tuple[float, float]:
    """Return the effective number of correct images and of images."""
    images = value * (1 - value) / error**2
    return value * images, images


@pytest.mark.parametrize("labels", [torch.zeros(4).long(), torch.arange(4), torch.arange(0)])
def test_triplet_accuracy_without_triplets_is_undefined(labels):
    measures = measure_split(unit_vectors(len(labels), 3, seed=8), labels)
    assert math.isnan(triplet_accuracy(measures)[0])


def triplet_interval_coverage(count: int, classes: int, noise: float, seed: int) -> float:
    """Return how often a sample's interval contains the accuracy of its population."""
    generator = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(classes, 4, generator=generator), dim=1)

    def sample_accuracy(size: int) -> tuple[float, float, float]:
        labels = torch.arange(classes).repeat(size // classes)
        offsets = noise * torch.randn(len(labels), 4, generator=generator)
        vectors = F.normalize(centres[labels] + offsets, dim=1)
        return triplet_accuracy(measure_split(vectors, labels))

    truth = float(np.mean([sample_accuracy(1000)[0] for _ in range(4)]))
    return interval_coverage(lambda: sample_accuracy(count)[1:], truth, draws=250)


@pytest.mark.slow
def test_triplet_interval_covers_95_percent():
    coverages, seed = {}, 0
    for count in (40, 100, 240):
        for classes in (2, 5):
            for noise in (0.3, 0.6, 1.0):
                coverages[count, classes, noise] = triplet_interval_coverage(
                    count, classes, noise, seed
                )
                seed += 1
    assert 0.93 <= np.mean(list(coverages.values())) <= 0.97, coverages
