"""Initial networks: random or pretrained weights, pixel statistics, first projection."""

import torch
from torch import Tensor, nn

from stages.distributed import broadcast_tensors
from stages.network.embedding_net import EmbeddingNet, build_network, to_device
from stages.network.inference import trunk_features
from stages.network.pretrained import PretrainedWeights
from stages.network.projection import RESIDUAL, ResidualProjection
from stages.records import Split
from stages.settings import EmbedSettings
from stages.subset import evenly_spaced

FIT_IMAGES = 5000  # most training images from which the first projection is computed


def new_network(
    train: Split, settings: EmbedSettings, pretrained: PretrainedWeights | None = None
) -> EmbeddingNet:
    """Build the network that training starts from, which is also the untrained baseline.

    If the trunk is a library's and frozen, :func:`fit_projection` completes it.

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
        projection=RESIDUAL if settings.from_library and settings.trunk == "frozen" else None,
    )
    if pretrained:
        network.load_trunk(pretrained.tensors, where=f"weights {pretrained.origin}")
    return network


def fit_projection(network: nn.Module, train: Split, *, device: torch.device) -> None:
    """Fit a residual projection to the trunk features of the training images.

    Other projections and networks stay as they are.

    Args:
        network: Network before training, on ``device``. Its projection is changed in place.
        train: Training images.
        device: Device for the trunk, if the images have no cached features.
    """
    if isinstance(network, EmbeddingNet) and isinstance(network.project, ResidualProjection):
        subset = train.select(evenly_spaced(len(train), FIT_IMAGES))
        network.project.fit(trunk_features(network, subset, device=device))
        # Other processors may round differently, and gradients assume equal weights.
        broadcast_tensors(network.project.state_dict().values())


def with_new_projection(
    network: EmbeddingNet, train: Split, seed: int, *, device: torch.device
) -> EmbeddingNet:
    """Copy a network with its projection layers as they were before training.

    For a network with a frozen trunk, this is the network that training started from.

    Args:
        network: Trained network with a frozen trunk.
        train: Images that it was trained on.
        seed: Seed of the training run.
        device: Device of the new network.

    Returns:
        A new network.
    """
    torch.manual_seed(seed)
    initial = build_network(network.config)
    trunk_state = {
        name: value
        for name, value in network.state_dict().items()
        if not name.startswith("project.")
    }
    initial.load_state_dict({**initial.state_dict(), **trunk_state})
    to_device(initial, device)
    fit_projection(initial, train, device=device)
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
