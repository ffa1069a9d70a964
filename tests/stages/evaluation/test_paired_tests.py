"""Paired tests equal reference implementations; intervals cover the true difference."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories import add_noise, evaluate_random, interval_coverage, random_embeddings
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from stages.evaluation.paired_tests import _compare_triplets, compare_runs, mcnemar_test
from stages.evaluation.triplets_and_rankings import measure_split


def disagreement(generator, count, only_a, only_b):
    """Draw two classifiers that are correct alone with the given probabilities."""
    draw = generator.random(count)
    return draw < only_a, (draw >= only_a) & (draw < only_a + only_b)


@pytest.mark.parametrize(
    ("only_a", "only_b", "both", "neither"),
    [(0, 0, 9, 1), (1, 0, 5, 5), (8, 2, 80, 10), (30, 45, 400, 25), (0, 12, 3, 0)],
)
def test_mcnemar_equals_statsmodels(only_a, only_b, both, neither):
    a = np.repeat([True, False, True, False], (only_a, only_b, both, neither))
    b = np.repeat([False, True, True, False], (only_a, only_b, both, neither))
    test = mcnemar_test("a", "b", "test", a, b)
    expected = mcnemar([[both, only_a], [only_b, neither]], exact=True)
    assert test.p_value == pytest.approx(float(expected.pvalue))
    assert test.difference == pytest.approx(a.mean() - b.mean())
    assert test.low <= test.difference <= test.high


def test_swapping_a_and_b_changes_the_sign():
    generator = np.random.default_rng(0)
    a, b = generator.random(200) < 0.9, generator.random(200) < 0.8
    test, swapped = mcnemar_test("a", "b", "test", a, b), mcnemar_test("b", "a", "test", b, a)
    assert (test.difference, test.low, test.high) == pytest.approx(
        (-swapped.difference, -swapped.high, -swapped.low)
    )
    assert test.p_value == swapped.p_value


def test_paired_interval_covers_95_percent():
    generator, coverages = np.random.default_rng(0), []
    for count in (60, 200, 800):
        for only_a, only_b in ((0.02, 0.02), (0.05, 0.02), (0.1, 0.02), (0.15, 0.1)):

            def draw(count=count, only_a=only_a, only_b=only_b):
                a, b = disagreement(generator, count, only_a, only_b)
                test = mcnemar_test("a", "b", "test", a, b)
                return test.low, test.high

            coverages.append(interval_coverage(draw, only_a - only_b, draws=400))
    assert 0.93 <= np.mean(coverages) <= 0.97, coverages
    assert min(coverages) > 0.9, coverages


@pytest.mark.slow
def test_mcnemar_keeps_its_level():
    """Equally good classifiers are significant in at most 5% of draws, as the test is exact."""
    generator, significant = np.random.default_rng(0), 0
    for _ in range(2000):
        a, b = disagreement(generator, 400, 0.08, 0.08)
        significant += mcnemar_test("a", "b", "test", a, b).p_value < 0.05
    assert 0.015 < significant / 2000 <= 0.055


def test_compare_runs_equals_differences_of_scores():
    test, gallery = random_embeddings(150, 4), random_embeddings(200, 4, seed=2)
    a = evaluate_random(test, gallery)
    b = evaluate_random(add_noise(test, 0.35), gallery)
    tests = {paired.metric_a: paired for paired in compare_runs(a, b)}
    for metric in ("knn_accuracy", "classification_accuracy", "triplet_accuracy", "map_at_r"):
        difference = a.score(metric).value - b.score(metric).value
        assert tests[metric].difference == pytest.approx(difference)
        assert tests[metric].low < tests[metric].difference < tests[metric].high
    expected = stats.ttest_rel(a.measures.map_at_r, b.measures.map_at_r)
    interval = (tests["map_at_r"].low, tests["map_at_r"].high)
    assert tests["map_at_r"].p_value == pytest.approx(expected.pvalue)
    assert interval == pytest.approx(tuple(expected.confidence_interval()))


def test_a_run_equals_itself():
    run = evaluate_random(random_embeddings(150, 4), random_embeddings(200, 4, seed=2))
    for test in compare_runs(run, run):
        assert test.difference == 0 and test.p_value == 1


def test_triplet_difference_equals_leaving_out_each_image():
    a = random_embeddings(24, 3)
    b = add_noise(a, 0.4)

    def accuracy(embeddings, kept):
        measures = measure_split(embeddings.vectors[kept], embeddings.labels[kept])
        return measures.won.sum() / measures.total.sum()

    estimates = []
    for image in range(24):
        kept = np.delete(np.arange(24), image)
        estimates.append(accuracy(a, kept) - accuracy(b, kept))
    error = np.sqrt(23 / 24 * np.square(np.array(estimates) - np.mean(estimates)).sum())
    test = _compare_triplets(measure_split(a.vectors, a.labels), measure_split(b.vectors, b.labels))
    assert (test.high - test.low) / 2 == pytest.approx(1.959964 * error, rel=1e-4)
    assert test.p_value == pytest.approx(2 * stats.norm.sf(abs(test.difference) / error), rel=1e-4)


@pytest.mark.slow
def test_triplet_difference_covers_95_percent():
    """The true difference is taken as the mean over all draws."""
    tests, generator = [], torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(3, 6, generator=generator), dim=1)
    labels = torch.arange(60) % 3
    for _ in range(300):
        shared = torch.randn(60, 6, generator=generator)
        measures = []
        for noise in (0.4, 0.55):
            offsets = shared + 0.5 * torch.randn(60, 6, generator=generator)
            measures.append(measure_split(F.normalize(centres[labels] + noise * offsets), labels))
        tests.append(_compare_triplets(*measures))
    truth = np.mean([test.difference for test in tests])
    assert 0.92 <= np.mean([test.low <= truth <= test.high for test in tests]) <= 0.985
