"""The triplet loss, every mode of it, against plain loops in float64: value, gradient and counts."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.distance import sort_rows
from stages.embedding.loss import _families, _pairs, _random, _Rule, triplet_loss
from stages.settings import DISTANCES, MININGS

MODES = [
    (mining, margin, kind) for mining in MININGS for margin in (0.3, None) for kind in DISTANCES
]


def chosen(d: Tensor, labels: Tensor, ids: Tensor, mining: str) -> list[tuple[int, int, int]]:
    """The triplets that a mining mode stands for, one at a time."""
    count = len(labels)
    # The draws of `random` are documented as torch's global generator; which image gets which is by class, then by row.
    by_class = labels.argsort(stable=True).tolist()
    draws = torch.rand(count, int(torch.bincount(labels).max())) if mining == "random" else None
    triplets = []
    for a in range(count):
        family = [i for i in by_class if labels[i] == labels[a]]
        positives = [p for p in family if ids[p] != ids[a]]
        negatives = [n for n in range(count) if labels[n] != labels[a]]
        if not positives or not negatives:
            continue
        if mining == "batch-hard":
            triplets.append(
                (a, max(positives, key=lambda p: d[a, p]), min(negatives, key=lambda n: d[a, n]))
            )
            continue
        for p in positives:
            if mining == "batch-all":
                triplets += [(a, p, n) for n in negatives]
            elif mining == "semi-hard":
                farther = [n for n in negatives if d[a, n] > d[a, p]]
                triplets.append(
                    (
                        a,
                        p,
                        min(farther, key=lambda n: d[a, n])
                        if farther
                        else max(negatives, key=lambda n: d[a, n]),
                    )
                )
            else:
                triplets.append((a, p, negatives[int(draws[a, family.index(p)] * len(negatives))]))
    return triplets


def looped(vectors, labels, *, mining="batch-all", margin=0.3, distance="euclidean", ids=None):
    """Loss, active triplets and all triplets, a triplet at a time."""
    ids = torch.arange(len(labels)) if ids is None else ids
    table = torch.cdist(
        vectors.detach(), vectors.detach(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    triplets = chosen(table, labels, ids, mining)
    total, active = vectors.sum() * 0, 0
    for a, p, n in triplets:
        gap = apart(vectors[a], vectors[p], distance) - apart(vectors[a], vectors[n], distance)
        if margin is None:
            total, active = total + F.softplus(gap), active + int(gap >= 0)
        elif gap + margin > 0:
            total, active = total + gap + margin, active + 1
    divisor = active if mining == "batch-all" and margin is not None else len(triplets)
    return total / max(1, divisor), active, len(triplets)


def apart(a: Tensor, b: Tensor, distance: str) -> Tensor:
    """With gradient 0 at distance 0."""
    if distance == "squared":
        return (a - b).square().sum()
    return (a - b).norm() if bool((a != b).any()) else (a * 0).sum()


def unit(count: int, dim: int, seed: int) -> Tensor:
    return F.normalize(
        torch.randn(count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)),
        dim=1,
    )


def compare(vectors: Tensor, labels: Tensor, **options) -> tuple[int, int]:
    ours, theirs = vectors.clone().requires_grad_(), vectors.clone().requires_grad_()
    torch.manual_seed(5)
    result = triplet_loss(ours, labels, **options)
    torch.manual_seed(5)
    expected, active, count = looped(theirs, labels, **options)
    result.loss.backward()
    expected.backward()
    assert (result.active, result.triplets) == (active, count)
    torch.testing.assert_close(result.loss, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-9)
    return active, count


@pytest.mark.parametrize(("mining", "margin", "distance"), MODES)
def test_equals_the_loops(mining, margin, distance):
    labels = torch.tensor(
        [0, 1, 2, 0, 1, 2, 0, 1, 0, 0, 3, 1]
    )  # uneven classes, one lone image, unsorted
    vectors = F.normalize(unit(12, 4, seed=6) + unit(4, 4, seed=2)[labels], dim=1)  # half trained
    active, count = compare(vectors, labels, mining=mining, margin=margin, distance=distance)
    # Both kinds are there, or the test proves little.
    assert 0 < active < count


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=14),
    st.sampled_from(MODES),
    st.floats(0.01, 1.5),
    st.integers(0, 1000),
)
def test_equals_the_loops_for_any_classes(labels, mode, margin, seed):
    mining, soft, distance = mode
    margin = None if soft is None else margin
    compare(
        unit(len(labels), 3, seed),
        torch.tensor(labels),
        mining=mining,
        margin=margin,
        distance=distance,
    )


@pytest.mark.parametrize(("mining", "margin", "distance"), MODES)
def test_blocks_of_anchors_change_nothing(monkeypatch, mining, margin, distance):
    labels = torch.arange(5).repeat(8)
    monkeypatch.setattr(
        "stages.embedding.loss.BLOCK", 40 * 7
    )  # seven anchors a block, and a last block of five
    compare(unit(40, 6, seed=2), labels, mining=mining, margin=margin, distance=distance)


@pytest.mark.parametrize(("mining", "margin", "distance"), MODES)
def test_gradcheck(mining, margin, distance):
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    vectors = unit(7, 5, seed=3).requires_grad_()

    def loss(v: Tensor) -> Tensor:
        torch.manual_seed(0)
        return triplet_loss(v, labels, mining=mining, margin=margin, distance=distance).loss

    assert torch.autograd.gradcheck(loss, (vectors,))


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_soft_margin_keeps_float32_accuracy(distance):
    labels, vectors = torch.arange(8).repeat(8), unit(64, 16, seed=12)
    wide = triplet_loss(vectors, labels, margin=None, distance=distance).loss
    expected, _, _ = looped(vectors, labels, margin=None, distance=distance)
    torch.testing.assert_close(wide, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        triplet_loss(vectors.float(), labels, margin=None, distance=distance).loss.double(),
        expected,
        rtol=1e-6,
        atol=0,
    )


def test_random_draws_every_negative_equally_often():
    labels = torch.tensor([0, 0, 1, 2, 2, 3])
    vectors = unit(6, 3, seed=13).requires_grad_()
    times = torch.zeros(6)
    torch.manual_seed(0)
    for _ in range(600):
        # The soft margin moves every chosen triplet; anchor 0 has one positive, so its negative is the row it pulls at.
        (gradient,) = torch.autograd.grad(
            triplet_loss(vectors, labels, mining="random", margin=None).loss, vectors
        )
        assert gradient.any(1).sum() >= 3
        table, family = _families(labels)
        pairs = _pairs(table, family, torch.arange(6), slice(0, 1), torch.rand(6, 2))
        mined = _random(torch.full((1, 6), 0.5), pairs, _Rule(None, False))
        times += (mined.pull[0] < 0).float()
    assert times[0] == times[1] == 0
    assert times[2:].sum() == 600 and (times[2:] - 150).abs().max() < 50  # 4.7 standard deviations


@pytest.mark.parametrize(
    ("mining", "margin", "distance"), [mode for mode in MODES if mode[0] != "random"]
)  # its draws go to rows
def test_permuting_rows_and_renaming_labels_changes_nothing(mining, margin, distance):
    labels = torch.randint(0, 4, (30,), generator=torch.Generator().manual_seed(0))
    vectors = unit(30, 4, seed=4)
    options = {"mining": mining, "margin": margin, "distance": distance}
    base = triplet_loss(vectors, labels, **options)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    moved = triplet_loss(vectors[order], torch.tensor([7, 3, 300, 5])[labels[order]], **options)
    torch.testing.assert_close(moved.loss, base.loss)
    assert (moved.active, moved.triplets) == (base.active, base.triplets)


@pytest.mark.parametrize(("mining", "margin", "distance"), MODES)
@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [0], []])
def test_a_batch_without_triplets_is_a_zero_that_keeps_the_graph(mining, margin, distance, labels):
    vectors = unit(len(labels), 4, seed=5).requires_grad_()
    result = triplet_loss(
        vectors,
        torch.tensor(labels, dtype=torch.int64),
        mining=mining,
        margin=margin,
        distance=distance,
    )
    result.loss.backward()
    assert result.loss.item() == 0 and result.triplets == 0 and result.active_share == 0
    assert vectors.grad is not None and not vectors.grad.any()


@pytest.mark.parametrize(("mining", "margin", "distance"), MODES)
def test_identical_images_keep_the_gradient_finite(mining, margin, distance):
    collapsed = unit(1, 4, seed=6).repeat(6, 1)
    twins = unit(6, 4, seed=6)[
        [0, 0, 2, 3, 3, 5]
    ]  # two pairs of identical images, one across classes
    for vectors in (collapsed, twins, collapsed.float(), twins.float()):
        leaf = vectors.clone().requires_grad_()
        result = triplet_loss(
            leaf, torch.tensor([0, 0, 0, 0, 1, 1]), mining=mining, margin=margin, distance=distance
        )
        result.loss.backward()
        assert torch.isfinite(result.loss) and torch.isfinite(leaf.grad).all()
        if vectors is collapsed:
            assert result.loss.item() == pytest.approx(math.log(2) if margin is None else 0.3)
            assert result.active_share == 1 and result.mean_distance < 1e-6


@pytest.mark.parametrize(("mining", "margin", "distance"), MODES)
def test_two_rows_of_one_image_are_no_pair(mining, margin, distance):
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    ids = torch.tensor([5, 5, 6, 7, 8, 7, 9, 9])  # class 2 is one image, drawn twice
    compare(unit(8, 4, seed=7), labels, mining=mining, margin=margin, distance=distance, ids=ids)


def test_half_precision_is_widened():
    vectors = unit(12, 4, seed=8)
    labels = torch.arange(3).repeat(4)
    wide = triplet_loss(vectors.float(), labels).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = triplet_loss(vectors.float(), labels).loss
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, wide, rtol=0, atol=0)
    half = vectors.to(torch.bfloat16).requires_grad_()
    triplet_loss(half, labels).loss.backward()
    assert half.grad.dtype == torch.bfloat16


def test_mean_distance_is_over_pairs_of_different_rows():
    vectors = unit(5, 3, seed=9)
    result = triplet_loss(vectors, torch.tensor([0, 0, 1, 1, 1]))
    assert result.mean_distance == pytest.approx(torch.pdist(vectors).mean().item())


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="give \\(B, D\\) and \\(B,\\)"):
        triplet_loss(unit(4, 3, seed=1), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="mining hardest"):
        triplet_loss(unit(4, 3, seed=1), torch.zeros(4, dtype=torch.int64), mining="hardest")


def test_sorting_rows_on_threads_equals_sorting_them(monkeypatch):
    values = unit(300, 300, seed=10).abs()
    values[3] = values[4]
    values[5, 7:] = float("inf")
    for table in (values, values.float()):
        ascending, order = sort_rows(table)
        torch.testing.assert_close(ascending, table.sort(dim=1).values, rtol=0, atol=0)
        torch.testing.assert_close(table.gather(1, order), ascending, rtol=0, atol=0)
        assert (order.sort(dim=1).values == torch.arange(300)).all()
