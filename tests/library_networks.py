"""Library networks with made-up weights, and settings and images for them."""

from pathlib import Path

import torch
from factories import make_dataset
from torch import Tensor, nn
from torchvision import models

from pipeline.data.dataset import Dataset
from stages.settings import EmbedSettings

SMALL_NETWORK = "torchvision:mobilenet_v3_small"
IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406])
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225])


def library_settings(network: str = SMALL_NETWORK, **changes: object) -> EmbedSettings:
    """Return settings of a short training with a library network."""
    return EmbedSettings(
        **{"network": network, "dim": 8, "epochs": 1, "images_per_class": 2, **changes}
    )


def torchvision_network(name: str, **options: object) -> nn.Module:
    """Return a torchvision network with random weights and random BatchNorm statistics."""
    torch.manual_seed(3)
    network = models.get_model(name, weights=None, **options).eval()
    for key, value in network.state_dict().items():
        if key.endswith("running_mean"):
            value.copy_(torch.rand_like(value) * 0.5 - 0.25)
        elif key.endswith("running_var"):
            value.copy_(torch.rand_like(value) * 0.5 + 0.75)
    return network


def save_small_weights(folder: Path) -> Path:
    """Save weights for ``SMALL_NETWORK`` and return the path."""
    path = folder / "small.pth"
    torch.save(torchvision_network("mobilenet_v3_small").state_dict(), path)
    return path


def scale_for_imagenet(pixels: Tensor) -> Tensor:
    """Scale uint8 pixels as torchvision's ImageNet weights expect."""
    return (pixels / 255 - IMAGENET_MEAN.view(-1, 1, 1)) / IMAGENET_STD.view(-1, 1, 1)


def make_photos() -> Dataset:
    return make_dataset(("cat", "dog", "newt"), train=4, test=3, size=32, channels=3)
