"""BatchNorm whose statistics span the batches of all ranks."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules._functions import SyncBatchNorm

from stages.distributed import all_gather, all_reduce, rank_and_world_size


def batch_norm(
    images: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise this rank's share of a batch with the statistics of the whole batch.

    Like :func:`torch.nn.functional.batch_norm` of the whole batch: the outputs, the gradients and
    the running statistics are those of a single process. The statistics are float32 under autocast.

    Args:
        images: Floating point, shape (n, C, ...), with the same shape on all ranks.
        running_mean: Running mean, shape (C,), changed in place in training, or None.
        running_var: Running variance, shape (C,), changed in place in training, or None.
        weight: Scale per channel, shape (C,), or None.
        bias: Shift per channel, shape (C,), or None.
        training: True to use and track the statistics of the batch, False to use the running ones.
        momentum: Weight of the batch in the running statistics.
        eps: Added to the variance.

    Returns:
        Tensor of the shape and data type of ``images``.
    """
    world_size = rank_and_world_size()[1]
    if not training or world_size == 1:
        return F.batch_norm(
            images, running_mean, running_var, weight, bias, training, momentum, eps
        )
    statistics = (running_mean, running_var, eps, momentum)
    if images.device.type == "cuda":
        group = torch.distributed.group.WORLD
        output = SyncBatchNorm.apply(images, weight, bias, *statistics, group, world_size)
    else:  # torch has no such layer for the CPU
        output = _WholeBatchNorm.apply(images, weight, bias, *statistics)
    normalised: Tensor = output
    return normalised


class _WholeBatchNorm(torch.autograd.Function):
    """Training mode of :func:`batch_norm` on the CPU.

    Both passes read the batch with torch's own kernels. Between them they exchange two numbers per
    channel. All ranks hold equally many values, which makes means of ranks the means of the batch.
    """

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        eps: float,
        momentum: float,
    ) -> Tensor:
        dtype = torch.promote_types(images.dtype, torch.float32)
        unused = torch.zeros(images.shape[1], dtype=dtype)  # determines the dtype of the result
        own = torch.batch_norm_update_stats(images, unused, unused.clone(), 0.0)
        # Means and deviations from them instead of sums of squares, which would cancel.
        means, variances = torch.stack(all_gather(torch.stack(own).double()), 1)  # (ranks, C) each
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        count = images.numel() // images.shape[1] * len(means)
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            unbiased = variance * (count / (count - 1))
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        ctx.save_for_backward(images, weight, mean, (variance + eps).rsqrt())
        ctx.count, ctx.dtype, ctx.eps = count, dtype, eps
        return F.batch_norm(
            images, mean.to(dtype), variance.to(dtype), weight, bias, False, 0.0, eps
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        images, weight, mean, inverse_std = ctx.saved_tensors
        # This kernel, of torch's own BatchNorm, sums over this rank's images.
        _, weight_gradient, bias_gradient = torch.ops.aten.native_batch_norm_backward(
            gradient,
            images,
            weight,
            None,
            None,
            mean.to(ctx.dtype),
            inverse_std.to(ctx.dtype),
            True,
            ctx.eps,
            [False, True, True],
        )
        images_gradient = None
        if ctx.needs_input_grad[0]:
            means = torch.stack([weight_gradient, bias_gradient]).double() / ctx.count
            all_reduce(means)
            # With x' = (x - mean) / std, the gradient of x is
            # weight / std * (dy - x' * mean(dy * x') - mean(dy)), which is linear in x and dy.
            scale = inverse_std if weight is None else inverse_std * weight
            slope = -scale * inverse_std * means[0]
            shift = -scale * means[1] - slope * mean
            factors = torch.stack([scale, slope, shift]).to(ctx.dtype)
            scale, slope, shift = factors.view(3, 1, -1, *[1] * (images.ndim - 2))  # (1, C, 1, ...)
            images_gradient = torch.addcmul(shift, images, slope).addcmul_(gradient, scale)
            images_gradient = images_gradient.to(images.dtype)
        needed = ctx.needs_input_grad
        weight_gradient = weight_gradient if needed[1] else None
        bias_gradient = bias_gradient if needed[2] else None
        return images_gradient, weight_gradient, bias_gradient, None, None, None, None
