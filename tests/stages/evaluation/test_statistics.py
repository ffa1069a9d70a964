"""Every statistic against somebody else's code, or by simulation."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories import random_embeddings, scored
from scipy import stats
from sklearn.calibration import calibration_curve
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from stages.evaluation.calibration_error import calibration_score, reliability
from stages.evaluation.explore import explore, flat_map
from stages.evaluation.knn import nearest_rows
from stages.evaluation.paired_tests import _compare_triplets, compare_runs, mcnemar_test
from stages.evaluation.pooling import pool_runs
from stages.evaluation.retrieval import measure_split
from stages.evaluation.scores import WITHOUT_DUPLICATES
from stages.evaluation.statistics import mean_score, share_score
from stages.records import Embeddings


@pytest.mark.parametrize(
    "right, count", [(0, 7), (7, 7), (1, 1), (93, 100), (500, 1000), (999, 1000)]
)
def test_wilson_is_statsmodels(right, count):
    found = share_score("m", "test", np.r_[np.ones(right), np.zeros(count - right)], "d")
    np.testing.assert_allclose(
        (found.low, found.high), proportion_confint(right, count, method="wilson"), atol=1e-9
    )


@pytest.mark.parametrize(
    "only_a, only_b, both, neither",
    [(0, 0, 9, 1), (1, 0, 5, 5), (8, 2, 80, 10), (30, 45, 400, 25), (0, 12, 3, 0)],
)
def test_mcnemar_is_statsmodels(only_a, only_b, both, neither):
    a = np.repeat([True, False, True, False], (only_a, only_b, both, neither))
    b = np.repeat([False, True, True, False], (only_a, only_b, both, neither))
    found = mcnemar_test("a", "b", "test", a, b)
    assert found.p_value == pytest.approx(
        float(mcnemar([[both, only_a], [only_b, neither]], exact=True).pvalue)
    )
    assert found.difference == pytest.approx(a.mean() - b.mean())
    assert found.low <= found.difference <= found.high


def test_swapping_a_and_b_turns_the_sign():
    generator = np.random.default_rng(0)
    a, b = generator.random(200) < 0.9, generator.random(200) < 0.8
    one, two = mcnemar_test("a", "b", "test", a, b), mcnemar_test("b", "a", "test", b, a)
    assert (one.difference, one.low, one.high) == pytest.approx(
        (-two.difference, -two.high, -two.low)
    )
    assert one.p_value == two.p_value


def coverage(interval, truth, draws: int) -> float:
    return float(
        np.mean([low <= truth <= high for low, high in (interval() for _ in range(draws))])
    )


def test_paired_interval_covers_95_percent():
    """Over a grid of disagreement and size the interval for a difference holds the truth 93 to 97 % of the time on average."""
    generator, found = np.random.default_rng(0), []
    for count in (60, 200, 800):
        for only_a, only_b in ((0.02, 0.02), (0.05, 0.02), (0.1, 0.02), (0.15, 0.1)):

            def interval(count=count, only_a=only_a, only_b=only_b):
                draw = generator.random(count)
                paired = mcnemar_test(
                    "a", "b", "test", draw < only_a, (draw >= only_a) & (draw < only_a + only_b)
                )
                return paired.low, paired.high

            found.append(coverage(interval, only_a - only_b, 400))
    assert 0.93 <= np.mean(found) <= 0.97, found
    assert min(found) > 0.9, found


def test_wilson_covers_95_percent():
    generator, found = np.random.default_rng(0), []
    for count in (50, 300, 1000):
        for share in (0.7, 0.9, 0.97):

            def interval(count=count, share=share):
                one = share_score("m", "test", (generator.random(count) < share).astype(float), "d")
                return one.low, one.high

            found.append(coverage(interval, share, 400))
    assert 0.93 <= np.mean(found) <= 0.97, found


@pytest.mark.slow
def test_bootstrap_over_queries_covers_95_percent():
    """Values like those of average precision: in [0, 1], crowded below 1."""
    generator, found = np.random.default_rng(0), []
    for count in (100, 400):
        for a, b in ((8, 1), (2, 2), (20, 2)):

            def interval(count=count, a=a, b=b):
                one = mean_score("m", "test", generator.beta(a, b, count), "d")
                return one.low, one.high

            found.append(coverage(interval, a / (a + b), 300))
    assert 0.93 <= np.mean(found) <= 0.97, found


def test_bootstrap_is_scipys():
    values = np.random.default_rng(1).beta(8, 2, 300)
    found = mean_score("m", "test", values, "d")
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=5000, rng=np.random.default_rng(2)
    ).confidence_interval
    np.testing.assert_allclose((found.low, found.high), theirs, atol=2e-3)


@pytest.mark.slow
def test_mcnemar_keeps_its_level():
    """Two equally good ways: p < 0.05 in at most 5 % of draws (the exact test errs on the safe side), but not never."""
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        draw = generator.random(400)
        hits += (
            mcnemar_test("a", "b", "test", draw < 0.08, (draw >= 0.08) & (draw < 0.16)).p_value
            < 0.05
        )
    assert 0.015 < hits / 2000 <= 0.055


def test_reliability_is_scikit_learns():
    generator = np.random.default_rng(3)
    confidence = generator.uniform(0.2, 1, 3000)
    right = generator.random(3000) < confidence**2
    counts, mean, share = reliability(confidence, right)
    theirs_share, theirs_mean = calibration_curve(right, confidence, n_bins=15)
    np.testing.assert_allclose(share[counts > 0], theirs_share)
    np.testing.assert_allclose(mean[counts > 0], theirs_mean)
    expected = sum(
        n / 3000 * abs(s - m)
        for n, s, m in zip(counts[counts > 0], theirs_share, theirs_mean, strict=True)
    )
    assert calibration_score(
        "calibration_error", "test", confidence, right, ""
    ).value == pytest.approx(expected)
    assert reliability(np.array([0.0, 1.0]), np.array([False, True]))[0].tolist() == [1] + [
        0
    ] * 13 + [1]


def test_calibration_error_of_the_honest_and_the_boastful():
    right = np.arange(1000) % 10 < 7
    assert calibration_score("m", "test", np.full(1000, 0.7), right, "").value == pytest.approx(0)
    assert calibration_score("m", "test", np.full(1000, 1.0), right, "").value == pytest.approx(0.3)


def test_runs_are_compared_image_by_image():
    test, gallery = random_embeddings(150, 4), random_embeddings(200, 4, seed=2)
    worse = Embeddings(
        F.normalize(
            test.vectors + 0.35 * torch.randn(150, 8, generator=torch.Generator().manual_seed(3))
        ),
        test.labels,
        test.classes,
    )
    a, b = scored(test, gallery), scored(worse, gallery)
    found = {paired.metric_a: paired for paired in compare_runs(a, b)}
    for metric in ("knn_accuracy", "classification_accuracy", "triplet_accuracy", "map_at_r"):
        assert found[metric].difference == pytest.approx(
            a.score(metric).value - b.score(metric).value
        )
        assert found[metric].low < found[metric].difference < found[metric].high
    theirs = stats.ttest_rel(a.measures.map_at_r, b.measures.map_at_r)
    assert found["map_at_r"].p_value == pytest.approx(theirs.pvalue)
    assert (found["map_at_r"].low, found["map_at_r"].high) == pytest.approx(
        tuple(theirs.confidence_interval())
    )
    same = {paired.metric_a: paired for paired in compare_runs(a, a)}
    assert all(paired.difference == 0 and paired.p_value == 1 for paired in same.values())


def test_the_jackknife_of_a_triplet_difference_is_the_slow_one():
    test = random_embeddings(24, 3)
    worse = Embeddings(
        F.normalize(
            test.vectors + 0.4 * torch.randn(24, 8, generator=torch.Generator().manual_seed(3))
        ),
        test.labels,
        test.classes,
    )
    a, b = (measure_split(one.vectors, one.labels) for one in (test, worse))

    def share(one, keep):
        part = measure_split(one.vectors[keep], one.labels[keep])
        return part.won.sum() / part.total.sum()

    everyone = np.arange(24)
    without = np.array(
        [
            share(test, np.delete(everyone, i)) - share(worse, np.delete(everyone, i))
            for i in everyone
        ]
    )
    error = np.sqrt(23 / 24 * np.square(without - without.mean()).sum())
    found = _compare_triplets(a, b)
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * error, rel=1e-4)
    assert found.p_value == pytest.approx(
        2 * stats.norm.sf(abs(found.difference) / error), rel=1e-4
    )


@pytest.mark.slow
def test_the_triplet_difference_covers_95_percent():
    """Two embeddings of the same images, drawn again and again; the truth is the mean over many draws."""
    gaps, covered, generator = [], [], torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(3, 6, generator=generator), dim=1)
    for _ in range(300):
        labels = torch.arange(60) % 3
        base = torch.randn(60, 6, generator=generator)
        parts = [
            F.normalize(
                centres[labels] + noise * (base + 0.5 * torch.randn(60, 6, generator=generator))
            )
            for noise in (0.4, 0.55)
        ]
        paired = _compare_triplets(*(measure_split(part, labels) for part in parts))
        gaps.append(paired.difference)
        covered.append((paired.low, paired.high))
    truth = np.mean(gaps)
    assert 0.92 <= np.mean([low <= truth <= high for low, high in covered]) <= 0.985


def test_leaked_images_are_left_out_of_their_rows():
    test, gallery = random_embeddings(120, 4), random_embeddings(200, 4, seed=2)
    leaked = tuple(range(0, 120, 3))
    keep = np.setdiff1d(np.arange(120), leaked)
    found = scored(test, gallery, leaked=leaked)
    rest = scored(Embeddings(test.vectors[keep], test.labels[keep], test.classes), gallery)
    for metric in (
        "knn_accuracy",
        "triplet_accuracy",
        "classification_accuracy",
        "map_at_r",
        "calibration_error",
    ):
        assert found.score(metric, WITHOUT_DUPLICATES).value == pytest.approx(
            rest.score(metric).value
        )
        assert found.score(metric, WITHOUT_DUPLICATES).count == rest.score(metric).count
    assert found.score("knn_accuracy").count == 120
    pair = ("classification_accuracy", "knn_accuracy")
    assert (
        dataclasses.astuple(found.paired_test(*pair, WITHOUT_DUPLICATES))[3:]
        == dataclasses.astuple(rest.paired_test(*pair))[3:]
    )


def test_all_leaked_leaves_nothing_and_says_so():
    found = scored(
        random_embeddings(30, 3), random_embeddings(60, 3, seed=2), leaked=tuple(range(30))
    )
    assert all(
        one.value is None and one.count == 0
        for one in found.scores
        if one.split == WITHOUT_DUPLICATES
    )
    assert all(
        one.difference is None and one.count == 0
        for one in found.paired_tests
        if one.split == WITHOUT_DUPLICATES
    )


def test_temperature_moves_probabilities_and_no_label():
    test, gallery = random_embeddings(120, 4), random_embeddings(200, 4, seed=2)
    cold, hot = (scored(test, gallery, temperature=t) for t in (1.0, 4.0))
    assert (cold.prediction.classifier == hot.prediction.classifier).all()
    assert (hot.prediction.probability < cold.prediction.probability).all()
    np.testing.assert_array_equal(hot.prediction.uncalibrated, cold.prediction.probability)


def test_spread_is_the_root_mean_square_distance():
    test = random_embeddings(50, 3)
    squared = torch.cdist(test.vectors.double(), test.vectors.double()).square()
    assert scored(test, random_embeddings(60, 3, seed=2)).spread == pytest.approx(
        float(squared.mean().sqrt()), rel=1e-6
    )


def test_pooling_is_numpys_mean_and_deviation():
    gallery = random_embeddings(200, 4, seed=9)
    runs = [scored(random_embeddings(100, 4, seed=seed), gallery) for seed in range(3)]
    means, deviations = pool_runs(runs)
    values = [run.score("map_at_r").value for run in runs]
    mean, deviation = (
        next(one for one in part if one.metric == "map_at_r" and one.split == "test")
        for part in (means, deviations)
    )
    assert (mean.value, deviation.value, mean.count) == pytest.approx(
        (np.mean(values), np.std(values, ddof=1), 3)
    )
    assert pool_runs(runs[:1])[1][0].value is None


def test_exploring_finds_what_a_slow_loop_finds():
    test = random_embeddings(40, 3)
    found = explore(test, triplets=5)
    distances = torch.cdist(test.vectors.double(), test.vectors.double())
    pairs = [
        (float(distances[i, j]), bool(test.labels[i] == test.labels[j]))
        for i in range(40)
        for j in range(i)
    ]
    for counts, same in ((found.positives, True), (found.negatives, False)):
        expected = np.histogram([d for d, s in pairs if s is same], bins=np.linspace(0, 2, 51))[0]
        assert counts.sum() == expected.sum() > 0
        assert np.abs(counts - expected).sum() <= 2  # float32 at an edge
    worst = []
    for i in range(40):
        same = [
            float(distances[i, j]) for j in range(40) if j != i and test.labels[i] == test.labels[j]
        ]
        other = [float(distances[i, j]) for j in range(40) if test.labels[i] != test.labels[j]]
        worst.append((min(other) - max(same), i))
    assert [int(row[0]) for row in found.triplets] == [i for _, i in sorted(worst)[:5]]
    np.testing.assert_allclose(
        found.sides[:, 1] - found.sides[:, 0], [gap for gap, _ in sorted(worst)[:5]], atol=1e-5
    )


@pytest.mark.parametrize(
    "vectors", [np.ones((1, 4)), np.ones((40, 4)) / 2, np.eye(12)[:, :2] + 0.1, np.eye(5)]
)
def test_a_map_of_odd_sets_is_finite(vectors):
    assert np.isfinite(flat_map(vectors.astype(np.float32))).all()


def test_nearest_is_in_order():
    vectors = random_embeddings(50, 3).vectors
    expected = torch.cdist(vectors[:7].double(), vectors.double()).argsort(1)[:, :4].numpy()
    np.testing.assert_array_equal(nearest_rows(vectors[:7], vectors, count=4), expected)


def test_one_class_and_lone_images_have_no_triplets():
    vectors = F.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    gallery = random_embeddings(60, 3, seed=2)
    for labels in (torch.tensor([0, 1, 2]), torch.tensor([0, 0, 0])):
        found = scored(Embeddings(vectors, labels, gallery.classes), gallery)
        assert found.score("triplet_accuracy").value is None
        explored = explore(Embeddings(vectors, labels, gallery.classes))
        assert len(explored.triplets) == 0
