"""Initial networks: random or pretrained weights, pixel statistics."""

import torch
from torch import Tensor

from stages.network.embedding_net import EmbeddingNet, build_network
from stages.network.pretrained import PretrainedWeights
from stages.records import Split
from stages.settings import EmbedSettings


def new_network(
    train: Split, settings: EmbedSettings, pretrained: PretrainedWeights | None = None
) -> EmbeddingNet:
    """Build the network that training starts from, which is also the untrained baseline.

    Args:
        train: Training split. It determines the image size and the pixel statistics.
        settings: Settings of stage one. ``seed`` determines the random weights.
        pretrained: Pretrained weights and pixel statistics, used for the trunk.

    Returns:
        The network on the CPU.

    Raises:
        SettingsError: If the trunk cannot be built.
        CheckpointError: If the pretrained weights do not fit the network.
    """
    torch.manual_seed(settings.seed)
    mean, std = (pretrained.mean, pretrained.std) if pretrained else pixel_statistics(train)
    network = EmbeddingNet(
        channels=train.store.shape[1],
        size=train.store.shape[-1],
        dim=settings.dim,
        name=settings.architecture,
        trunk=settings.trunk,
        pretrained=pretrained is not None,
        mean=mean,
        std=std,
    )
    if pretrained:
        network.load_trunk(pretrained.tensors, where=f"weights {pretrained.origin}")
    return network


def with_new_projection(network: EmbeddingNet, seed: int) -> EmbeddingNet:
    """Copy a network with its projection layers as they were before training.

    For a network with a frozen trunk, this is the network that training started from.

    Args:
        network: Trained network with a frozen trunk.
        seed: Seed of the training run.

    Returns:
        A new network on the CPU.
    """
    torch.manual_seed(seed)
    initial = build_network(network.config)
    trunk_state = {
        name: value
        for name, value in network.state_dict().items()
        if not name.startswith("project.")
    }
    initial.load_state_dict({**initial.state_dict(), **trunk_state})
    return initial


def pixel_statistics(split: Split) -> tuple[Tensor, Tensor]:
    """Compute the mean and standard deviation of the pixels, scaled to [0, 1], per channel.

    They are computed from histograms, so they are exact and need no floating-point copy of the
    images.

    Args:
        split: Images to measure.

    Returns:
        Mean and standard deviation, both float32, shape (C,). The standard deviation of a constant
        channel is reported as 1.
    """
    channels = split.store.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.float64)
    for images in split.blocks():
        for channel in range(channels):
            counts[channel] += torch.bincount(images[:, channel].flatten(), minlength=256)
    levels = torch.arange(256, dtype=torch.float64) / 255
    shares = counts / counts.sum(1, keepdim=True)  # (C, 256)
    mean = shares @ levels
    std = (shares @ levels.square() - mean.square()).clamp(min=0).sqrt()
    return mean.float(), torch.where(std < 1e-4, torch.ones_like(std), std).float()
