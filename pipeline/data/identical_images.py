"""Find images with identical pixels without decoding every large JPEG in full.

Equal pixels have equal digests. A reduced JPEG has no digest, since that would need the full image.
It is decoded in full only if its square resembles that of another file with the same width and
height.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.decode import Digest
from pipeline.data.resizing import Pixels
from pipeline.progress import Progress

GRID = 8  # rows and columns of the means that are compared
# Largest difference, in grey levels, of the means of a reduced and a full image with equal full
# pixels. The largest that was measured, for white dots on black in a JPEG of low quality, is 8.
TOLERANCE = 16.0
BLOCK = 1024  # images per step


def identify_pixels(
    images: Pixels,
    facts: npt.NDArray[Any],
    origin: npt.NDArray[np.int64],
    digest: Digest,
    show: Progress,
) -> npt.NDArray[np.bytes_]:
    """Return a key for each image that is equal for equal pixels before resizing.

    The key of an image that was not reduced is the digest of its pixels. That of a reduced image is
    the first half of the digest of its file. Images with equal pixels have the lowest of their
    keys. So a key depends on no images but the identical ones.

    Args:
        images: Square images, uint8, shape (M, C, S, S).
        facts: Facts about each image, shape (M,), dtype ``FACT``. ``pixels`` is empty for reduced
            images.
        origin: Position of each image in the source, shape (M,).
        digest: Decodes the images at some positions in full.
        show: Wraps an iterable for display.

    Returns:
        Keys, shape (M,), dtype S32. An image that cannot be decoded in full has no identical images
        but copies of its file.
    """
    is_reduced = facts["pixels"] == b""
    keys: npt.NDArray[np.bytes_] = np.where(
        is_reduced, facts["content"].astype("S32"), facts["pixels"]
    )
    # One image of each key. The others are identical to it.
    own_keys, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    candidates = [
        row
        for rows in _rows_by_size(facts[first])
        for row in _candidates(images, first[rows], is_reduced[first[rows]])
    ]
    pixels = dict(zip(own_keys.tolist(), own_keys.tolist(), strict=True))
    if candidates:
        texts = digest(origin[candidates].tolist())
        caption = "reading similar photos"
        for row, text in zip(candidates, show(caption, len(candidates), texts), strict=True):
            if text:
                pixels[keys[row]] = text.encode()
    lowest: dict[bytes, bytes] = {}  # digest of the pixels -> lowest key
    for key in own_keys.tolist():  # in ascending order
        lowest.setdefault(pixels[key], key)
    shared = np.array([lowest[pixels[key]] for key in own_keys.tolist()], keys.dtype)
    result: npt.NDArray[np.bytes_] = shared[inverse.reshape(-1)]
    return result


def _rows_by_size(facts: npt.NDArray[Any]) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the rows of at least two images that have the same width and height."""
    sizes = facts["width"].astype(np.int64) << 32 | facts["height"]
    order = np.argsort(sizes, kind="stable")
    starts = np.flatnonzero(np.diff(sizes[order])) + 1
    for rows in np.split(order, starts):
        if len(rows) > 1:
            yield rows


def _candidates(
    images: Pixels, rows: npt.NDArray[np.int64], is_reduced: npt.NDArray[np.bool_]
) -> list[int]:
    """Return the reduced images that may be identical to another one of the same size.

    Copies of a JPEG in another JPEG, with the same frequencies, have equal squares. The square of a
    copy in another format was made from the full image, and is only similar.

    Args:
        images: Square images of the source, uint8, shape (M, C, S, S).
        rows: Rows of the images to compare, shape (R,).
        is_reduced: True for reduced images, shape (R,).
    """
    reduced, full = rows[is_reduced], rows[~is_reduced]
    if not len(reduced):
        return []
    counts: dict[int, int] = {}
    hashes = [hash(images[row].tobytes()) for row in reduced]
    for value in hashes:
        counts[value] = counts.get(value, 0) + 1
    is_candidate = np.array([counts[value] > 1 for value in hashes])
    if len(full):
        from scipy.spatial import cKDTree  # slow to import, and rarely needed

        tree = cKDTree(_means(images, full))
        distances, _ = tree.query(_means(images, reduced), p=np.inf, distance_upper_bound=TOLERANCE)
        is_candidate |= np.isfinite(distances)
    candidates: list[int] = reduced[is_candidate].tolist()
    return candidates


def _means(images: Pixels, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the mean of each cell of a grid over some images, shape (R, cells)."""
    side = images.shape[-1]
    count = min(GRID, side)
    starts = np.arange(count) * side // count
    lengths = np.diff(starts, append=side)
    area = np.outer(lengths, lengths)  # (G, G)
    blocks = []
    for start in range(0, len(rows), BLOCK):
        grey = images[rows[start : start + BLOCK]].mean(axis=1)  # (B, S, S)
        sums = np.add.reduceat(np.add.reduceat(grey, starts, axis=1), starts, axis=2)
        blocks.append((sums / area).reshape(len(grey), -1))
    return np.concatenate(blocks)
