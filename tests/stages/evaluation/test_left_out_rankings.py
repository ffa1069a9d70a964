"""Measures without a class equal the measures of a split that never had the class."""

import numpy as np
import pytest
import torch
from factories import unit_vectors
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.evaluation.class_jackknife import class_groups
from stages.evaluation.left_out_rankings import MEASURES, rank_without_each_class
from stages.evaluation.triplets_and_rankings import measure_gallery, measure_split


def recompute(vectors, labels, queries):
    """Return all measures of a split from the measures of its queries, NaN if undefined."""
    query_labels, gallery_labels = labels, labels
    if queries is None:
        measures = measure_split(vectors, labels)
    else:
        query_labels, gallery_labels = labels[queries], labels[~queries]
        measures = measure_gallery(
            vectors[queries], query_labels, vectors[~queries], gallery_labels
        )
    has_negative = (query_labels[:, None] != gallery_labels).any(1).numpy()
    kept = (measures.first_hit > 0) & has_negative
    hits = measures.first_hit[kept]
    triplets = measures.total.sum()
    values = {"triplet_accuracy": measures.won.sum() / triplets if triplets else np.nan}
    for k, metric in zip((1, 2, 4, 8), MEASURES, strict=False):
        values[metric] = (hits <= k).mean() if len(hits) else np.nan
    for name, metric in zip(
        ("r_precision", "map_at_r", "average_precision"), MEASURES[4:], strict=True
    ):
        defined = getattr(measures, name)[kept]
        values[metric] = defined.mean() if len(defined) else np.nan
    return values, measures, int(kept.sum())


def check_against_reduced_splits(vectors, labels, queries=None, groups=None):
    if groups is None:
        groups = class_groups(labels, queries=queries)
    estimates, triplet_accuracy = rank_without_each_class(vectors, labels, groups, queries=queries)
    expected, measures, query_count = recompute(vectors, labels, queries)
    assert set(estimates) == set(expected)
    for metric, estimate in estimates.items():
        np.testing.assert_allclose(estimate.value, expected[metric], atol=1e-12)
    assert estimates["triplet_accuracy"].count == measures.total.sum()
    assert estimates["map_at_r"].count == query_count
    rows = slice(None) if queries is None else queries
    with np.errstate(invalid="ignore"):
        per_anchor = measures.won / measures.total
    np.testing.assert_allclose(triplet_accuracy[rows], per_anchor, atol=1e-12)
    for group in range(int(groups.max()) + 1):
        kept = groups[labels] != group
        without, _, _ = recompute(
            vectors[kept], labels[kept], None if queries is None else queries[kept]
        )
        for metric, estimate in estimates.items():
            np.testing.assert_allclose(
                estimate.left_out[group], without[metric], atol=1e-12, err_msg=metric
            )
    return estimates


def test_measures_without_a_class_differ_and_equal_those_of_the_reduced_split():
    labels = torch.arange(5).repeat(6)
    estimates = check_against_reduced_splits(unit_vectors(30, 3, seed=0), labels)
    for estimate in estimates.values():
        assert estimate.left_out.std() > 0 and 0 < estimate.value < 1


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=16), st.integers(0, 999))
def test_any_labels(labels, seed):
    check_against_reduced_splits(unit_vectors(len(labels), 3, seed=seed), torch.tensor(labels))


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=14))
def test_ties(images):
    """All vectors are among four orthogonal ones, so that many distances are exactly equal."""
    labels = torch.tensor([label for label, _ in images])
    check_against_reduced_splits(torch.eye(4)[[point for _, point in images]], labels)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=16),
    st.integers(0, 999),
)
def test_queries_search_the_gallery(images, seed):
    """Classes may lack a query or a gallery image."""
    labels = torch.tensor([label for label, _ in images])
    queries = torch.tensor([query for _, query in images])
    vectors = unit_vectors(len(images), 2, seed=seed)
    check_against_reduced_splits(vectors, labels, queries)
    check_against_reduced_splits(torch.eye(2)[(vectors[:, 0] > 0).long()], labels, queries)


@pytest.mark.parametrize("labels", [[0] * 4, [0, 1, 2], [0, 0, 1, 1], [0, 0, 7, 7, 7]])
def test_degenerate_splits(labels):
    labels = torch.tensor(labels)
    check_against_reduced_splits(unit_vectors(len(labels), 3, seed=1), labels)
    check_against_reduced_splits(torch.ones(len(labels), 3), labels)


def test_groups_of_classes_are_left_out_together():
    labels = torch.arange(7).repeat(4)
    groups = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    vectors = unit_vectors(28, 3, seed=2)
    check_against_reduced_splits(vectors, labels, groups=groups)
    queries = torch.rand(28, generator=torch.Generator().manual_seed(0)) < 0.5
    check_against_reduced_splits(vectors, labels, queries, groups)


def test_block_size_and_order_of_rows_do_not_matter(monkeypatch):
    labels = torch.randint(0, 5, (60,), generator=torch.Generator().manual_seed(0))
    vectors = unit_vectors(60, 4, seed=3)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    groups = class_groups(labels)
    expected, per_anchor = rank_without_each_class(vectors, labels, groups)
    monkeypatch.setattr("stages.evaluation.left_out_rankings.COUNTS", 50)
    monkeypatch.setattr("stages.evaluation.query_blocks.BLOCK", 60 * 3)
    monkeypatch.setattr("stages.evaluation.query_blocks.MIN_QUERIES", 1)
    estimates, permuted = rank_without_each_class(vectors[order], labels[order], groups)
    np.testing.assert_array_equal(permuted, per_anchor[order])
    for metric, estimate in estimates.items():
        np.testing.assert_allclose(estimate.left_out, expected[metric].left_out, atol=1e-12)
