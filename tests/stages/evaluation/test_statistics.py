"""Intervals equal reference implementations and cover the true value in simulations."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories import count_triplets, interval_coverage, unit_vectors
from statsmodels.stats.proportion import proportion_confint

from stages.evaluation.statistics import (
    bounded_mean_interval,
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


@pytest.mark.parametrize(("correct", "count"), [(0, 9), (9, 9), (1, 1), (93, 100), (3000, 3001)])
def test_interval_of_binary_values_is_the_wilson_interval(correct, count):
    values = np.r_[np.ones(correct), np.zeros(count - correct)]
    score = mean_score("m", "test", values, "d")
    assert (score.low, score.high) == pytest.approx(wilson_interval(correct / count, count))


@pytest.mark.parametrize("value", [0.0, 1e-9, 0.3, 0.95, 1 - 1e-9, 1.0])
@pytest.mark.parametrize("count", [1, 2, 9, 100_000])
def test_equal_values_have_an_interval_of_positive_width(value, count):
    score = mean_score("m", "test", np.full(count, value), "d")
    assert 0 <= score.low <= value <= score.high <= 1
    assert score.high - score.low > 0.5 / count**0.9  # close to 1 / count at the ends


def mean_coverages(draw_values, truth, counts, draws=300):
    """Return how often the interval of a mean contains the true mean, per number of values."""

    def interval(count):
        score = mean_score("m", "test", draw_values(count), "d")
        return score.low, score.high

    return {
        count: interval_coverage(lambda count=count: interval(count), truth, draws=draws)
        for count in counts
    }


def test_interval_of_a_mean_covers_95_percent():
    """The values resemble average precision: in [0, 1], mostly close to 1."""
    generator, coverages = np.random.default_rng(0), {}
    for a, b in ((8, 1), (2, 2), (20, 2)):

        def draw(count, a=a, b=b):
            return generator.beta(a, b, count)

        for count, coverage in mean_coverages(draw, a / (a + b), (20, 100, 400)).items():
            coverages[a, b, count] = coverage
    assert 0.93 <= np.mean(list(coverages.values())) <= 0.98, coverages
    assert min(coverages.values()) > 0.91, coverages


def test_interval_of_a_mean_covers_near_the_end_of_the_scale():
    """Nearly all values are 1; the others are spread over [0, 1]."""
    generator, coverages = np.random.default_rng(0), {}
    for rate in (0.005, 0.02, 0.1):

        def draw(count, rate=rate):
            values = np.ones(count)
            failed = generator.random(count) < rate
            values[failed] = generator.random(int(failed.sum()))
            return values

        for count, coverage in mean_coverages(draw, 1 - rate / 2, (9, 40, 200)).items():
            coverages[rate, count] = coverage
    assert 0.93 <= np.mean(list(coverages.values())) <= 0.98, coverages
    assert min(coverages.values()) >= 0.9, coverages  # single points of Wilson's interval are low


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
    assert (low, high) == pytest.approx(bounded_mean_interval(value, error, 15))
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_perfect_triplets_of_nine_images_do_not_prove_perfection():
    """All triplets are won, and leaving out an image changes nothing."""
    vectors = torch.eye(3).repeat_interleave(3, dim=0)
    measures = measure_split(vectors, torch.arange(3).repeat_interleave(3))
    assert triplet_accuracy(measures) == pytest.approx((1.0, *wilson_interval(1.0, 9)))
    assert triplet_accuracy(measures)[1] < 0.75


@pytest.mark.parametrize("labels", [torch.zeros(4).long(), torch.arange(4), torch.arange(0)])
def test_triplet_accuracy_without_triplets_is_undefined(labels):
    measures = measure_split(unit_vectors(len(labels), 3, seed=8), labels)
    assert math.isnan(triplet_accuracy(measures)[0])


def triplet_interval_coverage(
    count: int, classes: int, noise: float, seed: int, *, draws: int = 250
) -> float:
    """Return how often a sample's interval contains the accuracy of its population."""
    generator = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(classes, 4, generator=generator), dim=1)

    def sample_accuracy(size: int) -> tuple[float, float, float]:
        labels = torch.arange(classes).repeat(size // classes)
        offsets = noise * torch.randn(len(labels), 4, generator=generator)
        vectors = F.normalize(centres[labels] + offsets, dim=1)
        return triplet_accuracy(measure_split(vectors, labels))

    truth = float(np.mean([sample_accuracy(1000)[0] for _ in range(4)]))
    return interval_coverage(lambda: sample_accuracy(count)[1:], truth, draws=draws)


@pytest.mark.slow
def test_triplet_interval_covers_95_percent():
    coverages, seed = {}, 0
    for count in (40, 100, 240):
        for classes in (2, 5):
            for noise in (0.3, 0.6, 1.0):
                coverages[count, classes, noise] = triplet_interval_coverage(
                    count, classes, noise, seed, draws=120
                )
                seed += 1
    assert 0.93 <= np.mean(list(coverages.values())) <= 0.97, coverages


@pytest.mark.slow
def test_triplet_interval_covers_near_the_end_of_the_scale():
    """The jackknife alone covers 67%: it is 0 where no triplet is lost."""
    coverages, seed = {}, 100
    for count in (12, 40, 100):
        for classes in (2, 5):
            for noise in (0.15, 0.2):
                coverages[count, classes, noise] = triplet_interval_coverage(
                    count, classes, noise, seed, draws=150
                )
                seed += 1
    assert min(coverages.values()) >= 0.93, coverages
