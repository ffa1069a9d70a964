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
    """The network as training starts it; it is the report's "untrained" baseline too.

    Weights are drawn from `settings.seed` and pixel statistics taken from the training part, save what is `pretrained`.
    """
    torch.manual_seed(settings.seed)
    mean, std = (pretrained.mean, pretrained.std) if pretrained else pixel_statistics(train)
    network = EmbeddingNet(
        train.store.shape[1],
        train.store.shape[-1],
        settings.dim,
        name=settings.network,
        trunk=settings.trunk,
        pretrained=pretrained is not None,
        mean=mean,
        std=std,
    )
    if pretrained:
        network.load_trunk(pretrained.tensors, where=f"--weights {pretrained.origin}")
    return network


def with_new_projection(network: EmbeddingNet, seed: int) -> EmbeddingNet:
    """A network with a frozen trunk as training started it: this trunk, and the layers that the seed draws."""
    torch.manual_seed(seed)
    fresh = build_network(network.config)
    kept = {
        name: value
        for name, value in network.state_dict().items()
        if not name.startswith("project.")
    }
    fresh.load_state_dict({**fresh.state_dict(), **kept})
    return fresh


def pixel_statistics(split: Split) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the pixels in [0, 1], one value a channel.

    Returns two float32 (C,). Worked out from the histogram, so it is exact and needs no floating-point copy of the
    images; a constant channel gets deviation 1.
    """
    channels = split.store.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.float64)
    for images in split.blocks():
        for c in range(channels):
            counts[c] += torch.bincount(images[:, c].flatten(), minlength=256)
    levels = torch.arange(256, dtype=torch.float64) / 255
    shares = counts / counts.sum(1, keepdim=True)  # (C, 256)
    mean = shares @ levels
    std = (shares @ levels.square() - mean.square()).clamp(min=0).sqrt()
    return mean.float(), torch.where(std < 1e-4, torch.ones_like(std), std).float()
