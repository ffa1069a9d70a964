"""Evenly spaced subsets, for scores and pictures that need a bounded number of rows."""

import torch
from torch import Tensor


def evenly_spaced(count: int, limit: int) -> Tensor:
    """Return at most ``limit`` evenly spaced positions out of ``count``.

    Args:
        count: Number of rows to choose from.
        limit: Largest number of rows to return.

    Returns:
        Positions in ascending order, int64, shape (min(count, limit),). They include the first
        and the last row if there are at least two.

    Example:
        >>> evenly_spaced(9, limit=3).tolist()
        [0, 4, 8]
        >>> evenly_spaced(2, limit=3).tolist()
        [0, 1]
    """
    return torch.linspace(0, count - 1, min(count, limit)).round().long()
