"""Triplet loss with online mining over a batch.

:func:`triplet_loss` computes loss and gradient together, in blocks of anchors. Each block takes
some rows of the distance matrix, sums the cost of its triplets, and differentiates that sum with
respect to every distance. Two matrix products then give the gradient of the vectors. No B x B
matrix outlives its block. In the loss, the margin is added by :class:`TripletCost` alone.

Batch-all without enumerating triplets
    A triplet (a, p, n) costs max(0, d(a,p) - d(a,n) + margin), so it is active if d(a,n) is below
    the threshold d(a,p) + margin. Once an anchor's negatives are sorted, one binary search per
    positive counts its active triplets. Take an anchor with positives at distances 1, 4 and 5,
    negatives at 3, 6 and 9, and margin 3. The costs of its 3 x 3 triplets are:

        ==================  ======  ======  ======  =========  ======
        positive, negative  n at 3  n at 6  n at 9  threshold  active
        ==================  ======  ======  ======  =========  ======
        p at 1                   1       0       0          4       1
        p at 4                   4       1       0          7       2
        p at 5                   5       2       0          8       2
        active                   3       2       0                  5
        ==================  ======  ======  ======  =========  ======

    The sum of the costs is linear in the distances. Each positive adds its distance once per active
    triplet of its row, each negative subtracts its distance once per active triplet of its column,
    and each active triplet adds the margin:

        (1*1 + 2*4 + 2*5) - (3*3 + 2*6 + 0*9) + 5*3 = 19 - 21 + 15 = 13.

    The counts are therefore also the derivatives: 1, 2, 2 and -3, -2, 0. The counts per column
    follow from the counts per row: the negative of rank r is active for every positive whose count
    exceeds r. The soft margin has no inactive triplets; see :mod:`stages.embedding.soft_margin`.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.distance import sort_rows, squared_distance_factors
from stages.embedding.mining import (
    AnchorBlock,
    SelectedTriplets,
    anchor_block,
    batch_hard,
    columns_by_class,
    random_negatives,
    semi_hard,
)
from stages.embedding.soft_margin import soft_margin_sum
from stages.embedding.summation import float64_sum, row_dots
from stages.gpu import copy_to
from stages.settings import DISTANCES, MININGS, EmbedSettings

BLOCK = 2**20  # distances per block on a CPU: a few MB, which fit into the processor's cache
LARGE_BLOCK = 2**24  # on other devices: about 1 GB of memory; one block for 4,096 vectors
SELECT = {"batch-hard": batch_hard, "semi-hard": semi_hard, "random": random_negatives}


class TripletLoss(NamedTuple):
    """Result of :func:`triplet_loss`.

    All fields are scalars. To read their values makes the program wait for the device.

    Attributes:
        loss: Mean loss, with gradient.
        triplets: Number of triplets that the mining mode selects, int64.
        active: Number of triplets with a loss above zero, int64. With the soft margin, where every
            loss is above zero: number of triplets in the wrong order, d(a,p) >= d(a,n).
        mean_distance: Mean distance over all ordered pairs of different rows, in the unit of
            ``distance``, float64.
    """

    loss: Tensor
    triplets: Tensor
    active: Tensor
    mean_distance: Tensor

    @property
    def active_share(self) -> Tensor:
        """Share of active triplets, in [0, 1]; 0 without triplets."""
        return float64_sum(self.active) / float64_sum(self.triplets).clamp(min=1)


def triplet_loss(
    vectors: Tensor,
    labels: Tensor,
    *,
    mining: str = "batch-all",
    margin: float | None = EmbedSettings.margin,
    distance: str = "euclidean",
    ids: Tensor | None = None,
) -> TripletLoss:
    """Compute the triplet loss max(0, d(a,p) - d(a,n) + margin) over the mined triplets of a batch.

    The mining modes are:

    - ``batch-all``: every triplet, averaged over those with a loss above zero (Hermans
      et al. 2017, equation 6); averaged over all triplets with the soft margin.
    - ``batch-hard``: the farthest positive and the nearest negative of each anchor, averaged over
      anchors (Hermans et al. 2017, equation 5).
    - ``semi-hard``: for each anchor and positive, the nearest negative that is strictly farther
      than the positive, or the farthest negative if there is none, averaged over these pairs
      (Schroff et al. 2015, section 3.2).
    - ``random``: for each anchor and positive, one negative drawn uniformly from torch's global CPU
      generator, averaged over these pairs.

    The result is exact for any class sizes. It takes O(B^2 log B) time (O(B^2) for ``batch-hard``
    and ``random``) and O(B) memory in addition to the vectors. Without any triplet the loss is 0
    with a zero gradient. The Euclidean distance has no derivative where two points coincide; its
    gradient is 0 there. Among equally distant candidates, one receives the gradient.

    Args:
        vectors: Embeddings, floating point, shape (B, D), usually of length 1. Half precision is
            converted to float32.
        labels: Class indices, int64, shape (B,), best on the CPU, where they are needed.
        mining: ``batch-all``, ``batch-hard``, ``semi-hard`` or ``random``.
        margin: Margin, in the unit of ``distance``. ``None`` selects the soft margin
            log(1 + exp(d(a,p) - d(a,n))), Hermans et al. 2017, section 2.
        distance: ``euclidean``, in [0, 2] between unit vectors, or ``squared``, in [0, 4].
        ids: Image shown by each row, int64, shape (B,). Two rows of one image (an image of a small
            class that is repeated) are neither positive nor negative to each other. ``None`` means
            that all rows show different images.

    Returns:
        The loss, with counts of its triplets.

    Raises:
        ValueError: If the shapes do not match, or ``mining`` or ``distance`` is unknown.

    References:
        Hermans et al., In Defense of the Triplet Loss for Person Re-Identification, 2017,
        arXiv 1703.07737.

        Schroff et al., FaceNet, 2015, arXiv 1503.03832.

    Example:
        >>> vectors = torch.tensor([[0.0], [1.0], [3.0]], requires_grad=True)
        >>> result = triplet_loss(vectors, torch.tensor([0, 0, 1]), margin=1.5)
        >>> round(result.loss.item(), 4), result.triplets.item(), result.active.item()
        (0.5, 2, 1)
        >>> result.loss.backward()
        >>> vectors.grad.round(decimals=4).flatten().tolist()
        [-1.0, 2.0, -1.0]
    """
    if vectors.ndim != 2 or labels.shape != vectors.shape[:1]:
        raise ValueError(
            f"vectors {tuple(vectors.shape)}, labels {tuple(labels.shape)}; give (B, D) and (B,)"
        )
    if mining not in MININGS or distance not in DISTANCES:
        raise ValueError(
            f"mining {mining}, distance {distance}; give one of {MININGS} and one of {DISTANCES}"
        )
    points = vectors if vectors.dtype == torch.float64 else vectors.float()
    ids = torch.arange(len(labels)) if ids is None else ids
    cost = TripletCost(margin, squared=distance == "squared")
    with torch.autocast(vectors.device.type, enabled=False):
        result, gradient = _loss_and_gradient(
            points.detach(), labels, ids, mining, cost, with_gradient=points.requires_grad
        )
        return result._replace(loss=_WithGradient.apply(points, result.loss, gradient))


class TripletCost(NamedTuple):
    """Cost of a triplet, and its derivatives. The loss adds its margin here alone.

    With gap = d(a,p) - d(a,n), the cost is max(0, gap + margin), or softplus(gap) with the soft
    margin.

    Attributes:
        margin: Margin, in the unit of the distances; ``None`` for the soft margin.
        squared: True if distances are squared Euclidean distances.
    """

    margin: float | None
    squared: bool

    def evaluate(self, gap: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the costs, their derivatives by ``gap``, and which triplets are active."""
        if self.margin is None:
            return F.softplus(gap), torch.sigmoid(gap), gap >= 0
        cost = (gap + self.margin).clamp(min=0)
        active = cost > 0
        return cost, active.to(gap.dtype), active

    def threshold(self, to_positive: Tensor) -> Tensor:
        """Return the distances below which a negative makes a triplet active."""
        return to_positive + (self.margin or 0.0)

    def sum_of_active(self, gap_sum: Tensor, active: Tensor) -> Tensor:
        """Return the summed hinge of active triplets, given the sum of their gaps."""
        return gap_sum + (self.margin or 0.0) * float64_sum(active)

    def pair_weight(self, d_loss_d_distance: Tensor, distances: Tensor) -> Tensor:
        """Convert derivatives to pair weights, in place.

        The pair weight w of two points x and y is such that w (x - y) is the gradient by x. For
        squared distances it is twice the derivative. For Euclidean distances it is the derivative
        divided by the distance, or 0 where the points coincide.
        """
        if self.squared:
            return d_loss_d_distance.mul_(2)
        return d_loss_d_distance.div_(distances).nan_to_num_(0, 0, 0)


class TripletSums(NamedTuple):
    """Sums over the triplets of a block of b anchors.

    Attributes:
        loss: Summed cost, float64, a scalar.
        triplets: Number of triplets, int64, a scalar.
        active: Number of active triplets, int64, a scalar.
        pair_weight: Weights of anchor and row, see :meth:`TripletCost.pair_weight`, shape (b, B).
    """

    loss: Tensor
    triplets: Tensor
    active: Tensor
    pair_weight: Tensor


class _WithGradient(torch.autograd.Function):
    """Loss whose gradient has already been computed."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, loss: Tensor, gradient: Tensor | None) -> Tensor:
        ctx.gradient = gradient
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        return upstream * ctx.gradient, None, None


def _loss_and_gradient(
    vectors: Tensor,
    labels: Tensor,
    ids: Tensor,
    mining: str,
    cost: TripletCost,
    *,
    with_gradient: bool,
) -> tuple[TripletLoss, Tensor | None]:
    """Return the loss, detached, and its gradient by the vectors, shape (B, D), or None."""
    batch = len(vectors)
    # Distances do not depend on the origin, but their rounding errors grow with the distance to it.
    points = vectors - vectors.mean(0)
    left, right = squared_distance_factors(points)
    points_and_ones = right[:, :-1]  # (B, D + 1)
    weighted_sums = torch.zeros_like(points_and_ones)
    device = vectors.device
    tables = columns_by_class(labels.cpu())
    columns, class_of_row = (copy_to(table, device) for table in tables)
    ids = copy_to(ids, device)
    draws = None
    if mining == "random":
        draws = copy_to(torch.rand(batch, columns.shape[1]), device)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    loss, distance_sum, triplets, active = float64_sum(zero), float64_sum(zero), zero, zero
    step = max(1, (BLOCK if device.type == "cpu" else LARGE_BLOCK) // max(1, batch))
    for start in range(0, batch, step):
        rows = slice(start, start + step)
        distances = (left[rows] @ right.T).clamp_(min=0)  # (b, B), squared
        if not cost.squared:
            distances.sqrt_()
        distance_sum = distance_sum + float64_sum(distances.sum(1))
        block = anchor_block(columns, class_of_row, ids, rows, draws)
        if mining == "batch-all":
            sums = _batch_all(distances, block, cost)
        else:
            sums = _sum_selected(SELECT[mining](distances, block), cost, distances.shape)
        loss = loss + sums.loss
        triplets = triplets + sums.triplets
        active = active + sums.active
        if with_gradient:  # a pair weight acts on the anchor and on the other point
            weighted_sums[rows].addmm_(sums.pair_weight, points_and_ones)
            weighted_sums.addmm_(sums.pair_weight.T, points_and_ones[rows])
    averages_active = mining == "batch-all" and cost.margin is not None
    divisor = (active if averages_active else triplets).clamp(min=1)
    mean_distance = distance_sum / max(1, batch * (batch - 1))
    mean_loss = (loss / float64_sum(divisor)).to(vectors)
    result = TripletLoss(mean_loss, triplets, active, mean_distance)
    if not with_gradient:
        return result, None
    # The gradient by x_i is sum_j w_ij (x_i - x_j). The column of ones has summed the weights.
    weight_sums = weighted_sums[:, -1:]  # (B, 1)
    return result, (weight_sums * points - weighted_sums[:, :-1]).div_(divisor)


def _batch_all(distances: Tensor, block: AnchorBlock, cost: TripletCost) -> TripletSums:
    """Return the sums over every triplet; the module's docstring has a worked example.

    Args:
        distances: Distances from each anchor to all rows, shape (b, B). Overwritten.
        block: Positives and negatives of the anchors.
        cost: Cost of a triplet.
    """
    dtype = distances.dtype
    to_same_class = distances.gather(1, block.same_class_columns)  # (b, W)
    threshold = cost.threshold(to_same_class).masked_fill_(~block.is_positive, -math.inf)
    # Sort the own class behind all negatives. The fill value is finite: it is multiplied by 0.
    to_others = distances.scatter_(1, block.same_class_columns, torch.finfo(dtype).max)
    ascending, order = sort_rows(to_others)
    # With the soft margin, negatives at the threshold count: they are in the wrong order.
    closer = torch.searchsorted(ascending, threshold, right=cost.margin is None)  # (b, W) counts
    positive_count = block.is_positive.sum(1, keepdim=True)  # (b, 1)
    triplets, active = (positive_count * block.negative_count).sum(), closer.sum()
    if cost.margin is None:
        loss, d_same_class, d_ascending = soft_margin_sum(
            to_same_class, ascending, block.is_positive, block.negative_count
        )
    else:
        d_same_class = closer.to(dtype)
        # Count the positives whose active negatives end before each rank. The others reach it.
        ended = distances.new_zeros(len(distances), distances.shape[1] + 1)
        ended.scatter_add_(1, closer, block.is_positive.to(dtype))
        d_ascending = ended[:, :-1].cumsum(1).sub_(positive_count)  # (b, B) by rank
        gap_sum = float64_sum(row_dots(d_same_class, to_same_class))
        gap_sum = gap_sum + float64_sum(row_dots(d_ascending, ascending))
        loss = cost.sum_of_active(gap_sum, active)
    pair_weight = torch.empty_like(distances)
    pair_weight.scatter_(1, order, cost.pair_weight(d_ascending, ascending))
    pair_weight.scatter_add_(
        1, block.same_class_columns, cost.pair_weight(d_same_class, to_same_class)
    )
    return TripletSums(loss=loss, triplets=triplets, active=active, pair_weight=pair_weight)


def _sum_selected(selected: SelectedTriplets, cost: TripletCost, shape: torch.Size) -> TripletSums:
    """Return the sums over selected triplets; ``shape`` is (b, B)."""
    valid = selected.is_valid
    gap = torch.where(valid, selected.to_positive - selected.to_negative, 0)  # (b, k)
    costs, d_cost_d_gap, active = cost.evaluate(gap)
    d_loss_d_distance = d_cost_d_gap * valid  # by the positive's; negated, by the negative's
    positive_weight = cost.pair_weight(d_loss_d_distance.clone(), selected.to_positive)
    negative_weight = cost.pair_weight(d_loss_d_distance.neg(), selected.to_negative)
    pair_weight = gap.new_zeros(shape)
    pair_weight.scatter_add_(1, selected.positive_columns, positive_weight)
    pair_weight.scatter_add_(1, selected.negative_columns, negative_weight)
    return TripletSums(
        loss=float64_sum((costs * valid).sum(1)),
        triplets=valid.sum(),
        active=(active & valid).sum(),
        pair_weight=pair_weight,
    )
