"""Each measure against a slow count in plain Python, ties and degenerate splits included."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.distance import exact_distances
from stages.evaluation.knn import knn
from stages.evaluation.retrieval import measure_gallery, measure_split
from stages.evaluation.statistics import triplet_accuracy


def unit(count: int, dim: int, seed: int) -> torch.Tensor:
    return F.normalize(
        torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1
    )


def distances(vectors: torch.Tensor) -> np.ndarray:
    """Float64, from differences."""
    wide = vectors.double().numpy()
    return np.sqrt(np.square(wide[:, None] - wide[None]).sum(-1))


def count_triplets(vectors, labels):
    """won, tied, total, and won_any, total_any by image, a triplet at a time."""
    d, n = distances(vectors), len(labels)
    won, tied, total, won_any, total_any = (np.zeros(n, dtype=int) for _ in range(5))
    for a in range(n):
        for p in range(n):
            for q in range(n):
                if p != a and labels[p] == labels[a] and labels[q] != labels[a]:
                    wins = d[a, p] < d[a, q]
                    won[a] += wins
                    tied[a] += d[a, p] == d[a, q]
                    total[a] += 1
                    for image in (a, p, q):
                        won_any[image] += wins
                        total_any[image] += 1
    return won, tied, total, won_any, total_any


def rank_by_hand(d_row, query, labels):
    """P@1, R-precision, MAP@R, average precision of one query; of equal distances the negative comes first."""
    others = [i for i in range(len(labels)) if i != query]
    ranking = sorted(others, key=lambda i: (d_row[i], labels[i] == labels[query]))
    hits = [labels[i] == labels[query] for i in ranking]
    relevant = sum(hits)
    if not relevant:
        return (math.nan,) * 4
    precision = [sum(hits[: i + 1]) / (i + 1) for i in range(len(hits))]
    at_hits = [precision[i] for i in range(len(hits)) if hits[i]]
    within = [precision[i] for i in range(relevant) if hits[i]]
    return (
        float(hits[0]),
        sum(hits[:relevant]) / relevant,
        sum(within) / relevant,
        sum(at_hits) / relevant,
    )


def check(vectors, labels):
    measured = measure_split(vectors, labels)
    counted = count_triplets(vectors, labels.tolist())
    for name, expected in zip(
        ("won", "tied", "total", "won_any", "total_any"), counted, strict=True
    ):
        np.testing.assert_array_equal(getattr(measured, name), expected)
    by_hand = [rank_by_hand(row, i, labels.tolist()) for i, row in enumerate(distances(vectors))]
    for ours, column in zip(measured[-4:], zip(*by_hand, strict=True), strict=True):
        np.testing.assert_allclose(ours, column, atol=1e-12)
    np.testing.assert_array_equal(measured.first_hit == 1, measured.precision_at_1 == 1)
    np.testing.assert_array_equal(measured.first_hit == 0, np.isnan(measured.precision_at_1))
    return measured


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 4), max_size=9),
    st.lists(st.integers(0, 4), max_size=9),
    st.integers(0, 999),
)
def test_queries_against_a_gallery_equal_counting(query_labels, gallery_labels, seed):
    queries, gallery = unit(len(query_labels), 3, seed), unit(len(gallery_labels), 3, seed + 1)
    measured = measure_gallery(
        queries,
        torch.tensor(query_labels).long(),
        gallery,
        torch.tensor(gallery_labels).long(),
        margin=0.2,
    )
    table = np.sqrt(
        np.square(queries.double().numpy()[:, None] - gallery.double().numpy()[None]).sum(-1)
    )
    for i, label in enumerate(query_labels):
        positives = [d for d, other in zip(table[i], gallery_labels, strict=True) if other == label]
        negatives = [d for d, other in zip(table[i], gallery_labels, strict=True) if other != label]
        assert measured.total[i] == len(positives) * len(negatives)
        assert measured.won[i] == sum(p < n for p in positives for n in negatives)
        assert measured.won_by_margin[i] == sum(p + 0.2 < n for p in positives for n in negatives)
        if not positives:
            assert measured.first_hit[i] == 0 and math.isnan(measured.average_precision[i])
            continue
        # The query in front of the gallery is a split in which it is left out of its own ranking.
        row = np.concatenate([[0.0], table[i]])
        shares = [
            getattr(measured, name)[i]
            for name in ("precision_at_1", "r_precision", "map_at_r", "average_precision")
        ]
        np.testing.assert_allclose(
            shares, rank_by_hand(row, 0, [label, *gallery_labels]), atol=1e-12
        )
        assert measured.first_hit[i] == 1 + sum(n <= min(positives) for n in negatives)


def test_equals_counting_by_hand():
    labels = torch.tensor([2, 0, 1, 0, 0, 1, 2, 0, 3, 1, 0, 2])  # uneven, unsorted, a lone image
    measured = check(unit(12, 3, seed=1), labels)
    assert 0 < measured.won.sum() < measured.total.sum()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=16), st.integers(0, 999))
def test_equals_counting_by_hand_for_any_classes(labels, seed):
    check(unit(len(labels), 3, seed), torch.tensor(labels))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=2, max_size=14))
def test_ties_are_lost(points):
    """Vectors from a handful of points, so that many distances are equal exactly."""
    corners = torch.eye(4)
    check(corners[[point for _, point in points]], torch.tensor([label for label, _ in points]))


def test_blocks_change_nothing(monkeypatch):
    labels = torch.randint(0, 3, (50,), generator=torch.Generator().manual_seed(0))
    vectors = unit(50, 4, seed=2)
    whole = measure_split(vectors, labels)
    votes = knn(vectors, vectors, labels, k=3)
    monkeypatch.setattr("stages.evaluation.retrieval.BLOCK", 50 * 3)
    monkeypatch.setattr("stages.evaluation.knn.BLOCK", 50 * 3)
    for ours, expected in zip(measure_split(vectors, labels), whole, strict=True):
        np.testing.assert_array_equal(ours, expected)
    for ours, expected in zip(knn(vectors, vectors, labels, k=3), votes, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_permuting_rows_moves_the_results_with_them():
    labels = torch.randint(0, 4, (40,), generator=torch.Generator().manual_seed(3))
    vectors = unit(40, 3, seed=3)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(4))
    for moved, base in zip(
        measure_split(vectors[order], labels[order]), measure_split(vectors, labels), strict=True
    ):
        np.testing.assert_array_equal(moved, base[order])


def test_a_collapsed_embedding_scores_zero():
    vectors, labels = unit(1, 8, seed=5).repeat(20, 1), torch.arange(2).repeat(10)
    measured = measure_split(vectors, labels)
    assert triplet_accuracy(measured)[0] == 0
    assert measured.tied.sum() == measured.total.sum() > 0
    assert measured.precision_at_1.sum() == 0 and measured.average_precision.max() < 0.6


def test_triplets_are_pooled_not_averaged_over_anchors():
    labels = torch.tensor([0] * 9 + [1] * 3)
    measured = measure_split(unit(12, 3, seed=6), labels)
    value = triplet_accuracy(measured)[0]
    assert value == measured.won.sum() / measured.total.sum()
    assert value != pytest.approx((measured.won / measured.total).mean(), abs=1e-4)


def test_the_jackknife_leaves_one_image_out():
    vectors, labels = unit(15, 3, seed=7), torch.arange(3).repeat(5)
    value, low, high = triplet_accuracy(measure_split(vectors, labels))
    without = []
    for image in range(15):
        kept = [i for i in range(15) if i != image]
        won, _, total, _, _ = count_triplets(vectors[kept], labels[kept].tolist())
        without.append(won.sum() / total.sum())
    error = math.sqrt(14 / 15 * np.square(np.array(without) - np.mean(without)).sum())
    assert (low, high) == pytest.approx((value - 1.96 * error, value + 1.96 * error))


def test_a_margin_is_harder():
    vectors, labels = unit(20, 3, seed=11), torch.arange(4).repeat(5)
    measured, table = measure_split(vectors, labels, margin=0.3), distances(vectors)
    expected = [
        sum(
            table[a, p] + 0.3 < table[a, n]
            for p in range(20)
            for n in range(20)
            if p != a and labels[p] == labels[a] and labels[n] != labels[a]
        )
        for a in range(20)
    ]
    np.testing.assert_array_equal(measured.won_by_margin, expected)
    assert 0 < measured.won_by_margin.sum() < measured.won.sum()


def coverage(count: int, classes: int, spread: float, repeats: int, seed: int) -> float:
    """How often the interval of a sample holds the accuracy of the population that it comes from."""
    generator = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(classes, 4, generator=generator), dim=1)

    def sample(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(classes).repeat(size // classes)
        return F.normalize(
            centres[labels] + spread * torch.randn(len(labels), 4, generator=generator), dim=1
        ), labels

    truth = np.mean([triplet_accuracy(measure_split(*sample(1000)))[0] for _ in range(4)])
    intervals = [triplet_accuracy(measure_split(*sample(count)))[1:] for _ in range(repeats)]
    return float(np.mean([low <= truth <= high for low, high in intervals]))


@pytest.mark.slow
def test_the_interval_covers():
    grid = [
        (count, classes, spread)
        for count in (40, 100, 240)
        for classes in (2, 5)
        for spread in (0.3, 0.6, 1.0)
    ]
    found = {cell: coverage(*cell, repeats=250, seed=i) for i, cell in enumerate(grid)}
    assert 0.93 <= np.mean(list(found.values())) <= 0.97, found


def test_no_triplet_is_undefined():
    assert math.isnan(
        triplet_accuracy(measure_split(unit(4, 3, seed=8), torch.zeros(4, dtype=torch.int64)))[0]
    )
    assert math.isnan(triplet_accuracy(measure_split(unit(4, 3, seed=8), torch.arange(4)))[0])
    assert math.isnan(triplet_accuracy(measure_split(unit(0, 3, seed=8), torch.arange(0)))[0])


def vote_by_hand(d_row, gallery_labels, k):
    edge = sorted(d_row)[min(k, len(d_row)) - 1]
    voters = [i for i in range(len(d_row)) if d_row[i] <= edge]
    votes = {
        label: sum(gallery_labels[i] == label for i in voters) for label in set(gallery_labels)
    }
    nearest = {
        label: min((d_row[i] for i in voters if gallery_labels[i] == label), default=math.inf)
        for label in votes
    }
    return min(votes, key=lambda label: (-votes[label], nearest[label], label))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=20),
    st.integers(1, 30),
    st.booleans(),
    st.integers(0, 999),
)
def test_knn_equals_voting_by_hand(labels, k, tied, seed):
    gallery, queries = unit(len(labels), 3, seed), unit(5, 3, seed + 1)
    if tied:  # corners of a cube: many equal distances, within and at the edge
        gallery, queries = gallery.sign() / math.sqrt(3), queries.sign() / math.sqrt(3)
    found = knn(queries, gallery, torch.tensor(labels), k=k)
    table = exact_distances(queries, gallery).numpy()
    assert found.labels.tolist() == [vote_by_hand(row.tolist(), labels, k) for row in table]
    np.testing.assert_array_equal(found.distance, table.min(axis=1))
    assert found.nearest.tolist() == table.argmin(axis=1).tolist()


def test_knn_does_not_follow_the_gallery_order():
    gallery = torch.eye(2)[[0, 0, 0, 1, 1]]
    labels = torch.tensor([1, 1, 0, 2, 2])
    query = torch.eye(2)[[0]]
    order = torch.tensor([2, 4, 0, 3, 1])
    assert (
        knn(query, gallery, labels, k=1).labels
        == knn(query, gallery[order], labels[order], k=1).labels
        == 1
    )


def test_near_duplicates_are_told_apart():
    base = unit(1, 128, seed=9).double()
    towards = unit(1, 128, seed=10).double()
    near = torch.cat([F.normalize(base + step * towards, dim=1) for step in (1e-5, 2e-5, 3e-5)])
    ranked = exact_distances(base, near)[0]
    assert (ranked[:-1] < ranked[1:]).all()
    torch.testing.assert_close(ranked.double(), (near - base).norm(dim=1), rtol=1e-4, atol=0)
    assert exact_distances(base, base).item() == 0
