"""Blocks of queries of one class, with their distances to a gallery, in bounded memory."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from stages.distance import CPU, GalleryDistances
from stages.gpu import free_memory

BLOCK = 2**21  # distances computed at once on a CPU
LARGE_BLOCK = 2**26  # on a GPU, if its free memory allows
BYTES_PER_DISTANCE = 128  # of free memory on a GPU; an estimate with a reserve, not measured
MIN_QUERIES = 64  # queries at once: a matrix product of fewer would wait for memory


def query_blocks(
    labels: Tensor, gallery_labels: Tensor, within: bool, size: int
) -> Iterator[tuple[Tensor, int, int]]:
    """Yield blocks of queries of one class, and the range of the class in the sorted gallery.

    Classes without a query or without a positive are skipped.

    Args:
        labels: Class indices of the queries, int64, shape (Q,).
        gallery_labels: Class indices of the gallery, int64, shape (G,).
        within: True if the queries are the gallery, so that a query is not its own positive.
        size: Largest number of queries per block, from :func:`query_count`.

    Yields:
        Rows of queries, int64, shape (b,); and the first position of the class in a gallery sorted
        by class, and the position after its last.
    """
    classes = len(torch.bincount(torch.cat([labels, gallery_labels])))
    query_counts = torch.bincount(labels, minlength=classes).tolist()
    gallery_counts = torch.bincount(gallery_labels, minlength=classes).tolist()
    class_rows = labels.argsort(stable=True).split(query_counts)
    end = 0
    for rows, gallery_count in zip(class_rows, gallery_counts, strict=True):
        begin, end = end, end + gallery_count
        if len(rows) and gallery_count > int(within):
            for block in rows.split(size):
                yield block, begin, end


def distance_blocks(
    queries: Tensor,
    gallery: GalleryDistances,
    blocks: Iterable[tuple[Tensor, int, int]],
    size: int,
) -> Iterator[tuple[Tensor, Tensor, int, int]]:
    """Yield blocks of queries with their distances to the gallery.

    Blocks of small classes are computed together: one matrix product of many queries is several
    times faster than one per class.

    Args:
        queries: Floating point, shape (Q, D).
        gallery: Distances to the G gallery vectors.
        blocks: Blocks of :func:`query_blocks`.
        size: Largest number of queries per product.

    Yields:
        Rows of queries, int64, shape (b,); distances, float32, shape (b, G); the first position of
        their class in the gallery, and the position after its last.
    """
    pending: list[tuple[Tensor, int, int]] = []
    count = 0
    for block in blocks:
        if count and count + len(block[0]) > size:
            yield from _with_distances(queries, gallery, pending)
            pending, count = [], 0
        pending.append(block)
        count += len(block[0])
    if pending:
        yield from _with_distances(queries, gallery, pending)


def _with_distances(
    queries: Tensor, gallery: GalleryDistances, blocks: Sequence[tuple[Tensor, int, int]]
) -> Iterator[tuple[Tensor, Tensor, int, int]]:
    rows = torch.cat([block for block, _, _ in blocks])
    distances = gallery.to(queries[rows], slice(None))
    sizes = [len(block) for block, _, _ in blocks]
    for (block, begin, end), part in zip(blocks, distances.split(sizes), strict=True):
        yield block, part, begin, end


def query_count(gallery_size: int, device: torch.device = CPU) -> int:
    """Return the number of queries per block: some million distances, but not a few queries."""
    block = BLOCK
    if device.type == "cuda":
        block = max(BLOCK, min(LARGE_BLOCK, free_memory(device) // BYTES_PER_DISTANCE))
    return max(MIN_QUERIES, block // max(1, gallery_size))
