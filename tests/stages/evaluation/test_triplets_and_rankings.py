"""Retrieval measures equal slow counts in plain Python, with ties and degenerate splits."""

import math

import numpy as np
import pytest
import torch
from factories import count_triplets, pairwise_distances, unit_vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from stages.evaluation import triplets_and_rankings
from stages.evaluation.query_blocks import query_blocks
from stages.evaluation.statistics import triplet_accuracy
from stages.evaluation.triplets_and_rankings import (
    SplitMeasures,
    _sum_blocks,
    measure_gallery,
    measure_split,
)

RANKING_MEASURES = ("precision_at_1", "r_precision", "map_at_r", "average_precision")


def rank_by_loop(distances, query, labels):
    """Return the ranking measures of one query; a negative comes before a tied positive."""
    others = [image for image in range(len(labels)) if image != query]
    others.sort(key=lambda image: (distances[image], labels[image] == labels[query]))
    hits = [labels[image] == labels[query] for image in others]
    relevant = sum(hits)
    if not relevant:
        return (math.nan,) * 4
    precision = [sum(hits[: rank + 1]) / (rank + 1) for rank in range(len(hits))]
    at_hits = [precision[rank] for rank in range(len(hits)) if hits[rank]]
    at_first_hits = [precision[rank] for rank in range(relevant) if hits[rank]]
    return (
        float(hits[0]),
        sum(hits[:relevant]) / relevant,
        sum(at_first_hits) / relevant,
        sum(at_hits) / relevant,
    )


def check_against_loops(vectors: torch.Tensor, labels: torch.Tensor) -> SplitMeasures:
    measures = measure_split(vectors, labels)
    for name, expected in count_triplets(vectors, labels.tolist()).items():
        np.testing.assert_array_equal(getattr(measures, name), expected)
    distances = pairwise_distances(vectors, vectors)
    expected = np.array(
        [rank_by_loop(row, query, labels.tolist()) for query, row in enumerate(distances)]
    )
    for column, name in enumerate(RANKING_MEASURES):
        np.testing.assert_allclose(getattr(measures, name), expected[:, column], atol=1e-12)
    np.testing.assert_array_equal(measures.first_hit == 1, measures.precision_at_1 == 1)
    np.testing.assert_array_equal(measures.first_hit == 0, np.isnan(measures.precision_at_1))
    return measures


def assert_equal_measures(measures, expected):
    for name in SplitMeasures._fields:
        np.testing.assert_array_equal(getattr(measures, name), getattr(expected, name))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 4), max_size=9),
    st.lists(st.integers(0, 4), max_size=9),
    st.integers(0, 999),
)
def test_gallery_measures_equal_loops(query_labels, gallery_labels, seed):
    queries = unit_vectors(len(query_labels), 3, seed=seed)
    gallery = unit_vectors(len(gallery_labels), 3, seed=seed + 1)
    measures = measure_gallery(
        queries,
        torch.tensor(query_labels).long(),
        gallery,
        torch.tensor(gallery_labels).long(),
        margin=0.2,
    )
    distances = pairwise_distances(queries, gallery)
    for query, label in enumerate(query_labels):
        same_class = np.array(gallery_labels) == label
        positives, negatives = distances[query, same_class], distances[query, ~same_class]
        assert measures.total[query] == len(positives) * len(negatives)
        assert measures.won[query] == sum(p < n for p in positives for n in negatives)
        won_by_margin = sum(p + 0.2 < n for p in positives for n in negatives)
        assert measures.won_by_margin[query] == won_by_margin
        if len(positives) == 0:
            assert measures.first_hit[query] == 0
            assert math.isnan(measures.average_precision[query])
            continue
        # A query in front of its gallery is a split in which it is not in its own ranking.
        row = np.concatenate([[0.0], distances[query]])
        expected = rank_by_loop(row, 0, [label, *gallery_labels])
        actual = [getattr(measures, name)[query] for name in RANKING_MEASURES]
        np.testing.assert_allclose(actual, expected, atol=1e-12)
        assert measures.first_hit[query] == 1 + sum(n <= min(positives) for n in negatives)


def test_split_measures_equal_loops():
    labels = torch.tensor([2, 0, 1, 0, 0, 1, 2, 0, 3, 1, 0, 2])  # class 3 has a single image
    measures = check_against_loops(unit_vectors(12, 3, seed=1), labels)
    assert 0 < measures.won.sum() < measures.total.sum()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=16), st.integers(0, 999))
def test_split_measures_equal_loops_for_any_labels(labels, seed):
    check_against_loops(unit_vectors(len(labels), 3, seed=seed), torch.tensor(labels))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=2, max_size=14))
def test_split_measures_equal_loops_with_ties(images):
    """All vectors are among four orthogonal ones, so that many distances are exactly equal."""
    labels = torch.tensor([label for label, _ in images])
    check_against_loops(torch.eye(4)[[point for _, point in images]], labels)


def test_block_size_does_not_matter(monkeypatch):
    labels = torch.randint(0, 3, (50,), generator=torch.Generator().manual_seed(0))
    vectors = unit_vectors(50, 4, seed=2)
    expected = measure_split(vectors, labels)
    monkeypatch.setattr("stages.evaluation.query_blocks.BLOCK", 50 * 3)
    monkeypatch.setattr("stages.evaluation.query_blocks.MIN_QUERIES", 1)
    assert_equal_measures(measure_split(vectors, labels), expected)


def test_permuting_rows_permutes_the_measures():
    labels = torch.randint(0, 4, (40,), generator=torch.Generator().manual_seed(3))
    vectors = unit_vectors(40, 3, seed=3)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(4))
    measures = measure_split(vectors, labels)
    permuted = SplitMeasures(*(values[order] for values in measures))
    assert_equal_measures(measure_split(vectors[order], labels[order]), permuted)


def test_collapsed_embedding_scores_zero():
    vectors, labels = unit_vectors(1, 8, seed=5).repeat(20, 1), torch.arange(2).repeat(10)
    measures = measure_split(vectors, labels)
    assert triplet_accuracy(measures)[0] == 0
    assert measures.tied.sum() == measures.total.sum() > 0
    assert measures.precision_at_1.sum() == 0 and measures.average_precision.max() < 0.6


def test_margin_reduces_the_won_triplets():
    vectors, labels = unit_vectors(20, 3, seed=11), torch.arange(4).repeat(5)
    measures = measure_split(vectors, labels, margin=0.3)
    distances = pairwise_distances(vectors, vectors)
    expected = np.zeros(20, dtype=int)
    for anchor in range(20):
        same_class = (labels == labels[anchor]).numpy()
        negatives = distances[anchor, ~same_class]
        for positive in np.flatnonzero(same_class):
            if positive != anchor:
                expected[anchor] += (distances[anchor, positive] + 0.3 < negatives).sum()
    np.testing.assert_array_equal(measures.won_by_margin, expected)
    assert 0 < measures.won_by_margin.sum() < measures.won.sum()


def test_the_shares_of_three_ranks_add_up_to_the_measures(monkeypatch):
    vectors, labels = unit_vectors(90, 4, seed=3), torch.arange(90) % 7
    labels[0] = 7  # an image without a positive
    expected = measure_split(vectors, labels)
    monkeypatch.setattr(triplets_and_rankings, "query_count", lambda size, device: 5)  # many blocks
    shares = {}  # of each rank, the tensors that it adds up with the other ranks

    for rank in range(3):
        own = shares[rank] = []

        def all_reduce(tensor, own=own, rank=rank):
            position = len(own)
            own.append(tensor.clone())
            if rank == 2:  # the others have already run
                tensor += shares[0][position] + shares[1][position]

        monkeypatch.setattr(triplets_and_rankings, "rank_and_world_size", lambda r=rank: (r, 3))
        monkeypatch.setattr(triplets_and_rankings, "all_reduce", all_reduce)
        measures = measure_split(vectors, labels)
    assert_equal_measures(measures, expected)
    assert all((share[0][3] > 0).any() for share in shares.values())  # every rank measures queries


@pytest.mark.parametrize("within", [False, True])
def test_measures_stay_on_a_gpu(within):
    """`FakeTensorMode` needs no GPU; mixed devices and values that are read raise an error."""
    vectors, labels = unit_vectors(90, 4, seed=3), torch.arange(90) % 7
    own = torch.arange(90) if within else None
    blocks = list(query_blocks(labels, labels, within, 20))  # of values, so not in the fake mode
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(triplets_and_rankings, "query_blocks", lambda *_: blocks)
        patch.setattr("stages.evaluation.query_blocks.free_memory", lambda _: 10**9)
        results = _sum_blocks(vectors, labels, vectors, labels, 0.1, own, torch.device("cuda"))
        assert {result.device.type for result in results} == {"cuda"}
        assert [tuple(result.shape) for result in results] == [(4, 90), (90,), (4, 90)]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_measures_on_a_gpu_equal_those_on_the_cpu():
    vectors, labels = unit_vectors(900, 8, seed=3), torch.arange(900) % 7
    on_gpu = measure_split(vectors, labels, margin=0.1, device=torch.device("cuda"))
    for name, expected in measure_split(vectors, labels, margin=0.1)._asdict().items():
        np.testing.assert_allclose(getattr(on_gpu, name), expected, rtol=1e-7, err_msg=name)
