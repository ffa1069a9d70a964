"""Triplet selection where the loss alone does not show it."""

import torch

from stages.embedding.mining import anchor_block, columns_by_class, random_negatives


def test_random_mining_selects_every_negative_equally_often():
    labels = torch.tensor([0, 0, 1, 2, 2, 3])
    columns, class_of_row = columns_by_class(labels)
    counts = torch.zeros(6)
    torch.manual_seed(0)
    for _ in range(600):
        block = anchor_block(
            columns, class_of_row, torch.arange(6), slice(0, 1), torch.rand(6, columns.shape[1])
        )
        selected = random_negatives(torch.full((1, 6), 0.5), block)
        counts[selected.negative_columns[selected.is_valid]] += 1
    assert counts[0] == counts[1] == 0
    # 50 is 4.7 standard deviations.
    assert counts[2:].sum() == 600 and (counts[2:] - 150).abs().max() < 50
