"""Embed images or splits in evaluation mode."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from stages.distributed import all_gather_rows, rank_and_world_size
from stages.network.embedding_net import EmbeddingNet
from stages.records import Embeddings, Split

BLOCK = 128  # images embedded at once; on a CPU a fifth faster than 512


def embed_images(network: nn.Module, blocks: Iterable[Tensor], *, device: torch.device) -> Tensor:
    """Embed images in evaluation mode, float32 whatever the autocast, without gradients.

    blocks: uint8 (b, C, S, S) each, or what else the network takes, anywhere, at least one. Returns float32 (N, D) on
    the CPU. The network is left in the mode it came in.
    """
    return apply_in_evaluation_mode(network, network, blocks, device=device)


def apply_in_evaluation_mode(
    network: nn.Module,
    function: Callable[[Tensor], Tensor],
    blocks: Iterable[Tensor],
    *,
    device: torch.device,
) -> Tensor:
    """`embed_images` by a part of the network."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return torch.cat([function(images.to(device)).cpu() for images in blocks])
    finally:
        network.train(training)


def has_cached_features(network: nn.Module, split: Split) -> bool:
    """Whether this network's trunk has seen the split's images already."""
    return (
        split.features is not None
        and isinstance(network, EmbeddingNet)
        and split.features.digest == network.trunk_digest()
    )


def network_input(network: nn.Module, split: Split, which: Tensor | slice) -> Tensor:
    """What the network takes of some of a split's images: their features where its trunk has made them, else pixels."""
    if split.features and has_cached_features(network, split):
        return split.features.values[split.rows[which], 0]
    return split.take(which)


def embed_split(network: nn.Module, split: Split, *, device: torch.device) -> Embeddings:
    """Embed a split, as `embed_images` does; the processes of a run share the work.

    From its features where this network's trunk has made them.
    """
    rank, world = rank_and_world_size()
    share = -(-len(split) // world)
    rows = torch.arange(rank, share * world, world).clamp(
        max=len(split) - 1
    )  # equal shares: the end is padded
    own = embed_images(
        network, (network_input(network, split, part) for part in rows.split(BLOCK)), device=device
    )
    return Embeddings(all_gather_rows(own)[: len(split)], split.labels, split.classes)
