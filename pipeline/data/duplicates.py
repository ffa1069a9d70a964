"""Find exact and near duplicates."""

from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.fft import dctn

from pipeline.data.dataset import Source
from pipeline.progress import Progress, no_progress

ALIKE_BITS = 10  # of 64 that may differ between the hashes of two near duplicates


ALIKE_PIXELS = 0.98  # correlation of their pixels, at the size they are read at


def equal_groups(keys: Iterable[Hashable]) -> list[list[int]]:
    """Rows that share a key, where at least two do; None is no key."""
    rows: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        if key is not None:
            rows.setdefault(key, []).append(row)
    return [group for group in rows.values() if len(group) > 1]


def perceptual_hash(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """64 bits an image that survive scaling, recompression and a change of brightness.

    The signs of the 64 lowest frequencies of the cosine transform against their median (Zauner 2010, "pHash"), of a
    whole block of images at once, from pixels that are decoded already: the package imagehash opens each again.
    images: uint8 (N, C, S, S). Returns -1 or 1 as float32 (N, 64), whose products count equal bits.
    """
    grey = images.mean(axis=1, dtype=np.float32)
    low = dctn(grey, axes=(1, 2))[:, :8, :8].reshape(len(images), -1)  # (N, up to 64)
    bits = np.full((len(images), 64), -1, np.float32)
    bits[:, : low.shape[1]] = np.where(low > np.median(low[:, 1:], axis=1, keepdims=True), 1, -1)
    return bits


def near_duplicates(source: Source, *, progress: Progress | None = None) -> list[list[int]]:
    """Groups of rows that look alike: close hashes, confirmed by the pixels themselves; chains are joined.

    Rows with the same pixels as an earlier one are left out, and so are flat images, which all look alike.
    """
    show: Progress = progress or no_progress
    _, first = np.unique(source.facts["pixels"], return_index=True)
    rows = np.sort(first)
    images = source.images.numpy()
    bits = np.empty((len(rows), 64), np.float32)
    for start in range(0, len(rows), 1024):
        bits[start : start + 1024] = perceptual_hash(images[rows[start : start + 1024]])
    head = np.arange(len(rows))

    def find(row: int) -> int:
        while head[row] != row:
            head[row] = row = head[head[row]]
        return row

    for start in show("comparing images", -(-len(rows) // 512), range(0, len(rows), 512)):
        near = bits[start : start + 512] @ bits[start:].T >= 64 - 2 * ALIKE_BITS  # (512, rest)
        left, right = np.nonzero(np.triu(near, 1))
        for part in range(0, len(left), 2048):
            one, other = left[part : part + 2048] + start, right[part : part + 2048] + start
            for pair in np.flatnonzero(
                _correlation(images[rows[one]], images[rows[other]]) >= ALIKE_PIXELS
            ):
                head[find(int(other[pair]))] = find(int(one[pair]))
    return [
        [int(rows[place]) for place in group]
        for group in equal_groups([find(place) for place in range(len(rows))])
    ]


def _correlation(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """Of the pixels of pairs of images, uint8 (N, C, S, S) -> float32 (N,); 0 where an image is flat."""
    a, b = (images.reshape(len(images), -1).astype(np.float32) for images in (one, other))
    a -= a.mean(axis=1, keepdims=True)
    b -= b.mean(axis=1, keepdims=True)
    scale = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    result: npt.NDArray[Any] = np.divide(
        (a * b).sum(axis=1), scale, out=np.zeros_like(scale), where=scale > 0
    )
    return result
