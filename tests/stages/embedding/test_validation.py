"""Subset of the images that validation uses."""

from dataclasses import replace

import torch

from stages.embedding.validation import evenly_spaced_subset


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
