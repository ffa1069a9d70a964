"""Triplet loss over a batch: distances, mining and hinge together, so that the margin exists once.

The loss is worked through in blocks of anchors. For each block, a mining function turns the rows of the distance
matrix into the loss and its derivative by every distance; the vectors' gradient then takes two matrix products.
No B x B matrix outlives its block, and nothing is built a triplet at a time.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stages.distance import argsort_rows, squared_distances

BLOCK = 2**20  # distances handled at once: a few MB, which stays in the processor's cache


@dataclass(frozen=True, eq=False)
class TripletLoss:
    """What `triplet_loss` returns.

    loss: scalar, with the graph. triplets: how many the mining mode stands for. active: those with a loss above zero.
    mean_distance: over all ordered pairs of different images in the batch.
    """

    loss: Tensor
    triplets: int
    active: int
    mean_distance: float

    @property
    def active_share(self) -> float:
        return self.active / self.triplets if self.triplets else 0.0


class _Pairs(NamedTuple):
    """Which images of the batch are positives and negatives of a block's anchors; b anchors in a batch of B.

    positives: int64 (b, K), their columns, padded to the largest class with zeros. present: bool (b, K), False
    in the padding. negative: bool (b, B).
    """

    positives: Tensor
    present: Tensor
    negative: Tensor


class _Mined(NamedTuple):
    """A block's summed loss, its triplets, its active ones, and the loss's derivative by each distance (b, B)."""

    loss: float
    triplets: int
    active: int
    slope: Tensor


def triplet_loss(vectors: Tensor, labels: Tensor, *, margin: float, ids: Tensor | None = None) -> TripletLoss:
    """Batch-all triplet loss: the mean of max(0, d(a,p) - d(a,n) + margin) over the active triplets.

    Exact over all triplets of the batch, in O(B^2 log B) time and O(B) memory beside the vectors, for any class sizes.
    Hermans et al. 2017 (arXiv 1703.07737, equation 6), averaged over the terms above zero ("batch all, nonzero").

    vectors: floating point (B, D), usually of unit length; half precision is widened to float32.
    labels: int64 (B,). margin: in the distance's unit (Euclidean, [0, 2] between unit vectors).
    ids: int64 (B,), which image each row shows. Two rows of one image (a small class drawn twice) are neither
    positive nor negative to each other. None: every row is an image of its own.

    A batch without a positive or without a negative gives loss 0 that keeps the graph, with `triplets` 0.
    At distance zero, where the Euclidean distance has no derivative, the gradient is 0.
    """
    if vectors.ndim != 2 or labels.shape != vectors.shape[:1]:
        raise ValueError(f"vectors {tuple(vectors.shape)}, labels {tuple(labels.shape)}; give (B, D) and (B,)")
    ids = torch.arange(len(labels), device=labels.device) if ids is None else ids
    counts: dict[str, Any] = {}
    wide = vectors if vectors.dtype == torch.float64 else vectors.float()
    loss: Tensor = _Triplets.apply(wide, labels, ids, margin, counts)
    return TripletLoss(loss, counts["triplets"], counts["active"], counts["mean_distance"])


class _Triplets(torch.autograd.Function):
    """Loss forward with the gradient worked out on the way, since both need the same distances."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, labels: Tensor, ids: Tensor, margin: float, counts: dict[str, Any]) -> Tensor:
        batch = len(vectors)
        # Distances don't change when all vectors move alike, but near a collapse their rounding error does.
        points = vectors - vectors.mean(0)
        gradient = torch.zeros_like(points) if ctx.needs_input_grad[0] else None
        loss, triplets, active, distance = 0.0, 0, 0, 0.0
        for start in range(0, batch, max(1, BLOCK // max(batch, 1))):
            rows = slice(start, start + max(1, BLOCK // batch))
            distances = squared_distances(points[rows], points).sqrt_()  # (b, B)
            mined = _batch_all(distances, _pairs(labels, ids, rows), margin)
            loss, triplets, active = loss + mined.loss, triplets + mined.triplets, active + mined.active
            distance += float(distances.sum(dtype=torch.float64))
            if gradient is not None:
                # d(distance)/d(anchor) is the unit vector between the two points.
                pull = mined.slope.div_(distances).masked_fill_(distances == 0, 0)  # (b, B)
                gradient[rows] += pull.sum(1, keepdim=True) * points[rows] - pull @ points
                gradient += pull.sum(0)[:, None] * points - pull.T @ points[rows]
        counts.update(triplets=triplets, active=active, mean_distance=distance / max(1, batch * (batch - 1)))
        ctx.gradient = None if gradient is None else gradient.div_(max(1, active))
        return vectors.new_tensor(loss / max(1, active))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return upstream * ctx.gradient, None, None, None, None


def _pairs(labels: Tensor, ids: Tensor, rows: slice) -> _Pairs:
    same_label = labels[rows, None] == labels[None, :]  # (b, B)
    positive = same_label & (ids[rows, None] != ids[None, :])
    sizes = positive.sum(1)  # (b,)
    present = torch.arange(int(sizes.max()), device=labels.device) < sizes[:, None]  # (b, K)
    positives = torch.zeros(present.shape, dtype=torch.int64, device=labels.device)
    positives[present] = positive.nonzero()[:, 1]  # both run through the rows in order
    return _Pairs(positives, present, ~same_label)


def _batch_all(distances: Tensor, pairs: _Pairs, margin: float) -> _Mined:
    """Every triplet at once: sort each anchor's negatives, and one binary search a positive counts those closer than
    d(a,p) + margin. The summed hinge is linear in the distances, with those counts as coefficients.
    """
    negatives = distances.masked_fill(~pairs.negative, float("inf"))
    order = argsort_rows(negatives)
    reach = (distances.gather(1, pairs.positives) + margin).masked_fill_(~pairs.present, -float("inf"))  # (b, K)
    closer = torch.searchsorted(negatives.gather(1, order), reach)  # (b, K): active negatives of each positive
    # The negative of rank r is active for the positives that reach past it.
    ended = distances.new_zeros(len(distances), distances.shape[1] + 1)
    ended.scatter_add_(1, closer, pairs.present.to(distances.dtype))
    reaching = pairs.present.sum(1, keepdim=True) - ended[:, :-1].cumsum(1)  # (b, B) by rank
    slope = torch.zeros_like(distances).scatter_(1, order, -reaching)
    slope.scatter_add_(1, pairs.positives, closer.to(distances.dtype).masked_fill_(~pairs.present, 0))
    active = int(closer.sum())
    triplets = int((pairs.present.sum(1) * pairs.negative.sum(1)).sum())
    loss = float((slope * distances).sum(dtype=torch.float64)) + margin * active
    return _Mined(loss, triplets, active, slope)
