"""Sums that keep their accuracy over many terms."""

import torch
from torch import Tensor


def row_dots(a: Tensor, b: Tensor) -> Tensor:
    """Return the dot product of each row of ``a`` with the same row of ``b``.

    One pass over memory, where multiplying and then summing takes three.

    Args:
        a: Floating point, shape (R, C).
        b: Same dtype and shape.

    Returns:
        Same dtype, shape (R,).
    """
    return torch.bmm(a[:, None, :], b[:, :, None])[:, 0, 0]


def float64_sum(values: Tensor) -> Tensor:
    """Return the sum of all values, accumulated in float64.

    Devices of type ``mps`` do not support float64; there the sum runs on the CPU.

    Returns:
        float64, a scalar.
    """
    return (values.cpu() if values.device.type == "mps" else values).sum(dtype=torch.float64)
