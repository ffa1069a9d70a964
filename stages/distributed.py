"""What the processes of one run tell each other; with a single process, nothing.

`pipeline.runtime` opens the process group. Every process must come to each of these calls, in the same order.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stages.errors import SettingsError


def rank_and_world_size() -> tuple[int, int]:
    """Which process this is, from 0, and of how many."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def rank_slice(classes_per_batch: int, images_per_class: int) -> slice:
    """Which images of each batch this process embeds. Raises SettingsError if the processes can't share evenly.

    Of N processes each takes every N-th image, since a batch stands class by class: given whole classes, a process's
    BatchNorm would take away what tells them from the others', and training would fail.
    """
    rank, world = rank_and_world_size()
    size = classes_per_batch * images_per_class
    if size % world:
        raise SettingsError(
            "images_per_class",
            images_per_class,
            f"{classes_per_batch} classes x {images_per_class} images per batch cannot be divided "
            f"evenly among {world} processes; change classes_per_batch or images_per_class",
        )
    return slice(rank, size, world)


@contextmanager
def per_rank_rng(seed: int) -> Iterator[None]:
    """Within it torch's global generator gives other numbers in each process, drawn from the seed; after it, all go on alike.

    For dropout: under the same masks, images of two processes would look alike in training as they never do later. A single
    process notices nothing.
    """
    rank, world = rank_and_world_size()
    with torch.random.fork_rng(devices=[], enabled=world > 1):
        if world > 1:
            torch.manual_seed(seed * world + rank)
        yield


def all_gather_rows(own: Tensor) -> Tensor:
    """The rows of all processes, dealt out in turn as `own_part` takes them: (n, D) each -> (n * world, D).

    Gradient flows to this process's own rows only. That is all of it where every process computes the same loss of all
    rows, if `sum_gradients` follows.
    """
    rank, world = rank_and_world_size()
    if world == 1:
        return own
    parts = [torch.empty_like(own) for _ in range(world)]
    dist.all_gather(parts, own.detach().contiguous())
    parts[rank] = own
    return torch.stack(parts, 1).flatten(0, 1)


def all_reduce_gradients(network: nn.Module) -> None:
    """Give every process the sum of all processes' gradients: what one process would have computed for the whole batch."""
    if rank_and_world_size()[1] == 1:
        return
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, summed in zip(
        gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True
    ):
        gradient.copy_(summed.view(gradient.shape))


def broadcast_buffers(network: nn.Module) -> None:
    """Give every process the first one's buffers: without SyncBatchNorm, running statistics differ between processes."""
    if rank_and_world_size()[1] > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)
