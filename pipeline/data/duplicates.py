"""Find exact and near duplicates."""

from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.components import Edge, connected_groups, spanning_edges
from pipeline.data.dataset import Source
from pipeline.progress import Progress, no_progress

HASH_BITS = 64
MAX_DIFFERENT_BITS = 10  # between the hashes of two near duplicates
MIN_CORRELATION = 0.98  # between the pixels of two near duplicates, at the decoded size


def equal_groups(keys: Iterable[Hashable]) -> list[list[int]]:
    """Group the rows that have the same key.

    Args:
        keys: Key of each row. Rows with the key ``None`` belong to no group.

    Returns:
        Groups of at least two rows, ordered by their first row. Each group is sorted.

    Example:
        >>> equal_groups(["a", "b", None, "a", None])
        [[0, 3]]
    """
    rows: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        if key is not None:
            rows.setdefault(key, []).append(row)
    return [group for group in rows.values() if len(group) > 1]


def perceptual_hash(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Compute hashes that survive scaling, recompression and changes of brightness.

    A bit is the sign of one of the 64 lowest frequencies of the cosine transform, relative to
    their median. The package imagehash computes the same from a file; this function takes a block
    of images that are decoded already.

    Args:
        images: Pixels, uint8, shape (N, C, S, S).

    Returns:
        Bits as -1 or 1, float32, shape (N, 64). The dot product of two hashes is 64 minus twice
        the number of different bits.

    References:
        C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010
        (pHash).
    """
    from scipy.fft import dctn  # slow to import, and training does not need it

    grey = images.mean(axis=1, dtype=np.float32)  # (N, S, S)
    low = dctn(grey, axes=(1, 2))[:, :8, :8].reshape(len(images), -1)  # (N, up to 64)
    bits = np.full((len(images), HASH_BITS), -1, np.float32)
    bits[:, : low.shape[1]] = np.where(low > np.median(low[:, 1:], axis=1, keepdims=True), 1, -1)
    return bits


def near_duplicates(source: Source, *, progress: Progress | None = None) -> list[list[int]]:
    """Find groups of similar images that are not identical.

    Two images are near duplicates if their perceptual hashes are similar and their pixels are
    correlated. Chains of near duplicates form one group. Only the first of several identical
    images is considered. Images of one flat colour are never near duplicates.

    Args:
        source: Decoded source of M images. The search takes O(M^2) time.
        progress: Progress display.

    Returns:
        Groups of at least two rows, ordered by their first row. Each group is sorted.
    """
    _, first = np.unique(source.facts["pixels"], return_index=True)
    rows = np.sort(first)  # of distinct images
    images = source.images.numpy()
    edges: list[Edge] = []
    for left, right in _pairs_with_similar_hashes(images, rows, progress or no_progress):
        similar = _correlation(images[rows[left]], images[rows[right]]) >= MIN_CORRELATION
        edges += zip(left[similar].tolist(), right[similar].tolist(), strict=True)
        if len(edges) > 4 * len(rows):  # keeps memory linear in the number of images
            edges = spanning_edges(len(rows), edges)
    groups = [group for group in connected_groups(len(rows), edges) if len(group) > 1]
    return [rows[group].tolist() for group in groups]


def _pairs_with_similar_hashes(
    images: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64], show: Progress
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield the pairs, as indices into ``rows``, in two arrays of at most 2048 each."""
    bits = np.empty((len(rows), HASH_BITS), np.float32)
    for start in range(0, len(rows), 1024):
        block = slice(start, start + 1024)
        bits[block] = perceptual_hash(images[rows[block]])
    blocks = -(-len(rows) // 512)
    for start in show("comparing images", blocks, range(0, len(rows), 512)):
        agreement = bits[start : start + 512] @ bits[start:].T  # (up to 512, M - start)
        similar = agreement >= HASH_BITS - 2 * MAX_DIFFERENT_BITS
        left, right = np.nonzero(np.triu(similar, 1))
        for begin in range(0, len(left), 2048):
            end = begin + 2048
            yield left[begin:end] + start, right[begin:end] + start


def _correlation(left: npt.NDArray[np.uint8], right: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """Return the correlation of the pixels of pairs of images, 0 if one of them is flat.

    Args:
        left: uint8, shape (N, C, S, S).
        right: uint8, shape (N, C, S, S).

    Returns:
        float32, shape (N,).
    """
    a = left.reshape(len(left), -1).astype(np.float32)  # (N, C * S * S)
    b = right.reshape(len(right), -1).astype(np.float32)  # (N, C * S * S)
    a -= a.mean(axis=1, keepdims=True)
    b -= b.mean(axis=1, keepdims=True)
    scale = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    result: npt.NDArray[Any] = np.divide(
        (a * b).sum(axis=1), scale, out=np.zeros_like(scale), where=scale > 0
    )
    return result
