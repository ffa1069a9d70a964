"""Sum of the soft-margin loss over all triplets, without forming a triplet.

With the soft margin a triplet costs softplus(x - y) = log(1 + exp(x - y)), where x = d(a,p) and
y = d(a,n). Summing it over all P positives and N negatives of an anchor takes P x N evaluations.
A polynomial in x and y takes only P + N, because its sum separates. With coefficients c_ij and
Chebyshev polynomials T_i:

    sum_p sum_n sum_ij c_ij T_i(x_p) T_j(y_n) = sum_ij c_ij (sum_p T_i(x_p)) (sum_n T_j(y_n))

The polynomial equals softplus(x - y) up to the rounding of the dtype. The nearest singularities of
softplus are at a distance of pi from the real axis, so the Chebyshev coefficients decrease
geometrically, and a moderate degree brings the remainder below the dtype's epsilon.

References:
    Trefethen, Approximation Theory and Approximation Practice, theorem 8.2.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from stages.embedding.summation import float64_sum, row_dots

MIN_HALF_RANGE = 1e-3  # keeps the scaling to [-1, 1] finite if all distances are 0


def soft_margin_sum(
    to_same_class: Tensor, to_negatives: Tensor, is_positive: Tensor, negative_count: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the soft-margin loss summed over all triplets, and its derivatives.

    Args:
        to_same_class: Distances to the anchor's class, floating point, shape (b, W).
        to_negatives: Distances to the negatives in ascending order, followed by fill values,
            shape (b, B).
        is_positive: Entries of ``to_same_class`` that are positives, bool, shape (b, W).
        negative_count: Number of negatives of each anchor, int64, shape (b, 1).

    Returns:
        The summed loss, float64, a scalar; its derivatives by ``to_same_class``, shape (b, W); and
        its derivatives by ``to_negatives``, shape (b, B). The derivatives are 0 for entries that
        are not counted.
    """
    dtype = to_same_class.dtype
    rank = torch.arange(to_negatives.shape[1], device=to_negatives.device)
    is_negative = rank < negative_count  # (b, B)
    # Replace the fill values by a distance that is in the range.
    to_negatives = torch.where(is_negative, to_negatives, to_same_class[:, :1])
    farthest = float(torch.maximum(to_same_class.max(), to_negatives.max()))
    half_range = max(farthest / 2, MIN_HALF_RANGE)
    degree = _degree(half_range, dtype)
    coefficients = _softplus_coefficients(half_range, degree).to(to_same_class)  # (m, m)
    x = to_same_class / half_range - 1  # (b, W) in [-1, 1]
    y = to_negatives / half_range - 1  # (b, B) in [-1, 1]
    counted_x, counted_y = is_positive.to(dtype), is_negative.to(dtype)
    positive_sums = _chebyshev_sums(x, counted_x, degree)  # (b, m)
    negative_sums = _chebyshev_sums(y, counted_y, degree)  # (b, m)
    # Chebyshev series of the loss as a function of one negative, and of one positive.
    series_of_negative = positive_sums @ coefficients  # (b, m)
    series_of_positive = negative_sums @ coefficients.T  # (b, m)
    loss = float64_sum(row_dots(series_of_negative, negative_sums))
    d_same_class = _chebyshev_derivative(x, series_of_positive).mul_(counted_x / half_range)
    d_negatives = _chebyshev_derivative(y, series_of_negative).mul_(counted_y / half_range)
    return loss, d_same_class, d_negatives


def _degree(half_range: float, dtype: torch.dtype) -> int:
    """Return the degree at which the Chebyshev coefficients fall below the dtype's epsilon.

    The coefficients decrease like rho^-k, where rho is the sum of the semi-axes of the largest
    ellipse with foci -1 and 1 that contains no singularity. After scaling to [-1, 1], every
    singularity has an imaginary part of at least pi / half_range.
    """
    singularity = math.pi / half_range
    rho = singularity + math.hypot(singularity, 1)
    return math.ceil(-math.log(torch.finfo(dtype).eps / 8) / math.log(rho))


def _softplus_coefficients(half_range: float, degree: int) -> Tensor:
    """Return the Chebyshev coefficients of softplus(x - y) for x and y in [0, 2 half_range].

    Returns:
        float64, shape (m, m) with m = degree + 1: degree in x by degree in y.
    """
    count = degree + 1
    angles = (np.arange(count) + 0.5) * np.pi / count
    nodes = half_range * np.cos(angles)
    values = np.logaddexp(0, nodes[:, None] - nodes[None, :])
    transform = np.cos(np.arange(count)[:, None] * angles) * (2 / count)  # (degree, node)
    transform[0] /= 2
    return torch.from_numpy(transform @ values @ transform.T)


def _chebyshev_polynomials(values: Tensor, degree: int) -> Iterator[Tensor]:
    """Yield T_0 to T_degree at the values, which are in [-1, 1]."""
    previous, current = values, torch.ones_like(values)  # T_-1 = T_1, and T_0
    for _ in range(degree + 1):
        yield current
        previous, current = current, 2 * values * current - previous


def _chebyshev_sums(values: Tensor, counted: Tensor, degree: int) -> Tensor:
    """Return the sums of T_0 to T_degree over the counted values of each row, shape (b, m)."""
    sums = [row_dots(counted, term) for term in _chebyshev_polynomials(values, degree)]
    return torch.stack(sums, 1)  # (b, m)


def _chebyshev_derivative(values: Tensor, coefficients: Tensor) -> Tensor:
    """Return the derivative of each row's Chebyshev series: the sum of k c_k U_(k-1).

    Args:
        values: Points of evaluation in [-1, 1], shape (b, n).
        coefficients: Coefficients c_0 to c_degree of each row's series, shape (b, m).

    Returns:
        Derivatives by the values, shape (b, n).
    """
    previous, current = torch.zeros_like(values), torch.ones_like(values)  # U_-1, U_0
    total = torch.zeros_like(values)
    for k in range(1, coefficients.shape[1]):
        total.addcmul_(current, k * coefficients[:, k : k + 1])
        previous, current = current, 2 * values * current - previous
    return total
