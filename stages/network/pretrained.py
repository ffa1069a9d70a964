"""Trunks from torchvision and timm."""

from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from stages.errors import SettingsError
from stages.network.conv import OWN_TRUNKS
from stages.network.library_bodies import body_builder
from stages.network.library_input import MIN_SIDE, count_features, library_input

UNRECORDED = 0  # for the side of a library network in a record of an earlier version
HIDDEN_UNITS = 512  # width of the hidden layer of the projection head


class PretrainedWeights(NamedTuple):
    """Pretrained weights of a library network.

    Attributes:
        tensors: Weights and buffers under the library's names.
        mean: Mean of the pixels in [0, 1] that the weights expect, float32, shape (3,).
        std: Standard deviation of these pixels, float32, shape (3,).
        digest: Digest of ``tensors`` from :func:`stages.network.digest.state_digest`.
        origin: Absolute path of the weights' file, or ``default``.
    """

    tensors: Mapping[str, Tensor]
    mean: Tensor
    std: Tensor
    digest: str
    origin: str


class LibraryTrunk(nn.Module):
    """A library's classification network without its classifier.

    Args:
        body: The network, which returns features instead of class scores.
        side: Side in pixels to which the images are resized. The network may not accept others.
        heads: Prefixes of the weights that are not loaded: the classifier and auxiliary heads.
    """

    def __init__(self, body: nn.Module, side: int, heads: tuple[str, ...]):
        super().__init__()
        self.body, self.side, self.heads = body, side, heads

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute features, shape (N, F), of scaled pixels, shape (N, 3, S, S)."""
        if pixels.shape[-1] != self.side:
            pixels = F.interpolate(
                pixels, size=(self.side, self.side), mode="bilinear", align_corners=False
            )
        features: Tensor = self.body(pixels)
        return features.flatten(1)


def make_trunk(
    name: str, channels: int, size: int, side: int | None = None
) -> tuple[nn.Module, int]:
    """Build a trunk with random weights.

    Args:
        name: ``conv``, ``conv-deep``, ``efficientnet-liteN``, ``torchvision:NAME`` or
            ``timm:NAME``.
        channels: Number of image channels. Library networks always get 3.
        size: Side of the square images in pixels.
        side: Side to which a library network resizes them. None: that of :func:`library_input`.
            ``UNRECORDED``: as earlier versions chose it.

    Returns:
        The trunk, which maps scaled pixels (N, channels, size, size) to features (N, F), and F.

    Raises:
        SettingsError: If the library is not installed or has no such network, or if the network
            does not run on images of this size.
    """
    if name in OWN_TRUNKS:
        return OWN_TRUNKS[name](channels, size)
    if side == UNRECORDED:
        return _earlier_trunk(name, size)
    found = library_input(name, size, side)
    build = body_builder(name)
    try:
        body, heads = build(found.side)
    except RuntimeError as error:  # a few networks cannot be built on the meta device
        reason = " ".join(str(error).split())[:200]
        raise SettingsError("network", name, f"cannot be built ({reason})") from error
    return LibraryTrunk(body.train(), found.side, heads), found.features


def _earlier_trunk(name: str, size: int) -> tuple[nn.Module, int]:
    """Build a trunk as in checkpoints that do not record the side.

    A network of timm has the image size that it was designed for, whatever the side, and the same
    random numbers are drawn as in earlier versions.
    """
    build = body_builder(name)
    # Those versions tried the image's own size, then multiples of 32 up to 512.
    smallest = max(size, MIN_SIDE)
    next_multiple = 32 * (smallest // 32 + 1)
    for side in (smallest, *range(next_multiple, max(512, smallest) + 1, 32)):
        with suppress(RuntimeError, ValueError, AssertionError):
            body, heads = build(side if name.startswith("torchvision:") else None)
            features = count_features(body, side)
            return LibraryTrunk(body.train(), side, heads), features
    raise SettingsError("network", name, f"does not run on images of {size} x {size}")


def projection_head(features: int, dim: int) -> nn.Module:
    """Build the fully connected layers that replace the classifier of a library network.

    Args:
        features: Number of trunk features.
        dim: Dimension of the embedding.

    Returns:
        Dropout, a hidden layer with BatchNorm and ReLU, dropout, and a linear layer.
    """
    hidden = (nn.Linear(features, HIDDEN_UNITS), nn.BatchNorm1d(HIDDEN_UNITS), nn.ReLU())
    return nn.Sequential(nn.Dropout(0.5), *hidden, nn.Dropout(0.5), nn.Linear(HIDDEN_UNITS, dim))


def trunk_blocks(trunk: nn.Module) -> list[nn.Module]:
    """Split a trunk into consecutive blocks that have parameters.

    Sequential containers are split into their children, and so is every module that holds more
    than half of the trunk's parameters.

    Args:
        trunk: A trunk from :func:`make_trunk`.

    Returns:
        The blocks, the one next to the input first.
    """
    return _split_into_blocks(trunk, _parameter_count(trunk) / 2)


def _split_into_blocks(module: nn.Module, limit: float) -> list[nn.Module]:
    """Return the blocks of a module; modules with more parameters than the limit are split."""
    children = list(module.children())
    is_container = type(module) in (nn.Sequential, nn.ModuleList)
    if is_container or (children and _parameter_count(module) > limit):
        blocks = []
        for child in children:
            blocks += _split_into_blocks(child, limit)
        return blocks
    return [module] if _parameter_count(module) else []


def _parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
