"""Subset of the images that validation uses."""

from dataclasses import replace

import pytest
import torch
from factories import pairwise_distances
from torch import nn

from stages.embedding.validation import (
    GALLERY,
    GALLERY_PER_CLASS,
    evenly_spaced_subset,
    gallery_subset,
    validate,
    validate_held_out,
)
from stages.records import Split


def split_of(labels: torch.Tensor) -> Split:
    """Return a split whose images are constant and encode their class."""
    store = torch.stack([labels % 256, labels // 256], 1)[:, :, None, None].to(torch.uint8)
    count = len(labels)
    classes = tuple(map(str, range(int(labels.max()) + 1)))
    return Split(store, torch.arange(count), labels, classes, tuple(map(str, range(count))))


class PixelsOnACircle(nn.Module):
    """A perfect embedding of the images of `split_of`."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        angle = (images[:, 0].double() + 256 * images[:, 1].double()).flatten() / 4000
        return torch.stack([angle.cos(), angle.sin()], 1).float()


@pytest.mark.parametrize(
    "sizes",
    [[8] * 2000, [8] * 900, [8] * 1000, [5000, 1, 1, 1], [1] * 1200, [0, 700, 0, 700, 1]],
)
def test_gallery_has_the_share_of_each_class_or_ten_images(sizes):
    train = split_of(torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)))
    gallery = gallery_subset(train, GALLERY, GALLERY_PER_CLASS)
    assert len(set(gallery.ids)) == len(gallery)
    chosen = torch.bincount(gallery.labels, minlength=len(sizes)).tolist()
    for found, size in zip(chosen, sizes, strict=True):
        share = GALLERY * size / sum(sizes)
        assert min(size, max(share, GALLERY_PER_CLASS)) <= found
        assert found <= min(size, max(share + 1, GALLERY_PER_CLASS)) or len(train) <= GALLERY


@pytest.mark.parametrize("size", [3, 8, 20])
def test_validation_of_a_perfect_embedding_of_many_classes_is_perfect(size):
    labels = torch.arange(2000)
    split = split_of(labels.repeat_interleave(size))
    gallery = gallery_subset(split, GALLERY, GALLERY_PER_CLASS)
    score, _ = validate(PixelsOnACircle(), gallery, split_of(labels), device=torch.device("cpu"))
    assert score == 1


def test_subset_is_bounded_and_keeps_every_class(digit_split):
    train = digit_split(slice(0, 1700))
    large = replace(
        train,
        rows=train.rows.repeat(3),
        labels=torch.cat([train.labels] * 3),
        ids=tuple(map(str, range(5100))),
    )
    chosen = evenly_spaced_subset(large, 2000)
    assert len(chosen) == 2000
    assert len(set(chosen.ids)) == 2000
    share = torch.bincount(chosen.labels) / torch.bincount(large.labels)
    assert float(share.max() - share.min()) < 0.02


def test_small_split_is_returned_unchanged(digit_split):
    train = digit_split(slice(0, 1700))
    assert evenly_spaced_subset(train, 2000) is train


class TwoPixels(nn.Module):
    """An embedding in the plane; equal images have equal vectors."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        vectors = images.flatten(1)[:, :2].float() + torch.tensor([0.5, 0.25])
        return vectors / vectors.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("case", ["random", "ties", "lone images", "all equal"])
def test_held_out_scores_equal_a_loop(case):
    generator = torch.Generator().manual_seed(3)
    labels = torch.tensor([1] * 6 + [4] * 7 + [5] * 5 + ([7, 8] if case == "lone images" else []))
    levels = {"ties": 3, "all equal": 1}.get(case, 200)
    shape = (len(labels), 1, 4, 4)
    store = torch.randint(levels, shape, generator=generator, dtype=torch.uint8)
    classes, ids = tuple("abcdefghi"), tuple(map(str, range(len(labels))))
    split = Split(store, torch.arange(len(labels)), labels, classes, ids)
    network = TwoPixels()
    recall = validate_held_out(network, split, device=torch.device("cpu"))
    vectors = network(store)
    distances = pairwise_distances(vectors, vectors)
    hits = []
    for query, label in enumerate(labels.tolist()):
        others = [row for row in range(len(labels)) if row != query]
        positives = [row for row in others if labels[row] == label]
        if positives:
            nearest_positive = min(distances[query, row] for row in positives)
            negatives = [row for row in others if labels[row] != label]
            # A tie between a positive and a negative counts against the positive.
            hits.append(nearest_positive < min(distances[query, row] for row in negatives))
    assert recall == pytest.approx(sum(hits) / len(hits))


def test_held_out_scores_may_be_undefined():
    cpu = torch.device("cpu")
    assert validate_held_out(PixelsOnACircle(), None, device=cpu) is None
    lone = split_of(torch.arange(3))
    assert validate_held_out(PixelsOnACircle(), lone, device=cpu) is None
    one_class = split_of(torch.zeros(3, dtype=torch.int64))
    assert validate_held_out(PixelsOnACircle(), one_class, device=cpu) == 1.0
