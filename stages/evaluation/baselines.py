"""Baselines for kNN: other vectors of the same images."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.records import Split

PIXELS = 32  # larger images are averaged down to this side


class Baseline(NamedTuple):
    """Vectors for a kNN baseline, in the order of the test and training images.

    Attributes:
        queries: Vectors of the test images, floating point or uint8, shape (N, D).
        gallery: Vectors of the training images, shape (G, D).
        k: Number of neighbours.
    """

    queries: Tensor
    gallery: Tensor
    k: int


def raw_pixels(split: Split) -> Tensor:
    """Flatten the images of a split into vectors of pixel values.

    Images larger than 32 x 32 are averaged down to that size, which bounds the memory. Pixels of
    smaller images stay bytes.

    Args:
        split: N images with C channels.

    Returns:
        Pixel values in [0, 255], uint8 or float32, shape (N, C * S * S) with S at most 32.
    """
    vectors = []
    for images in split.blocks():
        if images.shape[-1] > PIXELS:
            images = F.adaptive_avg_pool2d(images.float(), PIXELS)
        vectors.append(images.flatten(1))
    return torch.cat(vectors)
