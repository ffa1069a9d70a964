"""Embed images or splits in evaluation mode."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from stages.distributed import all_gather_rows, rank_and_world_size
from stages.network.embedding_net import EmbeddingNet
from stages.records import Embeddings, Split

BLOCK_SIZE = 128  # images per forward pass; on a CPU a fifth faster than 512


def embed_images(network: nn.Module, blocks: Iterable[Tensor], *, device: torch.device) -> Tensor:
    """Embed images in evaluation mode, in float32 and without gradients.

    The network returns to its previous mode afterwards.

    Args:
        network: The network, on ``device``.
        blocks: At least one batch of inputs on any device: images, uint8, shape (b, C, S, S), or
            whatever else the network accepts.
        device: Device to compute on.

    Returns:
        Unit vectors on the CPU, float32, shape (N, D).

    Example:
        >>> network = EmbeddingNet(channels=1, size=28, dim=16)
        >>> images = torch.randint(256, (5, 1, 28, 28), dtype=torch.uint8)
        >>> embed_images(network, images.split(2), device=torch.device("cpu")).shape
        torch.Size([5, 16])
    """
    return apply_in_evaluation_mode(network, network, blocks, device=device)


def apply_in_evaluation_mode(
    network: nn.Module,
    function: Callable[[Tensor], Tensor],
    blocks: Iterable[Tensor],
    *,
    device: torch.device,
) -> Tensor:
    """Apply a function to batches while the network is in evaluation mode.

    Like :func:`embed_images`, for a function that runs only some of the network's layers.

    Args:
        network: The network that the function uses, on ``device``.
        function: Maps a batch of inputs to an output with one row per input.
        blocks: At least one batch of inputs, on any device.
        device: Device to compute on.

    Returns:
        The outputs of all batches, concatenated, on the CPU.
    """
    training = network.training
    network.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return torch.cat([function(images.to(device)).cpu() for images in blocks])
    finally:
        network.train(training)


def has_cached_features(network: nn.Module, split: Split) -> bool:
    """Return True if the split has cached features from the trunk of this network."""
    return (
        split.features is not None
        and isinstance(network, EmbeddingNet)
        and split.features.digest == network.trunk_digest()
    )


def network_input(network: nn.Module, split: Split, which: Tensor | slice) -> Tensor:
    """Return cached trunk features of some images if there are any, otherwise their pixels.

    Args:
        network: The network that will get the input.
        split: Split that holds the images.
        which: Positions in the split, int64, shape (n,), or a slice.

    Returns:
        Features, float32, shape (n, F), or images, uint8, shape (n, C, S, S).
    """
    if split.features and has_cached_features(network, split):
        return split.features.values[split.rows[which], 0]
    return split.take(which)


def embed_split(network: nn.Module, split: Split, *, device: torch.device) -> Embeddings:
    """Embed all images of a split in evaluation mode.

    Cached trunk features are used if there are any. The processes of a distributed run share the
    work, and each returns all vectors.

    Args:
        network: The network, on ``device``.
        split: Images to embed.
        device: Device to compute on.

    Returns:
        Unit vectors and labels in the order of the split, on the CPU.
    """
    vectors = _apply_to_split(network, network, split, device)
    return Embeddings(vectors, split.labels, split.classes)


def trunk_features(network: EmbeddingNet, split: Split, *, device: torch.device) -> Tensor:
    """Compute the trunk features of all images of a split in evaluation mode.

    Like :func:`embed_split`, but without the projection.

    Args:
        network: The network, on ``device``.
        split: Images.
        device: Device to compute on.

    Returns:
        Features in the order of the split, on the CPU, float32, shape (N, F).
    """
    if split.features and has_cached_features(network, split):
        return split.features.values[split.rows, 0]
    return _apply_to_split(network, network.features, split, device).float()


def _apply_to_split(
    network: nn.Module,
    function: Callable[[Tensor], Tensor],
    split: Split,
    device: torch.device,
) -> Tensor:
    """Apply a function to all images of a split, or to their cached features."""
    rank, world_size = rank_and_world_size()
    rows_per_rank = -(-len(split) // world_size)
    # Every rank embeds equally many rows. The last row is repeated to fill up.
    rows = torch.arange(rank, rows_per_rank * world_size, world_size).clamp(max=len(split) - 1)
    blocks = (network_input(network, split, block) for block in rows.split(BLOCK_SIZE))
    outputs = apply_in_evaluation_mode(network, function, blocks, device=device)
    return all_gather_rows(outputs)[: len(split)]
