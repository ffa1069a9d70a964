"""Paired tests equal reference implementations; intervals cover the true difference."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories import add_noise, evaluate_random, interval_coverage, random_embeddings
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from stages.evaluation.paired_tests import (
    _compare_triplets,
    compare_runs,
    mcnemar_test,
    tango_interval,
)
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
    expected = 1.0
    if only_a + only_b:
        table = [[both, only_a], [only_b, neither]]
        expected = float(mcnemar(table, exact=False, correction=False).pvalue)
    assert test.p_value == pytest.approx(expected)
    assert test.difference == pytest.approx(a.mean() - b.mean())
    assert test.low <= test.difference <= test.high


def test_tango_interval_equals_published_example():
    """Airway hyper-responsiveness of 21 children: Fagerland, Lydersen and Laake 2014."""
    assert tango_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


def test_interval_excludes_zero_exactly_if_significant():
    """All numbers of images that distinguish the classifiers, for up to 60 images."""
    significant = 0
    for count in (*range(1, 21), 30, 45, 60):
        for only_a in range(count + 1):
            for only_b in range(count + 1 - only_a):
                a = np.repeat([True, False, True], (only_a, only_b, count - only_a - only_b))
                b = np.repeat([False, True, True], (only_a, only_b, count - only_a - only_b))
                check_agreement(mcnemar_test("a", "b", "test", a, b))
                significant += mcnemar_test("a", "b", "test", a, b).p_value < 0.05
    assert significant > 1000


def check_agreement(test):
    """Check that p-value and interval agree, and that the interval contains the difference."""
    assert -1 <= test.low <= test.difference <= test.high <= 1 and test.low < test.high
    assert (test.low > 0 or test.high < 0) == (test.p_value < 0.05), test


@pytest.mark.parametrize("repeats", [2, 5])
def test_means_over_repeats_agree_too(repeats):
    generator, p_values = np.random.default_rng(0), []
    for share in np.linspace(0.6, 0.95, 60):
        a = generator.binomial(repeats, 0.9, 40) / repeats
        b = generator.binomial(repeats, share, 40) / repeats
        test = mcnemar_test("a", "b", "test", a, b)
        check_agreement(test)
        p_values.append(test.p_value)
    assert min(p_values) < 0.05 < max(p_values)


def test_repeats_do_not_make_a_difference_significant():
    """Three repeats that agree are no more evidence than one."""
    a, b = np.repeat([True, False], (7, 13)), np.repeat([False, True], (17, 3))
    single, repeated = (
        mcnemar_test("a", "b", "test", a.astype(t), b.astype(t)) for t in (bool, float)
    )
    assert (single.low, single.high, single.p_value) == (
        repeated.low,
        repeated.high,
        repeated.p_value,
    )


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
    """Equally good classifiers are significant in about 5% of draws."""
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
        # The same triplets and the same queries: there is no spread to compute an interval from.
        assert (test.low is None) == (test.metric_a in ("triplet_accuracy", "map_at_r"))


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
