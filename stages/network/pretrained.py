"""Trunks from torchvision and timm."""

import math
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.errors import SettingsError
from stages.network.conv import OWN_TRUNKS

MAX_PROBED_SIDE = 512  # largest input side in pixels that make_trunk tries
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


def make_trunk(name: str, channels: int, size: int) -> tuple[nn.Module, int]:
    """Build a trunk with random weights.

    Library networks only run on some image sizes: multiples of 16 or 32, at least 75 pixels, or one
    fixed size. The trunk resizes images to the smallest side, from ``size`` up, that works.

    Args:
        name: ``conv``, ``conv-deep``, ``efficientnet-lite0``, ``torchvision:NAME`` or
            ``timm:NAME``.
        channels: Number of image channels. Library networks always get 3.
        size: Side of the square images in pixels.

    Returns:
        The trunk, which maps scaled pixels (N, channels, size, size) to features (N, F), and F.

    Raises:
        SettingsError: If the library is not installed or has no such network, or if the network
            does not run on images of this size.
    """
    if name in OWN_TRUNKS:
        return OWN_TRUNKS[name](channels, size)
    build_body = _body_builder(name)
    first_error = ""
    for side in _candidate_sides(size):
        try:
            body, heads = build_body(side)
            features = _count_features(body, side)
        except (RuntimeError, ValueError, AssertionError) as error:
            first_error = first_error or " ".join(str(error).split())[:200]
        else:
            return LibraryTrunk(body.train(), side, heads), features
    raise SettingsError(
        "network",
        name,
        f"does not run on images of {size} x {size} ({first_error}); choose another size",
    )


def _body_builder(name: str) -> Callable[[int], tuple[nn.Module, tuple[str, ...]]]:
    """Return the function that builds a library network for images of a given side."""
    library, _, model = name.partition(":")
    if library == "torchvision":
        return partial(_torchvision_body, model)
    return partial(_timm_body, name, model or "tf_efficientnet_lite0")


def _candidate_sides(size: int) -> Iterator[int]:
    """Yield the image's own side, at least 32, then the multiples of 32 above it."""
    smallest = max(size, 32)
    yield smallest
    yield from range(32 * math.ceil((smallest + 1) / 32), max(MAX_PROBED_SIDE, smallest) + 1, 32)


def _count_features(body: nn.Module, side: int) -> int:
    """Return the number of features that a network computes, by applying it to a black image."""
    with torch.no_grad():
        features: Tensor = body.eval()(torch.zeros(1, 3, side, side))
    return features.flatten(1).shape[1]


def _torchvision_body(name: str, side: int) -> tuple[nn.Module, tuple[str, ...]]:
    """Build a torchvision network without its last layer.

    Args:
        name: Name in ``torchvision.models``.
        side: Side of the square images in pixels, which vision transformers need to know.

    Returns:
        The network with an identity as its last layer, and the prefixes of the weights that it
        lacks: its last layer and the auxiliary classifiers.
    """
    from torchvision import models  # slow to import

    if name not in (names := models.list_models(module=models)):
        similar = ", ".join(get_close_matches(name, names, 5, 0.3)) or "resnet18, inception_v3"
        raise SettingsError(
            "network",
            f"torchvision:{name}",
            f"torchvision has no such classification network; choose one such as {similar}",
        )
    options: dict[str, Any] = {"image_size": side} if name.startswith("vit_") else {}
    if name in ("inception_v3", "googlenet"):
        # Their weights expect pixels in [-1, 1]; with transform_input the networks convert them.
        options = {"aux_logits": False, "transform_input": True, "init_weights": True}
    body: nn.Module = models.get_model(name, weights=None, **options)
    weighted_layers = [
        path for path, module in body.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    last_layer = weighted_layers[-1]
    body.set_submodule(last_layer, nn.Identity())
    return body, (f"{last_layer}.", "AuxLogits.", "aux1.", "aux2.")


def _timm_body(name: str, model: str, side: int) -> tuple[nn.Module, tuple[str, ...]]:
    """Build a timm network without its classifier.

    Args:
        name: Name of the network as the settings spell it, for messages.
        model: Name in timm.
        side: Ignored; timm's networks need no image size.

    Returns:
        The network, and the prefixes of the weights that it lacks: its classifiers.
    """
    try:
        import timm
    except ImportError as error:
        extra = "offline" if name == "efficientnet-lite0" else "timm"
        raise SettingsError(
            "network",
            name,
            f"needs the package timm; run pip install 'embedding-pipeline[{extra}]'",
        ) from error
    if not timm.is_model(model):
        matches = get_close_matches(model, timm.list_models(), 5, 0.3)
        similar = ", ".join(matches) or "resnet18, efficientnet_b0"
        raise SettingsError(
            "network", name, f"timm has no such network; choose one such as {similar}"
        )
    body: nn.Module = timm.create_model(model, pretrained=False, num_classes=0)
    config: Any = body.pretrained_cfg
    heads = config.get("classifier") or ()
    if isinstance(heads, str):
        heads = (heads,)
    return body, tuple(f"{head}." for head in heads)


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
