"""Baselines of the report: other vectors of the same images, for kNN."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.records import Split

PIXELS = 32  # side to which the raw-pixel baseline averages larger images


class Baseline(NamedTuple):
    """Another space to search: queries (N, D) and gallery (G, D) in the order of the test and training part, and its k."""

    queries: Tensor
    gallery: Tensor
    k: int


def raw_pixels(split: Split) -> Tensor:
    """Pixels as vectors, float32 (N, C * S * S), S at most 32: a baseline needs no more, and larger ones no memory has."""
    small = (
        F.adaptive_avg_pool2d(images.float(), min(PIXELS, images.shape[-1]))
        for images in split.blocks()
    )
    return torch.cat([images.flatten(1) for images in small])
