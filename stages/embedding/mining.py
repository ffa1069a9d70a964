"""Triplet selection: the positives and negatives of each anchor, and the mining modes.

Anchors are processed in blocks of b rows of the B x B distance matrix. Distances to the anchor's
own class are gathered into W columns, where W is the size of the largest class in the batch. The
margin plays no role here: :mod:`stages.embedding.loss` applies it to the selected triplets.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from stages.distance import sort_rows


class AnchorBlock(NamedTuple):
    """Positives and negatives of a block of b anchors in a batch of B images.

    Attributes:
        same_class_columns: Columns of the anchor's class, the anchor included, int64, shape (b, W).
            Smaller classes are padded with their first column.
        is_positive: True for the entries of ``same_class_columns`` that are positives: neither
            padding nor the anchor's own image. Bool, shape (b, W).
        negative_count: Number of images of other classes, int64, shape (b, 1).
        draws: Random numbers in [0, 1) for random mining, shape (b, W). ``None`` in other modes.
    """

    same_class_columns: Tensor
    is_positive: Tensor
    negative_count: Tensor
    draws: Tensor | None


class SelectedTriplets(NamedTuple):
    """Triplets selected for a block of b anchors, k per anchor.

    Attributes:
        positive_columns: Column of each positive, int64, shape (b, k).
        negative_columns: Column of each negative, int64, shape (b, k).
        to_positive: Distance from anchor to positive, shape (b, k).
        to_negative: Distance from anchor to negative, shape (b, k).
        is_valid: False where an anchor has no such triplet, bool, shape (b, k).
    """

    positive_columns: Tensor
    negative_columns: Tensor
    to_positive: Tensor
    to_negative: Tensor
    is_valid: Tensor


def columns_by_class(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the columns of each class and the class of each row.

    Args:
        labels: int64, shape (B,), on the CPU: the shapes depend on the values.

    Returns:
        Columns of each of the C classes in ascending order, padded with -1, int64, shape (C, W);
        and the row of that table for each image, int64, shape (B,).

    Example:
        >>> columns, class_of_row = columns_by_class(torch.tensor([7, 3, 7, 7]))
        >>> columns.tolist(), class_of_row.tolist()
        ([[1, -1, -1], [0, 2, 3]], [1, 0, 1, 1])
    """
    sorted_labels, order = labels.sort(stable=True)
    _, sorted_classes, sizes = torch.unique_consecutive(
        sorted_labels, return_inverse=True, return_counts=True
    )
    first = sizes.cumsum(0) - sizes  # (C,) position of each class in the sorted order
    slot = torch.arange(len(labels)) - first[sorted_classes]  # (B,)
    width = int(sizes.max()) if len(labels) else 0
    columns = torch.full((len(sizes), width), -1, dtype=torch.int64)
    columns[sorted_classes, slot] = order
    return columns, torch.empty_like(labels).scatter_(0, order, sorted_classes)


def anchor_block(
    columns: Tensor, class_of_row: Tensor, ids: Tensor, rows: slice, draws: Tensor | None
) -> AnchorBlock:
    """Return the positives and negatives of the anchors in ``rows``.

    Args:
        columns: Columns of each class, from :func:`columns_by_class`.
        class_of_row: Class of each row, from :func:`columns_by_class`.
        ids: Image shown by each row, int64, shape (B,).
        rows: Rows of the block.
        draws: Random numbers for all rows, shape (B, W), or ``None``.
    """
    same_class = columns[class_of_row[rows]]  # (b, W)
    is_member = same_class >= 0
    same_class = torch.where(is_member, same_class, same_class[:, :1])
    return AnchorBlock(
        same_class_columns=same_class,
        is_positive=is_member & (ids[same_class] != ids[rows, None]),
        negative_count=len(ids) - is_member.sum(1, keepdim=True),
        draws=None if draws is None else draws[rows],
    )


def batch_hard(distances: Tensor, block: AnchorBlock) -> SelectedTriplets:
    """Select each anchor's farthest positive and nearest negative.

    Args:
        distances: Distances from each anchor to all rows, shape (b, B). Overwritten.
        block: Positives and negatives of the anchors.
    """
    to_same_class = distances.gather(1, block.same_class_columns)
    to_positive, hardest = to_same_class.masked_fill(~block.is_positive, -math.inf).max(
        1, keepdim=True
    )
    to_others = distances.scatter_(1, block.same_class_columns, math.inf)
    to_negative, negative_columns = to_others.min(1, keepdim=True)
    return SelectedTriplets(
        positive_columns=block.same_class_columns.gather(1, hardest),
        negative_columns=negative_columns,
        to_positive=to_positive,
        to_negative=to_negative,
        is_valid=block.is_positive.any(1, keepdim=True) & (block.negative_count > 0),
    )


def semi_hard(distances: Tensor, block: AnchorBlock) -> SelectedTriplets:
    """Select for each positive the nearest negative that is strictly farther.

    If every negative is at most as far as the positive, the farthest negative is selected.

    Args:
        distances: Distances from each anchor to all rows, shape (b, B). Overwritten.
        block: Positives and negatives of the anchors.
    """
    to_same_class = distances.gather(1, block.same_class_columns)
    to_others = distances.scatter_(1, block.same_class_columns, math.inf)
    ascending, order = sort_rows(to_others)
    not_farther = torch.searchsorted(ascending, to_same_class, right=True)  # (b, W) counts
    rank = torch.minimum(not_farther, (block.negative_count - 1).clamp(min=0))
    return SelectedTriplets(
        positive_columns=block.same_class_columns,
        negative_columns=order.gather(1, rank),
        to_positive=to_same_class,
        to_negative=ascending.gather(1, rank),
        is_valid=block.is_positive & (block.negative_count > 0),
    )


def random_negatives(distances: Tensor, block: AnchorBlock) -> SelectedTriplets:
    """Select for each positive one negative, uniformly at random.

    Args:
        distances: Distances from each anchor to all rows, shape (b, B).
        block: Positives and negatives of the anchors, with ``draws``.
    """
    assert block.draws is not None
    is_negative = torch.ones_like(distances, dtype=torch.int64)
    is_negative.scatter_(1, block.same_class_columns, 0)
    rank = (block.draws * block.negative_count).long()  # (b, W)
    # The negative of rank r is the first column with r + 1 negatives up to and including it.
    columns = torch.searchsorted(is_negative.cumsum(1), rank + 1)
    columns.clamp_(max=distances.shape[1] - 1)  # anchors without a negative; not valid
    return SelectedTriplets(
        positive_columns=block.same_class_columns,
        negative_columns=columns,
        to_positive=distances.gather(1, block.same_class_columns),
        to_negative=distances.gather(1, columns),
        is_valid=block.is_positive & (block.negative_count > 0),
    )
