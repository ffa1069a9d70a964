"""The triplet loss against naive loops in float64: value, gradient and counts in every mode."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.embedding.loss import TripletCost, _batch_all, triplet_loss
from stages.embedding.mining import anchor_block, columns_by_class
from stages.settings import DISTANCES, MININGS, EmbedSettings

MODES = [
    (mining, margin, distance)
    for mining in MININGS
    for margin in (0.3, None)
    for distance in DISTANCES
]


def naive_triplets(
    distances: Tensor, labels: Tensor, ids: Tensor, mining: str
) -> list[tuple[int, int, int]]:
    """Return the triplets that a mining mode selects, as (anchor, positive, negative)."""
    count = len(labels)
    # `random` is documented to use torch's global generator. Its numbers are assigned to the images
    # of a class in ascending order.
    by_class = labels.argsort(stable=True).tolist()
    draws = torch.rand(count, int(torch.bincount(labels).max())) if mining == "random" else None
    triplets = []
    for a in range(count):
        same_class = [i for i in by_class if labels[i] == labels[a]]
        positives = [p for p in same_class if ids[p] != ids[a]]
        negatives = [n for n in range(count) if labels[n] != labels[a]]
        if not positives or not negatives:
            continue

        def distance(i: int, anchor: int = a) -> float:
            return float(distances[anchor, i])

        if mining == "batch-hard":
            triplets.append((a, max(positives, key=distance), min(negatives, key=distance)))
            continue
        for p in positives:
            if mining == "batch-all":
                triplets += [(a, p, n) for n in negatives]
            elif mining == "semi-hard":
                farther = [n for n in negatives if distance(n) > distance(p)]
                if farther:
                    triplets.append((a, p, min(farther, key=distance)))
                else:
                    triplets.append((a, p, max(negatives, key=distance)))
            else:
                rank = int(draws[a, same_class.index(p)] * len(negatives))
                triplets.append((a, p, negatives[rank]))
    return triplets


def naive_loss(vectors, labels, *, mining="batch-all", margin=0.3, distance="euclidean", ids=None):
    """Return the loss, the active triplets and all triplets, computed one triplet at a time."""
    ids = torch.arange(len(labels)) if ids is None else ids
    detached = vectors.detach()
    distances = torch.cdist(detached, detached, compute_mode="donot_use_mm_for_euclid_dist")
    triplets = naive_triplets(distances, labels, ids, mining)
    total, active = vectors.sum() * 0, 0
    for a, p, n in triplets:
        to_positive = naive_distance(vectors[a], vectors[p], distance)
        gap = to_positive - naive_distance(vectors[a], vectors[n], distance)
        if margin is None:
            total, active = total + F.softplus(gap), active + int(gap >= 0)
        elif gap + margin > 0:
            total, active = total + gap + margin, active + 1
    divisor = active if mining == "batch-all" and margin is not None else len(triplets)
    return total / max(1, divisor), active, len(triplets)


def naive_distance(a: Tensor, b: Tensor, distance: str) -> Tensor:
    """Return the distance of two points, with gradient 0 where they coincide."""
    if distance == "squared":
        return (a - b).square().sum()
    return (a - b).norm() if bool((a != b).any()) else (a * 0).sum()


def unit_vectors(count: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dim, dtype=torch.float64, generator=generator), dim=1)


def assert_equals_naive_loss(vectors: Tensor, labels: Tensor, **options) -> tuple[int, int]:
    """Compare loss, counts and gradient with the naive loops; return active and all triplets."""
    leaf, naive_leaf = vectors.clone().requires_grad_(), vectors.clone().requires_grad_()
    torch.manual_seed(5)
    result = triplet_loss(leaf, labels, **options)
    torch.manual_seed(5)
    expected, active, count = naive_loss(naive_leaf, labels, **options)
    result.loss.backward()
    expected.backward()
    assert (result.active, result.triplets) == (active, count)
    torch.testing.assert_close(result.loss, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(leaf.grad, naive_leaf.grad, rtol=1e-7, atol=1e-9)
    return active, count


@pytest.mark.parametrize(("mining", "margin", "distance"), MODES)
def test_loss_equals_naive_loop(mining, margin, distance):
    # Classes of different sizes, one with a single image, not sorted.
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 0, 0, 3, 1])
    class_centres = unit_vectors(4, 4, seed=2)[labels]
    vectors = F.normalize(unit_vectors(12, 4, seed=6) + class_centres, dim=1)
    options = {"mining": mining, "margin": margin, "distance": distance}
    active, count = assert_equals_naive_loss(vectors, labels, **options)
    # The test needs both active and inactive triplets.
    assert 0 < active < count


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=14),
    st.sampled_from(MODES),
    st.floats(0.01, 1.5),
    st.integers(0, 1000),
)
def test_loss_equals_naive_loop_for_random_classes(labels, mode, margin, seed):
    mining, mode_margin, distance = mode
    assert_equals_naive_loss(
        unit_vectors(len(labels), 3, seed),
        torch.tensor(labels),
        mining=mining,
        margin=None if mode_margin is None else margin,
        distance=distance,
    )


@pytest.mark.parametrize(("mining", "margin", "distance"), MODES)
def test_loss_is_independent_of_the_block_size(monkeypatch, mining, margin, distance):
    labels = torch.arange(5).repeat(8)
    # Seven anchors per block, and five in the last block.
    monkeypatch.setattr("stages.embedding.loss.BLOCK", 40 * 7)
    options = {"mining": mining, "margin": margin, "distance": distance}
    assert_equals_naive_loss(unit_vectors(40, 6, seed=2), labels, **options)


@pytest.mark.parametrize(("mining", "margin", "distance"), MODES)
def test_gradient_passes_gradcheck(mining, margin, distance):
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    vectors = unit_vectors(7, 5, seed=3).requires_grad_()

    def loss(v: Tensor) -> Tensor:
        torch.manual_seed(0)
        return triplet_loss(v, labels, mining=mining, margin=margin, distance=distance).loss

    assert torch.autograd.gradcheck(loss, (vectors,))


def test_batch_all_computes_the_example_of_the_module_docstring():
    labels, ids = torch.tensor([0, 0, 0, 0, 1, 1, 1]), torch.arange(7)
    distances = torch.tensor([[0.0, 1.0, 4.0, 5.0, 3.0, 6.0, 9.0]])  # of the first image
    block = anchor_block(*columns_by_class(labels), ids, slice(0, 1), None)
    sums = _batch_all(distances.clone(), block, TripletCost(margin=3.0, squared=False))
    assert (sums.loss, sums.triplets, sums.active) == (13.0, 9, 5)
    derivatives = torch.tensor([[0.0, 1.0, 2.0, 2.0, -3.0, -2.0, 0.0]])
    torch.testing.assert_close(sums.pair_weight * distances, derivatives)


@pytest.mark.parametrize("distance", DISTANCES)
def test_soft_margin_keeps_float32_accuracy(distance):
    labels, vectors = torch.arange(8).repeat(8), unit_vectors(64, 16, seed=12)
    options = {"margin": None, "distance": distance}
    expected, _, _ = naive_loss(vectors, labels, **options)
    float64_loss = triplet_loss(vectors, labels, **options).loss
    float32_loss = triplet_loss(vectors.float(), labels, **options).loss
    torch.testing.assert_close(float64_loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(float32_loss.double(), expected, rtol=1e-6, atol=0)


def test_random_mining_with_soft_margin_moves_every_selected_image():
    labels = torch.tensor([0, 0, 1, 2, 2, 3])
    vectors = unit_vectors(6, 3, seed=13).requires_grad_()
    torch.manual_seed(0)
    for _ in range(600):
        loss = triplet_loss(vectors, labels, mining="random", margin=None).loss
        (gradient,) = torch.autograd.grad(loss, vectors)
        assert gradient.any(1).sum() >= 3


@pytest.mark.parametrize(
    # Random mining assigns its random numbers to rows.
    ("mining", "margin", "distance"),
    [mode for mode in MODES if mode[0] != "random"],
)
def test_permuting_rows_and_renaming_labels_changes_nothing(mining, margin, distance):
    labels = torch.randint(0, 4, (30,), generator=torch.Generator().manual_seed(0))
    vectors = unit_vectors(30, 4, seed=4)
    options = {"mining": mining, "margin": margin, "distance": distance}
    original = triplet_loss(vectors, labels, **options)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    new_labels = torch.tensor([7, 3, 300, 5])[labels[order]]
    permuted = triplet_loss(vectors[order], new_labels, **options)
    torch.testing.assert_close(permuted.loss, original.loss)
    assert (permuted.active, permuted.triplets) == (original.active, original.triplets)


@pytest.mark.parametrize(("mining", "margin", "distance"), MODES)
@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [0], []])
def test_batch_without_triplets_has_zero_loss_and_gradient(mining, margin, distance, labels):
    vectors = unit_vectors(len(labels), 4, seed=5).requires_grad_()
    labels = torch.tensor(labels, dtype=torch.int64)
    result = triplet_loss(vectors, labels, mining=mining, margin=margin, distance=distance)
    result.loss.backward()
    assert result.loss.item() == 0 and result.triplets == 0 and result.active_share == 0
    assert vectors.grad is not None and not vectors.grad.any()


@pytest.mark.parametrize(("mining", "margin", "distance"), MODES)
def test_identical_vectors_have_a_finite_gradient(mining, margin, distance):
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    collapsed = unit_vectors(1, 4, seed=6).repeat(6, 1)
    # Two pairs of identical vectors, one of them in different classes.
    pairs = unit_vectors(6, 4, seed=6)[[0, 0, 2, 3, 3, 5]]
    for vectors in (collapsed, pairs, collapsed.float(), pairs.float()):
        leaf = vectors.clone().requires_grad_()
        result = triplet_loss(leaf, labels, mining=mining, margin=margin, distance=distance)
        result.loss.backward()
        assert torch.isfinite(result.loss) and torch.isfinite(leaf.grad).all()
        if vectors is collapsed:
            assert result.loss.item() == pytest.approx(math.log(2) if margin is None else 0.3)
            assert result.active_share == 1 and result.mean_distance < 1e-6


@pytest.mark.parametrize(("mining", "margin", "distance"), MODES)
def test_two_rows_of_one_image_form_no_pair(mining, margin, distance):
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    ids = torch.tensor([5, 5, 6, 7, 8, 7, 9, 9])  # class 2 has one image, repeated
    options = {"mining": mining, "margin": margin, "distance": distance, "ids": ids}
    assert_equals_naive_loss(unit_vectors(8, 4, seed=7), labels, **options)


def test_half_precision_is_converted_to_float32():
    vectors, labels = unit_vectors(12, 4, seed=8), torch.arange(3).repeat(4)
    expected = triplet_loss(vectors.float(), labels, margin=0.2).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = triplet_loss(vectors.float(), labels, margin=0.2).loss
    assert under_autocast.dtype == torch.float32
    torch.testing.assert_close(under_autocast, expected, rtol=0, atol=0)
    half = vectors.to(torch.bfloat16).requires_grad_()
    triplet_loss(half, labels, margin=0.2).loss.backward()
    assert half.grad.dtype == torch.bfloat16


def test_mean_distance_is_over_pairs_of_different_rows():
    vectors = unit_vectors(5, 3, seed=9)
    result = triplet_loss(vectors, torch.tensor([0, 0, 1, 1, 1]), margin=0.2)
    assert result.mean_distance == pytest.approx(torch.pdist(vectors).mean().item())


def test_default_margin_is_that_of_the_settings():
    vectors, labels = unit_vectors(12, 4, seed=8), torch.arange(3).repeat(4)
    loss = triplet_loss(vectors, labels, margin=EmbedSettings().margin).loss
    assert triplet_loss(vectors, labels).loss == loss
    assert triplet_loss(vectors, labels, margin=0.1).loss != loss


def test_invalid_arguments_raise_value_error():
    vectors = unit_vectors(4, 3, seed=1)
    with pytest.raises(ValueError, match=r"vectors \(4, 3\), labels \(3,\)"):
        triplet_loss(vectors, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="mining hardest"):
        triplet_loss(vectors, torch.zeros(4, dtype=torch.int64), mining="hardest")
