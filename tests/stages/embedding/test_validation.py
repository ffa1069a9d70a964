"""Subset of the images that validation uses."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from stages.embedding.validation import (
    GALLERY,
    evenly_spaced_subset,
    gallery_subset,
    validate,
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
def test_gallery_contains_every_class(sizes):
    train = split_of(torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)))
    gallery = gallery_subset(train, GALLERY)
    assert set(gallery.labels.tolist()) == set(train.labels.tolist())
    assert len(gallery) <= max(GALLERY, len(set(train.labels.tolist())))
    assert len(set(gallery.ids)) == len(gallery)


def test_validation_of_a_perfect_embedding_of_many_classes_is_perfect():
    labels = torch.arange(2000)
    gallery = gallery_subset(split_of(labels.repeat_interleave(8)), GALLERY)
    score, _ = validate(PixelsOnACircle(), gallery, split_of(labels), device=torch.device("cpu"))
    assert score == 1


def test_gallery_with_every_class_is_evenly_spaced(digit_split):
    train = digit_split(slice(0, 1700))
    assert gallery_subset(train, 1000).ids == evenly_spaced_subset(train, 1000).ids


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
