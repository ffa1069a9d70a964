"""Collective operations for data-parallel training; no-ops in a single process.

``pipeline.processes`` opens the process group. As with :mod:`torch.distributed`, every rank must
call the same collectives in the same order.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stages.errors import SettingsError


def rank_and_world_size() -> tuple[int, int]:
    """Return the rank of this process and the world size.

    Returns:
        Rank, from 0, and number of processes; (0, 1) without a process group.

    Example:
        >>> rank_and_world_size()
        (0, 1)
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def rank_slice(classes_per_batch: int, images_per_class: int) -> slice:
    """Return the rows of each batch that this rank embeds.

    Of N ranks, each takes every N-th row. Batches are sorted by class, so every rank gets about the
    same number of images of every class.

    Args:
        classes_per_batch: Classes per batch, P.
        images_per_class: Images per class and batch, K.

    Returns:
        Slice of the P * K rows of a batch.

    Raises:
        SettingsError: If the world size does not divide P * K.

    Example:
        >>> rank_slice(classes_per_batch=10, images_per_class=16)
        slice(0, 160, 1)
    """
    rank, world_size = rank_and_world_size()
    batch_size = classes_per_batch * images_per_class
    if batch_size % world_size:
        raise SettingsError(
            "images_per_class",
            images_per_class,
            f"{classes_per_batch} classes x {images_per_class} images per batch cannot be divided "
            f"evenly among {world_size} processes; change classes_per_batch or images_per_class",
        )
    return slice(rank, batch_size, world_size)


def all_gather(tensor: Tensor) -> list[Tensor]:
    """Return the tensors of all ranks, in the order of the ranks and without gradients.

    Args:
        tensor: Tensor of this rank, with the same shape and dtype on all ranks.
    """
    world_size = rank_and_world_size()[1]
    if world_size == 1:
        return [tensor.detach()]
    own = tensor.detach().contiguous()
    gathered = [torch.empty_like(own) for _ in range(world_size)]
    dist.all_gather(gathered, own)
    return gathered


def all_reduce(tensor: Tensor) -> None:
    """Sum the tensors of all ranks in place.

    Args:
        tensor: Contiguous tensor, with the same shape and dtype on all ranks.
    """
    if rank_and_world_size()[1] > 1:
        dist.all_reduce(tensor)


def all_gather_rows(rows: Tensor) -> Tensor:
    """Gather the rows of all ranks in the order of :func:`rank_slice`.

    The gradient reaches this rank's own rows only. If all ranks compute the same loss of all rows,
    :func:`all_reduce_gradients` completes the gradient.

    Args:
        rows: Rows of this rank, shape (n, D), with the same n on all ranks.

    Returns:
        Rows of all ranks, interleaved, shape (n * world size, D).
    """
    rank, world_size = rank_and_world_size()
    if world_size == 1:
        return rows
    gathered = all_gather(rows)
    gathered[rank] = rows  # with its graph
    return torch.stack(gathered, 1).flatten(0, 1)  # (n * world size, D)


def all_reduce_gradients(network: nn.Module) -> None:
    """Sum the gradients of all ranks in place.

    The result is the gradient that a single process would compute for the whole batch.

    Args:
        network: Network after ``backward``.
    """
    if rank_and_world_size()[1] == 1:
        return
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    all_reduce(flat)
    sums = flat.split([gradient.numel() for gradient in gradients])
    for gradient, summed in zip(gradients, sums, strict=True):
        gradient.copy_(summed.view(gradient.shape))


def broadcast_gradients(module: nn.Module) -> None:
    """Copy the gradients of rank 0 to all ranks.

    For weights whose gradient every rank computes from the whole batch. On CUDA, gradients of two
    ranks can differ in the last bits, and the weights would drift apart.

    Args:
        module: Module after ``backward``. The same parameters have gradients on all ranks.
    """
    if rank_and_world_size()[1] > 1:
        for parameter in module.parameters():
            if parameter.grad is not None:
                dist.broadcast(parameter.grad, 0)


def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Copy tensors of rank 0 to all ranks, in place.

    Args:
        tensors: Tensors of the same shapes and in the same order on all ranks.
    """
    if rank_and_world_size()[1] > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)
