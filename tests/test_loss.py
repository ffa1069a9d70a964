"""The triplet loss against three plain loops in float64: value, gradient and counts."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages import loss as loss_module
from stages.loss import triplet_loss


def looped(vectors: Tensor, labels: Tensor, margin: float, ids: Tensor | None = None) -> tuple[Tensor, int, int]:
    """Loss, active triplets and all triplets, one triplet at a time."""
    ids = torch.arange(len(labels)) if ids is None else ids
    total, active, count = vectors.sum() * 0, 0, 0
    for a in range(len(labels)):
        for p in range(len(labels)):
            if labels[p] != labels[a] or ids[p] == ids[a]:
                continue
            for n in range(len(labels)):
                if labels[n] == labels[a]:
                    continue
                count += 1
                hinge = distance(vectors[a], vectors[p]) - distance(vectors[a], vectors[n]) + margin
                if hinge > 0:
                    total, active = total + hinge, active + 1
    return total / max(1, active), active, count


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean, with gradient 0 at distance 0."""
    return (a - b).norm() if bool((a != b).any()) else (a * 0).sum()


def unit(count: int, dim: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=1)


def compare(vectors: Tensor, labels: Tensor, margin: float, ids: Tensor | None = None) -> tuple[int, int]:
    ours, theirs = vectors.clone().requires_grad_(), vectors.clone().requires_grad_()
    result = triplet_loss(ours, labels, margin=margin, ids=ids)
    expected, active, count = looped(theirs, labels, margin, ids)
    result.loss.backward()
    expected.backward()
    assert (result.active, result.triplets) == (active, count)
    torch.testing.assert_close(result.loss, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-9)
    return active, count


@pytest.mark.parametrize("margin", [0.05, 0.3, 1.0])
def test_equals_the_loops(margin):
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 0, 0, 3, 1])  # uneven classes, one lone image, unsorted
    active, count = compare(unit(12, 4, seed=1), labels, margin)
    assert 0 < active < count  # both kinds are there, or the test proves little


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=14), st.floats(0.01, 1.5), st.integers(0, 1000))
def test_equals_the_loops_for_any_classes(labels, margin, seed):
    compare(unit(len(labels), 3, seed), torch.tensor(labels), margin)


def test_blocks_of_anchors_change_nothing(monkeypatch):
    labels = torch.arange(5).repeat(8)
    vectors = unit(40, 6, seed=2)
    whole = triplet_loss(vectors, labels, margin=0.3)
    monkeypatch.setattr(loss_module, "BLOCK", 40 * 7)  # seven anchors a block, and a last block of five
    ours = vectors.clone().requires_grad_()
    parts = triplet_loss(ours, labels, margin=0.3)
    torch.testing.assert_close(parts.loss, whole.loss)
    assert (parts.active, parts.triplets) == (whole.active, whole.triplets)
    compare(vectors, labels, 0.3)


def test_gradcheck():
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    vectors = unit(7, 5, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: triplet_loss(v, labels, margin=0.4).loss, (vectors,))


def test_permuting_rows_and_renaming_labels_changes_nothing():
    labels = torch.randint(0, 4, (30,), generator=torch.Generator().manual_seed(0))
    vectors = unit(30, 4, seed=4)
    base = triplet_loss(vectors, labels, margin=0.2)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    moved = triplet_loss(vectors[order], torch.tensor([7, 3, 300, 5])[labels[order]], margin=0.2)
    torch.testing.assert_close(moved.loss, base.loss)
    assert (moved.active, moved.triplets) == (base.active, base.triplets)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [0]])
def test_a_batch_without_triplets_is_a_zero_that_keeps_the_graph(labels):
    vectors = unit(len(labels), 4, seed=5).requires_grad_()
    result = triplet_loss(vectors, torch.tensor(labels), margin=0.2)
    result.loss.backward()
    assert result.loss.item() == 0 and result.triplets == 0 and result.active_share == 0
    assert vectors.grad is not None and not vectors.grad.any()


def test_identical_images_keep_the_gradient_finite():
    vectors = unit(1, 4, seed=6).repeat(6, 1).requires_grad_()  # collapsed: every distance is 0
    result = triplet_loss(vectors, torch.tensor([0, 0, 0, 1, 1, 1]), margin=0.2)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(0.2) and result.active_share == 1 and result.mean_distance < 1e-7
    assert torch.isfinite(vectors.grad).all()


def test_two_rows_of_one_image_are_no_pair():
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    ids = torch.tensor([5, 5, 6, 7, 8, 7, 9, 9])  # class 2 is one image, drawn twice
    compare(unit(8, 4, seed=7), labels, 0.5, ids)


def test_half_precision_is_widened():
    vectors = unit(12, 4, seed=8)
    labels = torch.arange(3).repeat(4)
    wide = triplet_loss(vectors.float(), labels, margin=0.3).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = triplet_loss(vectors.float(), labels, margin=0.3).loss
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, wide, rtol=0, atol=0)
    half = vectors.to(torch.bfloat16).requires_grad_()
    triplet_loss(half, labels, margin=0.3).loss.backward()
    assert half.grad.dtype == torch.bfloat16


def test_mean_distance_is_over_pairs_of_different_rows():
    vectors = unit(5, 3, seed=9)
    result = triplet_loss(vectors, torch.tensor([0, 0, 1, 1, 1]), margin=0.2)
    assert result.mean_distance == pytest.approx(torch.pdist(vectors).mean().item())
