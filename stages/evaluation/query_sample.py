"""A random sample of the test images, as queries of all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.distance import CPU
from stages.evaluation.triplets_and_rankings import SplitMeasures, measure_gallery, measure_split
from stages.records import Embeddings


def draw_queries(count: int, most: int, *, queries: Tensor | None = None) -> Tensor:
    """Draw test images at random, always the same ones of the same images.

    Args:
        count: Number of test images, M.
        most: Largest number of images to draw.
        queries: True for queries and False for gallery images, bool, shape (M,). Only queries are
            drawn. None if every image is both.

    Returns:
        Positions in ascending order, int64, shape (N,).

    Example:
        >>> len(draw_queries(100, 10)), draw_queries(3, 10).tolist()
        (10, [0, 1, 2])
    """
    rows = torch.arange(count) if queries is None else queries.nonzero().flatten()
    if len(rows) <= most:
        return rows
    generator = torch.Generator().manual_seed(0)
    drawn: Tensor = rows[torch.randperm(len(rows), generator=generator)[:most]].sort().values
    return drawn


@dataclass(frozen=True, eq=False)
class QuerySample:
    """All M test images, and the N of them that are evaluated.

    Attributes:
        images: Embeddings of the M images.
        rows: Positions of the N images, int64, ascending, shape (N,).
        queries: True for queries and False for gallery images, bool, shape (M,). None if every
            image is both.
        leaked: Positions among the M images of those that also occur in training or validation.
    """

    images: Embeddings
    rows: Tensor
    queries: Tensor | None = None
    leaked: Sequence[int] = ()

    def measure(self, device: torch.device = CPU) -> SplitMeasures:
        """Compute the measures of the N images against the others of all M, or the gallery.

        Args:
            device: Device to compute on.
        """
        vectors, labels = self.images.vectors, self.images.labels
        if self.queries is None:
            return measure_split(vectors, labels, queries=self.rows, device=device)
        gallery = ~self.queries
        queries, query_labels = vectors[self.rows], labels[self.rows]
        return measure_gallery(
            queries, query_labels, vectors[gallery], labels[gallery], device=device
        )

    def without_leaked(self) -> "QuerySample":
        """Return the sample without the images that also occur in training or validation."""
        kept = np.setdiff1d(np.arange(len(self.images)), np.asarray(self.leaked, np.int64))
        drawn = np.flatnonzero(np.isin(kept, self.rows.numpy()))
        images = self.images
        return QuerySample(
            Embeddings(images.vectors[kept], images.labels[kept], images.classes),
            torch.from_numpy(drawn),
            None if self.queries is None else self.queries[kept],
        )

    def describe(self, definitions: Mapping[str, str]) -> dict[str, str]:
        """Add the size of the sample to the definitions of metrics."""
        text = f"; {len(self.rows):,} of {len(self.images):,} test images, drawn at random"
        return {name: definition + text for name, definition in definitions.items()}
