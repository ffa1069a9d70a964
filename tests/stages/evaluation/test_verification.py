"""Verification measures equal scikit-learn's, for all classes and without each class."""

import numpy as np
import pytest
import torch
from factories import pairwise_distances, unit_vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from sklearn.metrics import roc_auc_score, roc_curve

from stages.distance import exact_distances
from stages.evaluation.class_jackknife import class_groups
from stages.evaluation.verification import MEASURES, verify_without_each_class


def pairs_by_loop(vectors, labels, queries):
    """Return the distance of each pair and whether it is of one class, pair by pair."""
    distances = exact_distances(vectors, vectors).numpy()
    slow = pairwise_distances(vectors, vectors)
    np.testing.assert_allclose(distances, slow, atol=1e-6)
    pairs, same_class = [], []
    for a in range(len(labels)):
        for b in range(len(labels)):
            if (a < b) if queries is None else (queries[a] and not queries[b]):
                pairs.append(distances[a, b])
                same_class.append(bool(labels[a] == labels[b]))
    return np.array(pairs), np.array(same_class)


def recompute(vectors, labels, queries):
    """Return the measures with scikit-learn, NaN if undefined, and the number of pairs."""
    distances, same_class = pairs_by_loop(vectors, labels, queries)
    if len(set(same_class.tolist())) < 2:
        return dict.fromkeys(MEASURES, np.nan), 0
    far, tar, _ = roc_curve(same_class, -distances, drop_intermediate=False)
    # The position along the curve at which both error rates are equal.
    steps = np.arange(len(far), dtype=float)
    crossing = brentq(
        lambda x: np.interp(x, steps, far) + np.interp(x, steps, tar) - 1, 0, len(far) - 1
    )
    return {
        "verification_auc": roc_auc_score(same_class, -distances),
        "equal_error_rate": np.interp(crossing, steps, far),
        "tar_at_far_0.01": tar[far <= 0.01].max(),
        "tar_at_far_0.001": tar[far <= 0.001].max(),
    }, len(distances)


def check_against_sklearn(vectors, labels, queries=None, groups=None, *, atol=1e-10):
    if groups is None:
        groups = class_groups(labels, queries=queries)
    estimates, curve = verify_without_each_class(vectors, labels, groups, queries=queries)
    expected, count = recompute(vectors, labels, queries)
    for metric in MEASURES:
        np.testing.assert_allclose(estimates[metric].value, expected[metric], atol=1e-10)
        assert estimates[metric].count == count
    for group in range(int(groups.max()) + 1):
        kept = groups[labels] != group
        without, _ = recompute(
            vectors[kept], labels[kept], None if queries is None else queries[kept]
        )
        for metric in MEASURES:
            np.testing.assert_allclose(
                estimates[metric].left_out[group], without[metric], atol=atol, err_msg=metric
            )
    return estimates, curve


def test_measures_of_random_vectors():
    labels = torch.arange(6).repeat(7)
    estimates, _ = check_against_sklearn(unit_vectors(42, 3, seed=0), labels)
    for metric in MEASURES[:3]:
        assert 0 < estimates[metric].value < 1 and estimates[metric].left_out.std() > 0


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(0, 999))
def test_any_labels(labels, seed):
    check_against_sklearn(unit_vectors(len(labels), 3, seed=seed), torch.tensor(labels))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12))
def test_ties(images):
    """All vectors are among four orthogonal ones, so that many distances are exactly equal."""
    labels = torch.tensor([label for label, _ in images])
    check_against_sklearn(torch.eye(4)[[point for _, point in images]], labels)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=12),
    st.integers(0, 999),
)
def test_pairs_of_queries_and_gallery_images(images, seed):
    """Classes may lack a query or a gallery image."""
    labels = torch.tensor([label for label, _ in images])
    queries = torch.tensor([query for _, query in images])
    check_against_sklearn(unit_vectors(len(images), 2, seed=seed), labels, queries)


@pytest.mark.parametrize("labels", [[0] * 4, [0, 1, 2], [0, 0, 1, 1], [0, 0, 7, 7, 7]])
def test_degenerate_splits(labels):
    labels = torch.tensor(labels)
    check_against_sklearn(unit_vectors(len(labels), 3, seed=1), labels)
    check_against_sklearn(torch.ones(len(labels), 3), labels)


def test_equal_vectors_have_an_auc_of_one_half():
    labels = torch.arange(4).repeat(3)
    estimates, curve = check_against_sklearn(torch.ones(12, 2), labels)
    assert [estimates[metric].value for metric in MEASURES] == [0.5, 0.5, 0, 0]
    assert curve.false_accept_rate.tolist() == curve.true_accept_rate.tolist() == [0, 1]


def test_groups_of_classes_are_left_out_together():
    labels, groups = torch.arange(7).repeat(4), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    vectors = unit_vectors(28, 3, seed=2)
    check_against_sklearn(vectors, labels, groups=groups)
    queries = torch.rand(28, generator=torch.Generator().manual_seed(0)) < 0.5
    check_against_sklearn(vectors, labels, queries, groups)


def test_block_size_and_order_of_rows_do_not_matter(monkeypatch):
    labels = torch.randint(0, 5, (60,), generator=torch.Generator().manual_seed(0))
    vectors = unit_vectors(60, 4, seed=3)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    groups = class_groups(labels)
    expected, _ = verify_without_each_class(vectors, labels, groups)
    monkeypatch.setattr("stages.evaluation.verification.BLOCK", 60 * 3)
    estimates, _ = verify_without_each_class(vectors[order], labels[order], groups)
    for metric, estimate in estimates.items():
        assert estimate.value == expected[metric].value
        np.testing.assert_array_equal(estimate.left_out, expected[metric].left_out)


def test_merged_cells_change_only_the_measures_without_a_class(monkeypatch):
    labels = torch.arange(6).repeat(12)
    monkeypatch.setattr("stages.evaluation.verification.LEFT_OUT_CELLS", 6 * 200)
    check_against_sklearn(unit_vectors(72, 3, seed=4), labels, atol=0.01)


def test_rounding_distances_of_many_pairs_changes_little(monkeypatch):
    labels, vectors = torch.arange(6).repeat(12), unit_vectors(72, 3, seed=4)
    groups = class_groups(labels)
    exact, _ = verify_without_each_class(vectors, labels, groups)
    monkeypatch.setattr("stages.evaluation.verification.MAX_POSITIVES", 100)
    rounded, _ = verify_without_each_class(vectors, labels, groups)
    for metric, estimate in rounded.items():
        assert estimate.value == pytest.approx(exact[metric].value, abs=1e-5)
        np.testing.assert_allclose(estimate.left_out, exact[metric].left_out, atol=1e-5)
        assert estimate.count == exact[metric].count


def test_curve_has_points_of_the_full_curve_and_encloses_the_same_area():
    labels, vectors = torch.arange(8).repeat(12), unit_vectors(96, 3, seed=5)
    estimates, curve = verify_without_each_class(vectors, labels, class_groups(labels))
    far, tar, _ = roc_curve(*reversed(pairs_by_loop(vectors, labels, None)), pos_label=False)
    full = set(zip(np.round(1 - far, 12), np.round(1 - tar, 12), strict=True))
    assert len(curve.false_accept_rate) < 400 and full
    assert curve.false_accept_rate[0] == curve.true_accept_rate[0] == 0
    assert curve.false_accept_rate[-1] == curve.true_accept_rate[-1] == 1
    area = np.trapezoid(curve.true_accept_rate, curve.false_accept_rate)
    assert area == pytest.approx(estimates["verification_auc"].value, abs=1e-3)
