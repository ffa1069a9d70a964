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
    """A block's summed loss, its triplets, its active ones, and its pull (b, B).

    The pull of a pair is the loss's derivative by its distance, over the distance (twice the derivative, for squared
    distances): times the difference of the two points, it is the gradient by the first point.
    """

    loss: float
    triplets: int
    active: int
    pull: Tensor


class _Rule(NamedTuple):
    """What a triplet costs. margin: None for the soft one. squared: which distances are given."""

    margin: float | None
    squared: bool

    def pull(self, slopes: Tensor, distances: Tensor) -> Tensor:
        """Derivatives by some distances -> pulls, in place; 0 where two points coincide."""
        return slopes.mul_(2) if self.squared else slopes.div_(distances).nan_to_num_(0, 0, 0)


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
        raise ValueError(
            f"vectors {tuple(vectors.shape)}, labels {tuple(labels.shape)}; give (B, D) and (B,)"
        )
    if mining not in MININGS or distance not in DISTANCES:
        raise ValueError(
            f"mining {mining}, distance {distance}; give one of {MININGS} and one of {DISTANCES}"
        )
    counts: dict[str, Any] = {}
    wide = vectors if vectors.dtype == torch.float64 else vectors.float()
    ids = torch.arange(len(labels), device=labels.device) if ids is None else ids
    with torch.autocast(vectors.device.type, enabled=False):
        loss: Tensor = _Triplets.apply(
            wide, labels, ids, mining, margin, distance == "squared", counts
        )
    return TripletLoss(loss, counts["triplets"], counts["active"], counts["mean_distance"])


class _Triplets(torch.autograd.Function):
    """Loss forward with the gradient worked out on the way, since both need the same distances."""

    @staticmethod
    def forward(
        ctx: Any,
        vectors: Tensor,
        labels: Tensor,
        ids: Tensor,
        mining: str,
        margin: float | None,
        squared: bool,
        counts: dict[str, Any],
    ) -> Tensor:
        batch = len(vectors)
        # Distances don't change when all vectors move alike, but near a collapse their rounding error does.
        points = vectors - vectors.mean(0)
        left, right = squared_distance_factors(points)
        extended = right[
            :, :-1
        ]  # the points and a column of ones, which sums what it is multiplied with
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
            totals["distance"] += float(_wide(distances.sum(1)).sum())
            mined = _MINE[mining](
                distances, _pairs(table, family, ids, rows, draws), _Rule(margin, squared)
            )
            totals["loss"] += mined.loss
            totals["triplets"] += mined.triplets
            totals["active"] += mined.active
            if pull_sums is not None:
                pull_sums[rows].addmm_(mined.pull, extended)
                pull_sums.addmm_(mined.pull.T, extended[rows])
        kept = (
            totals["active"] if mining == "batch-all" and margin is not None else totals["triplets"]
        )
        counts.update(
            triplets=totals["triplets"],
            active=totals["active"],
            mean_distance=totals["distance"] / max(1, batch * (batch - 1)),
        )
        if pull_sums is not None:
            ctx.gradient = (pull_sums[:, -1:] * points - pull_sums[:, :-1]).div_(max(1, kept))
        return vectors.new_tensor(totals["loss"] / max(1, kept))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return upstream * ctx.gradient, None, None, None, None, None, None


def _families(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Each class's columns, int64 (C, W), padded with -1, and each row's class, int64 (B,)."""
    ordered, by_class = labels.sort(stable=True)
    _, number, sizes = torch.unique_consecutive(
        ordered, return_inverse=True, return_counts=True
    )  # each sorted row's class
    slot = torch.arange(len(labels), device=labels.device) - (sizes.cumsum(0) - sizes)[number]
    table = torch.full(
        (len(sizes), int(sizes.max()) if len(labels) else 0),
        -1,
        dtype=torch.int64,
        device=labels.device,
    )
    table[number, slot] = by_class
    return table, torch.empty_like(labels).scatter_(0, by_class, number)


def _pairs(table: Tensor, family: Tensor, ids: Tensor, rows: slice, draws: Tensor | None) -> _Pairs:
    members = table[family[rows]]  # (b, W)
    real = members >= 0
    members = torch.where(real, members, members[:, :1])
    positive = real & (ids[members] != ids[rows, None])
    return _Pairs(
        members,
        positive,
        len(ids) - real.sum(1, keepdim=True),
        None if draws is None else draws[rows],
    )


def _batch_all(distances: Tensor, pairs: _Pairs, rule: _Rule) -> _Mined:
    """Every triplet at once: sort each anchor's negatives, and one binary search a positive counts those closer than
    d(a,p) + margin. The summed hinge is linear in the distances, with those counts as coefficients.
    """
    to_family = distances.gather(1, pairs.family)  # (b, W)
    reach = (to_family + (rule.margin or 0.0)).masked_fill_(~pairs.positive, -math.inf)
    # In place, to the end of every row; finite, since it will be multiplied with 0.
    negatives = distances.scatter_(1, pairs.family, torch.finfo(distances.dtype).max)
    ascending, order = sort_rows(negatives)
    # Negatives closer than each positive's reach; with the soft margin, those no farther than the positive.
    closer = torch.searchsorted(ascending, reach, right=rule.margin is None)
    positives = pairs.positive.sum(1, keepdim=True)  # (b, 1)
    triplets, active = int((positives * pairs.negatives).sum()), int(closer.sum())
    if rule.margin is None:
        loss, slope_family, slope = _soft_batch_all(to_family, ascending, pairs)
    else:
        slope_family = closer.to(distances.dtype)
        # The negative of rank r is active for the positives that reach past it.
        ended = distances.new_zeros(len(distances), distances.shape[1] + 1)
        ended.scatter_add_(1, closer, pairs.positive.to(distances.dtype))
        slope = ended[:, :-1].cumsum(1).sub_(positives)  # (b, B) by rank
        loss = _inner(slope_family, to_family) + _inner(slope, ascending) + rule.margin * active
    pull = torch.empty_like(distances).scatter_(1, order, rule.pull(slope, ascending))
    return _Mined(
        loss,
        triplets,
        active,
        pull.scatter_add_(1, pairs.family, rule.pull(slope_family, to_family)),
    )


def _soft_batch_all(
    to_family: Tensor, to_negatives: Tensor, pairs: _Pairs
) -> tuple[float, Tensor, Tensor]:
    """The sum of log(1 + exp(d(a,p) - d(a,n))) over all triplets and its slopes, (b, W) and (b, B), without forming one.

    On the square of all distances that occur, softplus(x - y) is a polynomial in x and y to the dtype's rounding: its
    nearest singularity is pi away from the real axis, so Chebyshev coefficients fall geometrically (Trefethen,
    Approximation Theory and Approximation Practice, theorem 8.2). A sum of products of polynomials splits into sums over
    positives and sums over negatives.
    """
    dtype = to_family.dtype
    # The anchor's own class stands at the end of each row, sorted there by its fill value.
    negative = torch.arange(to_negatives.shape[1], device=to_negatives.device) < pairs.negatives
    to_negatives = torch.where(negative, to_negatives, to_family[:, :1])
    high = float(torch.maximum(to_family.max(), to_negatives.max()))
    half = max(high / 2, 1e-3)
    ratio = math.pi / half
    degree = math.ceil(
        -math.log(torch.finfo(dtype).eps / 8) / math.log(ratio + math.hypot(ratio, 1))
    )
    coefficients = _softplus_coefficients(half, degree).to(to_family)  # (m, m) positive x negative
    mine, theirs = to_family / half - 1, to_negatives / half - 1  # in [-1, 1]
    valid, positive = negative.to(dtype), pairs.positive.to(dtype)
    of_positives = torch.stack(
        [_rows_inner(positive, term) for term in _chebyshev(mine, degree)], 1
    )  # (b, m)
    of_negatives = torch.stack(
        [_rows_inner(valid, term) for term in _chebyshev(theirs, degree)], 1
    )  # (b, m)
    for_negatives, for_positives = (
        of_positives @ coefficients,
        of_negatives @ coefficients.T,
    )  # (b, m)
    slope_family = _derivative(mine, for_positives).mul_(positive / half)
    slope = _derivative(theirs, for_negatives).mul_(valid / half)
    return _inner(for_negatives, of_negatives), slope_family, slope


def _softplus_coefficients(half: float, degree: int) -> Tensor:
    """Chebyshev coefficients of softplus(x - y) for x and y in [0, 2 half], float64 (degree + 1, degree + 1)."""
    count = degree + 1
    angles = (np.arange(count) + 0.5) * np.pi / count
    nodes = half * np.cos(angles)
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


def _batch_hard(distances: Tensor, pairs: _Pairs, rule: _Rule) -> _Mined:
    """Each anchor's farthest positive against its nearest negative."""
    to_family = distances.gather(1, pairs.family)
    hardest, place = to_family.masked_fill(~pairs.positive, -math.inf).max(1, keepdim=True)
    negative = distances.scatter_(1, pairs.family, math.inf).min(1, keepdim=True)
    counted = pairs.positive.any(1, keepdim=True) & (pairs.negatives > 0)
    chosen = pairs.family.gather(1, place), negative.indices
    return _selected(distances.shape, (hardest, negative.values), chosen, counted, rule)


def _semi_hard(distances: Tensor, pairs: _Pairs, rule: _Rule) -> _Mined:
    """For each positive the nearest negative strictly farther, else the farthest."""
    to_family = distances.gather(1, pairs.family)
    ascending, order = sort_rows(distances.scatter_(1, pairs.family, math.inf))
    farther = torch.searchsorted(ascending, to_family, right=True)
    rank = torch.minimum(farther, (pairs.negatives - 1).clamp(min=0))
    return _selected(
        distances.shape,
        (to_family, ascending.gather(1, rank)),
        (pairs.family, order.gather(1, rank)),
        pairs.positive & (pairs.negatives > 0),
        rule,
    )


def _random(distances: Tensor, pairs: _Pairs, rule: _Rule) -> _Mined:
    """For each positive one negative, evenly among all."""
    assert pairs.draws is not None
    is_negative = torch.ones_like(distances, dtype=torch.int64).scatter_(1, pairs.family, 0)
    rank = (pairs.draws * pairs.negatives).long()  # (b, W)
    negative = torch.searchsorted(is_negative.cumsum(1), rank + 1).clamp_(
        max=distances.shape[1] - 1
    )
    chosen = pairs.family, negative
    return _selected(
        distances.shape,
        (distances.gather(1, chosen[0]), distances.gather(1, negative)),
        chosen,
        pairs.positive & (pairs.negatives > 0),
        rule,
    )


def _selected(
    shape: torch.Size,
    to: tuple[Tensor, Tensor],
    chosen: tuple[Tensor, Tensor],
    counted: Tensor,
    rule: _Rule,
) -> _Mined:
    """Loss of chosen triplets.

    to: distances to positives and to negatives, (b, k) each. chosen: int64 (b, k), their columns. counted: bool (b, k),
    which are triplets at all. shape: (b, B).
    """
    gap = torch.where(counted, to[0] - to[1], 0)
    if rule.margin is None:
        terms, weights, active = F.softplus(gap), torch.sigmoid(gap), (gap >= 0) & counted
    else:
        terms = gap + rule.margin
        active = (terms > 0) & counted
        weights = active.to(gap.dtype)
    weights = weights * counted
    pull = gap.new_zeros(shape).scatter_add_(1, chosen[0], rule.pull(weights.clone(), to[0]))
    pull.scatter_add_(1, chosen[1], rule.pull(weights.neg(), to[1]))
    return _Mined(
        float(_wide((terms.clamp(min=0) * counted).sum(1)).sum()),
        int(counted.sum()),
        int(active.sum()),
        pull,
    )


_MINE = {
    "batch-all": _batch_all,
    "batch-hard": _batch_hard,
    "semi-hard": _semi_hard,
    "random": _random,
}


def _rows_inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each row of a with that of b, (b,); one pass, where multiplying and summing take three."""
    return torch.bmm(a[:, None, :], b[:, :, None])[:, 0, 0]


def _inner(a: Tensor, b: Tensor) -> float:
    """Sum of the products; rows in the tensors' precision, their sum in float64."""
    return float(_wide(_rows_inner(a, b)).sum())


def _wide(values: Tensor) -> Tensor:
    """float64, for long sums; on the CPU, since not every device has it."""
    return values.cpu().double()
