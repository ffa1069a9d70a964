"""Paired tests equal reference implementations; intervals cover the true difference."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories import add_noise, evaluate_random, interval_coverage, random_embeddings
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar

from stages.evaluation.paired_tests import (
    _compare_map,
    _compare_triplets,
    compare_runs,
    mcnemar_test,
    tango_interval,
    tango_z,
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
    table = [[both, only_a], [only_b, neither]]
    expected = mcnemar(table, exact=False, correction=False) if only_a + only_b else None
    assert test.p_value == pytest.approx(float(expected.pvalue) if expected else 1)
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


def assert_interval_and_test_agree(count: int) -> None:
    """Check that the interval excludes 0 exactly if p < 0.05, for all discordant counts."""
    for only_a in range(count + 1):
        for only_b in range(min(only_a, count - only_a) + 1):
            low, high = tango_interval(only_a, only_b, count)
            p_value = math.erfc(abs(tango_z(0.0, only_a, only_b, count)) / math.sqrt(2))
            case = (only_a, only_b, count, low, high, p_value)
            assert (low > 0 or high < 0) == (p_value < 0.05), case
            assert -1 <= low <= (only_a - only_b) / count <= high <= 1, case
            assert high - low > 0.5 / count, case
            assert (-high, -low) == pytest.approx(tango_interval(only_b, only_a, count)), case


@pytest.mark.parametrize("count", [1, 2, 5, 9, 14, 23, 60])
def test_interval_excludes_0_exactly_if_the_test_is_significant(count):
    assert_interval_and_test_agree(count)


@pytest.mark.slow
def test_interval_and_test_agree_up_to_60_images():
    for count in range(1, 60):
        assert_interval_and_test_agree(count)


def test_published_example():
    """Fagerland, Lydersen and Laake 2014, airway hyper-responsiveness of 21 children."""
    a = np.repeat([True, True, False, False], (1, 1, 7, 12))
    b = np.repeat([True, False, True, False], (1, 1, 7, 12))
    test = mcnemar_test("a", "b", "test", a, b)
    assert (test.low, test.high) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert test.p_value == pytest.approx(0.034, abs=5e-4)


@pytest.mark.parametrize("only_a, only_b, count", [(1, 7, 21), (3, 2, 40), (5, 1, 9)])
@pytest.mark.parametrize("difference", [-0.6, -0.1, 0.05, 0.4])
def test_statistic_uses_the_maximum_likelihood_under_the_null_hypothesis(
    only_a, only_b, count, difference
):
    def minus_log_likelihood(share_b):
        terms = (
            (only_a, share_b + difference),
            (only_b, share_b),
            (count - only_a - only_b, 1 - 2 * share_b - difference),
        )
        return -sum(number * math.log(share) for number, share in terms)

    bounds = (max(0, -difference) + 1e-12, (1 - difference) / 2 - 1e-12)
    best = optimize.minimize_scalar(
        minus_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}
    )
    variance = (2 * best.x + difference - difference**2) / count
    expected = ((only_a - only_b) / count - difference) / math.sqrt(variance)
    assert tango_z(difference, only_a, only_b, count) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_score_test_and_interval_keep_their_level():
    """Exact coverage and size, by enumeration of all discordant counts."""
    coverages, sizes = [], []
    for count in (10, 20, 50, 100):
        only_a, only_b = np.meshgrid(range(count + 1), range(count + 1), indexing="ij")
        valid = (only_a + only_b <= count).ravel()
        only_a, only_b = only_a.ravel()[valid], only_b.ravel()[valid]
        intervals = np.array(
            [tango_interval(a, b, count) for a, b in zip(only_a, only_b, strict=True)]
        )
        for share_a, share_b in ((0.02, 0.02), (0.1, 0.1), (0.3, 0.3), (0.1, 0.02), (0.4, 0.1)):
            counts = np.stack([only_a, only_b, count - only_a - only_b], axis=1)
            shares = [share_a, share_b, 1 - share_a - share_b]
            probability = stats.multinomial.pmf(counts, count, shares)
            truth = share_a - share_b
            covered = (intervals[:, 0] <= truth) & (truth <= intervals[:, 1])
            coverages.append(probability[covered].sum())
            if truth == 0:
                sizes.append(1 - coverages[-1])
    assert 0.945 <= np.mean(coverages) <= 0.985, coverages
    assert min(coverages) > 0.93, coverages
    assert max(sizes) < 0.065, sizes


@pytest.mark.parametrize("count", [2, 9, 60])
def test_interval_and_test_agree_for_means_over_repeats(count):
    generator = np.random.default_rng(count)
    for repeats in (2, 5):
        for share in (0.5, 0.8, 1.0):
            a = generator.binomial(repeats, share, count) / repeats
            b = generator.binomial(repeats, 0.5, count) / repeats
            for first, second in ((a, b), (a, a), (a, 1 - a), (np.ones(count), np.zeros(count))):
                test = mcnemar_test("a", "b", "test", first, second)
                assert (test.low > 0 or test.high < 0) == (test.p_value < 0.05)
                assert -1 <= test.low <= test.difference <= test.high <= 1
                assert test.high - test.low > 0.1 / count


def test_binary_means_over_repeats_are_compared_like_classifiers():
    generator = np.random.default_rng(0)
    a, b = generator.random(50) < 0.9, generator.random(50) < 0.7
    once, repeated = mcnemar_test("a", "b", "t", a, b), mcnemar_test("a", "b", "t", a * 1.0, b)
    assert (once.low, once.high, once.p_value) == (repeated.low, repeated.high, repeated.p_value)


def test_small_differences_that_cancel_out_are_no_difference():
    test = mcnemar_test("a", "b", "test", np.array([0.6, 0.1, 0.2]), np.array([0.4, 0.2, 0.3]))
    assert test.difference == 0 and test.p_value == pytest.approx(1)


def test_means_over_repeats_keep_their_level():
    """Hard images are correct in half of the repeats, whichever classifier predicts them."""
    generator, coverages = np.random.default_rng(0), {}
    for count in (10, 60):
        for repeats in (2, 5):

            def draw(count=count, repeats=repeats):
                chance = np.where(generator.random(count) < 0.3, 0.5, 0.99)
                a, b = generator.binomial(repeats, chance, (2, count)) / repeats
                test = mcnemar_test("a", "b", "test", a, b)
                return test.low, test.high

            coverages[count, repeats] = interval_coverage(draw, 0.0, draws=400)
    assert min(coverages.values()) > 0.92, coverages


def test_compare_runs_equals_differences_of_scores():
    test, gallery = random_embeddings(150, 4), random_embeddings(200, 4, seed=2)
    a = evaluate_random(test, gallery)
    b = evaluate_random(add_noise(test, 0.35), gallery)
    tests = {paired.metric_a: paired for paired in compare_runs(a, b)}
    for metric in ("knn_accuracy", "classification_accuracy", "triplet_accuracy", "map_at_r"):
        difference = a.score(metric).value - b.score(metric).value
        assert tests[metric].difference == pytest.approx(difference)
        assert tests[metric].low < tests[metric].difference < tests[metric].high
        significant = tests[metric].p_value < 0.05
        assert significant == (tests[metric].low > 0 or tests[metric].high < 0)
    # The t-test estimates the variance around the observed difference, the score test around 0.
    expected = stats.ttest_rel(a.measures.map_at_r, b.measures.map_at_r)
    low, high = expected.confidence_interval()
    width = tests["map_at_r"].high - tests["map_at_r"].low
    assert width == pytest.approx(high - low, rel=0.25) and width > high - low


def test_equal_differences_of_all_queries_have_an_interval_of_positive_width():
    for values in (np.full(9, 0.25), np.zeros(9)):
        test = _compare_map(values, np.zeros(9))
        assert test.low < test.difference < test.high
        assert (test.low > 0) == (test.p_value < 0.05)


def test_a_run_equals_itself():
    run = evaluate_random(random_embeddings(150, 4), random_embeddings(200, 4, seed=2))
    for test in compare_runs(run, run):
        assert test.difference == 0 and test.p_value == 1
        assert test.low < 0 < test.high


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
    measures = [measure_split(run.vectors, run.labels) for run in (a, b)]
    test = _compare_triplets(*measures)
    share_a, share_b = (run.won.sum() / run.total.sum() for run in measures)
    binary = 24 * (share_a + share_b - 2 * share_a * share_b)
    squares = (24 * error) ** 2 + 24 * test.difference**2
    variance = binary * (squares + 0.25) / (binary + 0.25)
    assert test.p_value == pytest.approx(2 * stats.norm.sf(24 * test.difference / variance**0.5))
    assert test.high - test.low == pytest.approx(2 * 1.96 * error, rel=0.25)


def test_triplets_that_all_runs_win_have_an_interval_of_positive_width():
    measures = measure_split(torch.eye(3).repeat_interleave(3, 0), torch.arange(9) // 3)
    test = _compare_triplets(measures, measures)
    assert (test.difference, test.p_value) == (0, 1)
    assert -0.4 < test.low < -0.2 and 0.2 < test.high < 0.4


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
