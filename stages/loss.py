"""Triplet loss over a batch: distances, mining and hinge together, so that the margin exists once.

The loss is worked through in blocks of anchors. For each block, a mining function turns the rows of the distance
matrix into the loss and its derivative by every distance; the vectors' gradient then takes two matrix products.
No B x B matrix outlives its block, and nothing is built a triplet at a time.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.distance import sort_rows, squared_distance_factors
from stages.settings import DISTANCES, MININGS

BLOCK = 2**20  # distances handled at once: a few MB, which stays in the processor's cache


class TripletLoss(NamedTuple):
    """What `triplet_loss` returns.

    loss: scalar, with the graph. triplets: how many the mining mode stands for. active: those with a loss above zero
    (with the soft margin, where no loss is zero: those in the wrong order, d(a,p) >= d(a,n)).
    mean_distance: over all ordered pairs of different rows, in the unit of `distance`.
    """

    loss: Tensor
    triplets: int
    active: int
    mean_distance: float

    @property
    def active_share(self) -> float:
        return self.active / self.triplets if self.triplets else 0.0


class _Pairs(NamedTuple):
    """Who belongs to whom for a block of b anchors in a batch of B; W is the size of the largest class.

    family: int64 (b, W), the columns of the anchor's class, itself included, padded with its first.
    positive: bool (b, W), which of them are positives. negatives: int64 (b, 1), how many columns are.
    draws: float (b, W) in [0, 1), chance for the mining that wants it.
    """

    family: Tensor
    positive: Tensor
    negatives: Tensor
    draws: Tensor | None


class _Mined(NamedTuple):
    """A block's summed loss, its triplets, its active ones, and the summed loss's derivative by each distance (b, B)."""

    loss: float
    triplets: int
    active: int
    slope: Tensor


def triplet_loss(
    vectors: Tensor,
    labels: Tensor,
    *,
    mining: str = "batch-all",
    margin: float | None = 0.2,
    distance: str = "euclidean",
    ids: Tensor | None = None,
) -> TripletLoss:
    """Triplet loss of a batch: max(0, d(a,p) - d(a,n) + margin) over the triplets that `mining` picks.

    vectors: floating point (B, D), usually of unit length; half precision is widened to float32.
    labels: int64 (B,).
    mining: `batch-all`, every triplet, averaged over those with a loss above zero (Hermans et al. 2017, arXiv
        1703.07737, equation 6; all triplets with the soft margin). `batch-hard`, each anchor's farthest positive and
        nearest negative, averaged over anchors (equation 5). `semi-hard`, for each anchor and positive the nearest
        negative strictly farther than the positive, or where there is none the farthest negative, averaged over
        these pairs (FaceNet, arXiv 1503.03832, section 3.2). `random`, for each anchor and positive one negative,
        evenly, by torch's global generator of the CPU; averaged over these pairs.
    margin: in the distance's unit; None for the soft margin, log(1 + exp(d(a,p) - d(a,n))) (arXiv 1703.07737, section 2).
    distance: `euclidean`, in [0, 2] between unit vectors, or `squared`, in [0, 4].
    ids: int64 (B,), which image each row shows. Two rows of one image (a small class drawn twice) are neither
        positive nor negative to each other. None: every row is an image of its own.

    Exact, in O(B^2 log B) time (O(B^2) for `batch-hard` and `random`) and O(B) memory beside the vectors, for any class
    sizes. A batch without a positive or without a negative gives loss 0 that keeps the graph, with
    `triplets` 0. Where two points coincide the Euclidean distance has no derivative; its gradient is 0 there.
    Among equally far candidates the gradient goes to one of them.
    Raises ValueError for shapes or names that don't fit.
    """
    if vectors.ndim != 2 or labels.shape != vectors.shape[:1]:
        raise ValueError(f"vectors {tuple(vectors.shape)}, labels {tuple(labels.shape)}; give (B, D) and (B,)")
    if mining not in MININGS or distance not in DISTANCES:
        raise ValueError(f"mining {mining}, distance {distance}; give one of {MININGS} and one of {DISTANCES}")
    counts: dict[str, Any] = {}
    wide = vectors if vectors.dtype == torch.float64 else vectors.float()
    ids = torch.arange(len(labels), device=labels.device) if ids is None else ids
    with torch.autocast(vectors.device.type, enabled=False):
        loss: Tensor = _Triplets.apply(wide, labels, ids, mining, margin, distance == "squared", counts)
    return TripletLoss(loss, counts["triplets"], counts["active"], counts["mean_distance"])


class _Triplets(torch.autograd.Function):
    """Loss forward with the gradient worked out on the way, since both need the same distances."""

    @staticmethod
    def forward(
        ctx: Any, vectors: Tensor, labels: Tensor, ids: Tensor, mining: str, margin: float | None, squared: bool, counts: dict[str, Any]
    ) -> Tensor:
        batch = len(vectors)
        # Distances don't change when all vectors move alike, but near a collapse their rounding error does.
        points = vectors - vectors.mean(0)
        left, right = squared_distance_factors(points)
        extended = right[:, :-1]  # the points and a column of ones, which sums what it is multiplied with
        pull_sums = torch.zeros_like(extended) if ctx.needs_input_grad[0] else None
        table, family = _families(labels)
        draws = torch.rand(batch, table.shape[1]).to(labels.device) if mining == "random" else None
        totals = {"loss": 0.0, "triplets": 0, "active": 0, "distance": 0.0}
        step = max(1, BLOCK // max(1, batch))
        for start in range(0, batch, step):
            rows = slice(start, start + step)
            distances = (left[rows] @ right.T).clamp_(min=0)  # (b, B), squared
            if not squared:
                distances.sqrt_()
            mined = _MINE[mining](distances, _pairs(table, family, labels, ids, rows, draws), margin)
            totals["loss"] += mined.loss
            totals["triplets"] += mined.triplets
            totals["active"] += mined.active
            totals["distance"] += float(_wide(distances.sum(1)).sum())
            if pull_sums is not None:
                # By the anchor, d^2 changes with 2 (anchor - other), and d with the unit vector between them.
                pull = mined.slope.mul_(2) if squared else mined.slope.div_(distances).nan_to_num_(0, 0, 0)  # (b, B)
                pull_sums[rows] += pull @ extended
                pull_sums += pull.T @ extended[rows]
        kept = totals["active"] if mining == "batch-all" and margin is not None else totals["triplets"]
        counts.update(triplets=totals["triplets"], active=totals["active"], mean_distance=totals["distance"] / max(1, batch * (batch - 1)))
        if pull_sums is not None:
            ctx.gradient = (pull_sums[:, -1:] * points - pull_sums[:, :-1]).div_(max(1, kept))
        return vectors.new_tensor(totals["loss"] / max(1, kept))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return upstream * ctx.gradient, None, None, None, None, None, None


def _families(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Each class's columns, int64 (C, W), padded with -1, and each row's class, int64 (B,)."""
    names, family, sizes = labels.unique(return_inverse=True, return_counts=True)
    by_class = family.argsort(stable=True)
    first = sizes.cumsum(0) - sizes
    slot = torch.arange(len(labels), device=labels.device) - first[family[by_class]]
    table = torch.full((len(names), int(sizes.max()) if len(labels) else 0), -1, dtype=torch.int64, device=labels.device)
    table[family[by_class], slot] = by_class
    return table, family


def _pairs(table: Tensor, family: Tensor, labels: Tensor, ids: Tensor, rows: slice, draws: Tensor | None) -> _Pairs:
    members = table[family[rows]]  # (b, W)
    real = members >= 0
    members = torch.where(real, members, members[:, :1])
    positive = real & (ids[members] != ids[rows, None])
    return _Pairs(members, positive, len(labels) - real.sum(1, keepdim=True), None if draws is None else draws[rows])


def _without_family(distances: Tensor, pairs: _Pairs, fill: float) -> Tensor:
    """The distances with those to the anchor's own class replaced, (b, B)."""
    return distances.clone().scatter_(1, pairs.family, fill)


def _batch_all(distances: Tensor, pairs: _Pairs, margin: float | None) -> _Mined:
    """Every triplet at once: sort each anchor's negatives, and one binary search a positive counts those closer than
    d(a,p) + margin. The summed hinge is linear in the distances, with those counts as coefficients.
    """
    negatives = _without_family(distances, pairs, math.inf)
    ascending, order = sort_rows(negatives)
    reach = distances.gather(1, pairs.family).add_(margin or 0.0).masked_fill_(~pairs.positive, -math.inf)  # (b, W)
    # Negatives closer than each positive's reach; with the soft margin, those no farther than the positive.
    closer = torch.searchsorted(ascending, reach, right=margin is None)
    positives = pairs.positive.sum(1, keepdim=True)  # (b, 1)
    triplets, active = int((positives * pairs.negatives).sum()), int(closer.sum())
    if margin is None:
        loss, slope = _soft_batch_all(distances, pairs, negatives)
        return _Mined(loss, triplets, active, slope)
    # The negative of rank r is active for the positives that reach past it.
    ended = distances.new_zeros(len(distances), distances.shape[1] + 1)
    ended.scatter_add_(1, closer, pairs.positive.to(distances.dtype))
    reaching = ended[:, :-1].cumsum(1).sub_(positives)  # (b, B) by rank, negative
    slope = torch.empty_like(distances).scatter_(1, order, reaching)
    slope.scatter_add_(1, pairs.family, closer.to(distances.dtype))
    return _Mined(_inner(slope, distances) + margin * active, triplets, active, slope)


def _soft_batch_all(distances: Tensor, pairs: _Pairs, negatives: Tensor) -> tuple[float, Tensor]:
    """The sum of log(1 + exp(d(a,p) - d(a,n))) over all triplets and its slope, without forming one.

    On the square of all distances that occur, softplus(x - y) is a polynomial in x and y to the dtype's rounding: its
    nearest singularity is pi away from the real axis, so Chebyshev coefficients fall geometrically (Trefethen,
    Approximation Theory and Approximation Practice, theorem 8.2). A sum of products of polynomials splits into sums over
    positives and sums over negatives.
    """
    low, high = float(distances.min()), float(distances.max())
    half = max((high - low) / 2, 1e-3)
    ratio = math.pi / half
    degree = math.ceil(-math.log(torch.finfo(distances.dtype).eps / 8) / math.log(ratio + math.hypot(ratio, 1)))
    coefficients = _softplus_coefficients(low, half, degree).to(distances)  # (m, m) positive x negative
    scaled = (distances - (low + half)).div_(half)  # (b, B) in [-1, 1]
    mine = scaled.gather(1, pairs.family)  # (b, W)
    valid, positive = torch.isfinite(negatives).to(distances.dtype), pairs.positive.to(distances.dtype)
    of_positives = torch.stack([(positive * term).sum(1) for term in _chebyshev(mine, degree)], 1)  # (b, m)
    of_negatives = torch.stack([_rows_inner(valid, term) for term in _chebyshev(scaled, degree)], 1)  # (b, m)
    for_negatives, for_positives = of_positives @ coefficients, of_negatives @ coefficients.T  # (b, m)
    slope = _derivative(scaled, for_negatives).mul_(valid)
    slope.scatter_add_(1, pairs.family, _derivative(mine, for_positives) * positive)
    return float((_wide(for_negatives) * _wide(of_negatives)).sum()), slope.div_(half)


def _softplus_coefficients(low: float, half: float, degree: int) -> Tensor:
    """Chebyshev coefficients of softplus(x - y) for x, y in low + half (1 + [-1, 1]), float64 (degree + 1, degree + 1)."""
    count = degree + 1
    angles = (np.arange(count) + 0.5) * np.pi / count
    nodes = low + half * (1 + np.cos(angles))
    values = np.logaddexp(0, nodes[:, None] - nodes[None, :])
    transform = np.cos(np.arange(count)[:, None] * angles) * (2 / count)  # (degree, node)
    transform[0] /= 2
    return torch.from_numpy(transform @ values @ transform.T)


def _chebyshev(values: Tensor, degree: int) -> Any:
    """T_0 to T_degree of values in [-1, 1], one after the other."""
    before, term = values, torch.ones_like(values)  # T_-1 = T_1
    for _ in range(degree + 1):
        yield term
        before, term = term, 2 * values * term - before


def _derivative(values: Tensor, coefficients: Tensor) -> Tensor:
    """The derivative of each row's Chebyshev series at its values: sum of k c_k U_{k-1}. values: (b, n). coefficients: (b, m)."""
    before, term = torch.zeros_like(values), torch.ones_like(values)  # U_-1, U_0
    total = torch.zeros_like(values)
    for k in range(1, coefficients.shape[1]):
        total.addcmul_(term, k * coefficients[:, k : k + 1])
        before, term = term, 2 * values * term - before
    return total


def _batch_hard(distances: Tensor, pairs: _Pairs, margin: float | None) -> _Mined:
    """Each anchor's farthest positive against its nearest negative."""
    to_family = distances.gather(1, pairs.family).masked_fill_(~pairs.positive, -math.inf)
    positive = pairs.family.gather(1, to_family.argmax(1, keepdim=True))
    negative = _without_family(distances, pairs, math.inf).argmin(1, keepdim=True)
    counted = pairs.positive.any(1, keepdim=True) & (pairs.negatives > 0)
    return _selected(distances, positive, negative, counted, margin)


def _semi_hard(distances: Tensor, pairs: _Pairs, margin: float | None) -> _Mined:
    """For each positive the nearest negative strictly farther, else the farthest."""
    negatives = _without_family(distances, pairs, math.inf)
    ascending, order = sort_rows(negatives)
    farther = torch.searchsorted(ascending, distances.gather(1, pairs.family), right=True)
    last = (pairs.negatives - 1).clamp(min=0)
    negative = order.gather(1, torch.minimum(farther, last))
    return _selected(distances, pairs.family, negative, pairs.positive & (pairs.negatives > 0), margin)


def _random(distances: Tensor, pairs: _Pairs, margin: float | None) -> _Mined:
    """For each positive one negative, evenly among all."""
    assert pairs.draws is not None
    is_negative = torch.ones_like(distances, dtype=torch.int64).scatter_(1, pairs.family, 0)
    rank = (pairs.draws * pairs.negatives).long().clamp_(max=distances.shape[1] - 1)  # (b, W)
    negative = torch.searchsorted(is_negative.cumsum(1), rank + 1).clamp_(max=distances.shape[1] - 1)
    return _selected(distances, pairs.family, negative, pairs.positive & (pairs.negatives > 0), margin)


def _selected(distances: Tensor, positive: Tensor, negative: Tensor, counted: Tensor, margin: float | None) -> _Mined:
    """Loss of the chosen triplets. positive, negative: int64 (b, k), columns. counted: bool (b, k), which are triplets."""
    gap = distances.gather(1, positive) - distances.gather(1, negative)
    if margin is None:
        terms, weights, active = F.softplus(gap), torch.sigmoid(gap), gap >= 0
    else:
        terms = gap + margin
        active = terms > 0
        weights = active.to(gap.dtype)
    weights = weights * (counted & (weights > 0))
    slope = torch.zeros_like(distances).scatter_add_(1, positive, weights).scatter_add_(1, negative, -weights)
    loss = float(_wide(terms.clamp(min=0) * counted).sum())
    return _Mined(loss, int(counted.sum()), int((active & counted).sum()), slope)


_MINE = {"batch-all": _batch_all, "batch-hard": _batch_hard, "semi-hard": _semi_hard, "random": _random}


def _rows_inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each row of a with that of b, (b,)."""
    return torch.linalg.vecdot(a, b)


def _inner(a: Tensor, b: Tensor) -> float:
    """Sum of the products; rows in the tensors' precision, their sum in float64."""
    return float(_wide(_rows_inner(a, b)).sum())


def _wide(values: Tensor) -> Tensor:
    """float64, for long sums; on the CPU, since not every device has it."""
    return values.cpu().double()
