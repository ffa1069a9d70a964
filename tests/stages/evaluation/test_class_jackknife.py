"""The jackknife over classes: groups, standard errors, and coverage in a small simulation."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stages.evaluation.class_jackknife import (
    ClassSample,
    Estimate,
    class_groups,
    class_jackknife_error,
    class_sample,
    compare_estimates,
    jackknife_score,
)
from stages.evaluation.left_out_rankings import rank_without_each_class
from stages.evaluation.statistics import bounded_mean_interval, wilson_interval
from stages.evaluation.verification import verify_without_each_class

THREE = ClassSample(torch.arange(3), 3, 1 / 12)
FORTY = ClassSample(torch.arange(40), 40, 1 / 12)


def test_each_class_is_a_group_of_its_own():
    assert class_groups(torch.tensor([4, 1, 1, 4, 2])).tolist() == [-1, 0, 1, -1, 2]


def test_many_classes_are_divided_into_500_groups():
    groups = class_groups(torch.arange(1200).repeat(2))
    sizes = torch.bincount(groups)
    assert len(sizes) == 500 and set(sizes.tolist()) == {2, 3}
    assert (groups[:500].diff() != 1).any()  # at random


@pytest.mark.parametrize("queries", [False, True])
def test_one_huge_class_among_many_reduces_the_groups(queries):
    labels = torch.cat([torch.zeros(1000, dtype=torch.int64), torch.arange(400)])
    roles = torch.arange(1400) % 2 == 0 if queries else None
    groups = class_groups(labels, queries=roles)
    positive_pairs = 500 * 500 if queries else 1001 * 1000
    assert 20 <= int(groups.max()) + 1 <= max(20, 4 * 1400**2 / positive_pairs)


def test_error_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).random(12)
    left_out = (values.sum() - values) / 11
    assert class_jackknife_error(left_out) == pytest.approx(values.std(ddof=1) / math.sqrt(12))
    assert class_jackknife_error(np.r_[left_out, np.nan]) == class_jackknife_error(left_out)


@pytest.mark.parametrize("left_out", [[], [0.5], [0.5, 0.7], [0.5, 0.7, math.nan]])
def test_fewer_than_three_estimates_have_no_interval(left_out):
    estimate = Estimate(0.6, np.array(left_out), 10)
    assert class_jackknife_error(estimate.left_out) is None
    score = jackknife_score("m", "test-unseen", estimate, THREE, "d")
    assert (score.value, score.low, score.high, score.count) == (0.6, None, None, 10)
    paired = compare_estimates(("m", "n", "test-unseen"), estimate, estimate, THREE)
    assert paired.difference is None and paired.count == 0


def test_undefined_measures_have_undefined_scores():
    estimate = Estimate(math.nan, np.full(3, math.nan), 0)
    score = jackknife_score("m", "test-unseen", estimate, THREE, "d")
    assert score.value is None and score.count == 0


def test_interval_of_equal_estimates_has_a_positive_width():
    score = jackknife_score("m", "test-unseen", Estimate(1.0, np.ones(3), 9), THREE, "d")
    assert (score.low, score.high) == wilson_interval(1.0, 3)
    assert 0 < score.low < score.high == 1


@pytest.mark.parametrize(("several", "interval"), [(1, False), (2, False), (3, True)])
@pytest.mark.parametrize("with_queries", [False, True])
def test_classes_without_a_query_are_not_part_of_the_sample(several, interval, with_queries):
    """Images without another one of their class only distract."""
    labels = torch.cat([torch.arange(several).repeat_interleave(5), torch.arange(3, 60)])
    vectors = torch.eye(63)[labels]
    queries = None
    if with_queries:
        queries = torch.arange(len(labels)) % 5 == 0
        queries[5 * several :] = False
    sample = class_sample(labels, queries=queries)
    assert sample.count == several
    estimates, _ = rank_without_each_class(vectors, labels, sample.groups, queries=queries)
    score = jackknife_score("m", "test-unseen", estimates["precision_at_1"], sample, "d")
    paired = compare_estimates(("m", "n", "u"), *2 * [estimates["precision_at_1"]], sample)
    assert score.value == 1 and (score.low is not None) == interval
    assert paired.count == (several if interval else 0)
    if interval:
        variance = 1 / 4 if with_queries else 1 / 12
        expected = bounded_mean_interval(1.0, 0.0, 3, extra_variance=variance)
        assert (score.low, score.high) == expected


def test_one_class_has_no_ranking():
    labels = torch.zeros(5, dtype=torch.int64)
    estimates, _ = rank_without_each_class(torch.eye(5), labels, class_groups(labels))
    assert all(estimate.count == 0 for estimate in estimates.values())


def test_comparison_uses_the_error_of_the_difference():
    generator = np.random.default_rng(1)
    a = Estimate(0.9, 0.9 + 0.01 * generator.standard_normal(40), 1)
    b = Estimate(0.8, a.left_out - 0.1 + 1e-5 * generator.standard_normal(40), 1)
    same = compare_estimates(("m", "n", "test-unseen"), a, a, FORTY)
    better = compare_estimates(("m", "n", "test-unseen"), a, b, FORTY)
    assert same.difference == 0 and same.p_value == 1 and same.low < 0 < same.high
    assert better.difference == pytest.approx(0.1) and better.p_value < 0.05 and better.low > 0
    independent = Estimate(0.8, 0.8 + 0.05 * generator.standard_normal(40), 1)
    unclear = compare_estimates(("m", "n", "test-unseen"), a, independent, FORTY)
    assert unclear.high - unclear.low > better.high - better.low


def draw_images(classes: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images of new classes: random centres, 2 or 5 images, and a noise level per class."""
    sizes = 2 + 3 * torch.randint(2, (classes,), generator=generator)
    labels = torch.repeat_interleave(torch.arange(classes), sizes)
    centres = F.normalize(torch.randn(classes, 6, generator=generator), dim=1)
    noise = 0.1 + 0.4 * torch.rand(classes, generator=generator)[labels, None]
    offsets = noise * torch.randn(len(labels), 6, generator=generator)
    return F.normalize(centres[labels] + offsets, dim=1), labels


@pytest.mark.slow
def test_intervals_over_classes_cover_the_true_value():
    """`benchmarks/coverage.py` has more settings and draws."""
    generator = torch.Generator().manual_seed(0)
    scores: dict[str, list] = {"precision_at_1": [], "verification_auc": []}
    for _ in range(120):
        vectors, labels = draw_images(20, generator)
        sample = class_sample(labels)
        estimates, _ = rank_without_each_class(vectors, labels, sample.groups)
        pairs, _ = verify_without_each_class(vectors, labels, sample.groups)
        for metric, drawn in scores.items():
            estimate = {**estimates, **pairs}[metric]
            drawn.append(jackknife_score(metric, "test-unseen", estimate, sample, ""))
    for metric, drawn in scores.items():
        truth = np.mean([score.value for score in drawn])
        covered = np.mean([score.low <= truth <= score.high for score in drawn])
        assert 0.9 <= covered <= 0.995, (metric, covered)


def test_error_of_recall_and_auc_equals_their_deviation_over_draws():
    """A small version of the simulation: the jackknife is neither blind nor far too large."""
    generator = torch.Generator().manual_seed(0)
    values, errors = [], []
    for _ in range(25):
        vectors, labels = draw_images(12, generator)
        groups = class_groups(labels)
        estimates, _ = rank_without_each_class(vectors, labels, groups)
        values.append(estimates["precision_at_1"].value)
        errors.append(class_jackknife_error(estimates["precision_at_1"].left_out))
    assert 0.6 < np.sqrt(np.square(errors).mean()) / np.std(values) < 1.8


def test_order_of_rows_does_not_matter():
    labels = torch.arange(6).repeat(4)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    assert class_groups(labels).tolist() == class_groups(labels[order]).tolist()
