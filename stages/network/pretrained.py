"""Trunks from torchvision and timm."""

import math
from collections.abc import Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.errors import SettingsError
from stages.network.conv import OWN_TRUNKS

LARGEST_SIDE = 512  # pixels; up to here a size is looked for at which a library's network runs


HIDDEN = 512  # of the new layers on a library's network


class PretrainedWeights(NamedTuple):
    """A library network's weights.

    tensors: by the library's names. mean, std: float32 (3,), of pixels in [0, 1]. digest: of the tensors. origin: a file's full
    path, or `default`.
    """

    tensors: Mapping[str, Tensor]
    mean: Tensor
    std: Tensor
    digest: str
    origin: str


class LibraryTrunk(nn.Module):
    """A library's classification network without its classifier: pixels (N, 3, S, S) to features (N, F).

    side: what smaller images are enlarged to, since each network has a size below which it does not run.
    heads: where its weights' names begin that are left out: the classifier's last layer and auxiliary heads.
    """

    def __init__(self, body: nn.Module, side: int, heads: tuple[str, ...]):
        super().__init__()
        self.body, self.side, self.heads = body, side, heads

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.shape[-1] != self.side:
            pixels = F.interpolate(
                pixels, size=(self.side, self.side), mode="bilinear", align_corners=False
            )
        found: Tensor = self.body(pixels)
        return found.flatten(1)


def make_trunk(name: str, channels: int, size: int) -> tuple[nn.Module, int]:
    """A network's trunk, its weights random, and how many features it makes.

    name: one of `TRUNKS`, torchvision:NAME, timm:NAME, or efficientnet-lite0. Raises SettingsError for a name that the
    library doesn't have, a library that isn't there, or a size at which the network doesn't run.
    """
    if name in OWN_TRUNKS:
        return OWN_TRUNKS[name](channels, size)
    library, _, model = name.partition(":")
    build = (
        partial(_from_torchvision, model)
        if library == "torchvision"
        else partial(_from_timm, name, model or "tf_efficientnet_lite0")
    )
    least = max(size, 32)
    reason = ""
    for side in (least, *range(32 * math.ceil((least + 1) / 32), max(LARGEST_SIDE, least) + 1, 32)):
        try:  # some take multiples of 16 or 32 alone, or 75 pixels at least, or one size
            body, heads = build(side)
            with torch.no_grad():
                features = body.eval()(torch.zeros(1, 3, side, side)).flatten(1).shape[1]
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = reason or " ".join(str(error).split())[:200]
            continue
        return LibraryTrunk(body.train(), side, heads), features
    raise SettingsError(
        "network",
        name,
        f"does not run on images of {size} x {size} ({reason}); choose another size",
    )


def _from_torchvision(name: str, side: int) -> tuple[nn.Module, tuple[str, ...]]:
    """The network without its last layer, and the names left out of its weights."""
    from torchvision import models  # slow to import

    if name not in (names := models.list_models(module=models)):
        near = ", ".join(get_close_matches(name, names, 5, 0.3)) or "resnet18, inception_v3"
        raise SettingsError(
            "network",
            f"torchvision:{name}",
            f"torchvision has no such network for classification; it has {near} and others",
        )
    options: dict[str, Any] = {"image_size": side} if name.startswith("vit_") else {}
    if name in ("inception_v3", "googlenet"):
        # Their weights want pixels scaled in another way than those of the others, and do so themselves.
        options = {"aux_logits": False, "transform_input": True, "init_weights": True}
    body: nn.Module = models.get_model(name, weights=None, **options)
    last = [
        path for path, module in body.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))
    ][-1]
    body.set_submodule(last, nn.Identity())
    return body, (f"{last}.", "AuxLogits.", "aux1.", "aux2.")


def _from_timm(name: str, model: str, side: int) -> tuple[nn.Module, tuple[str, ...]]:
    try:
        import timm
    except ImportError as error:
        extra = "offline" if name == "efficientnet-lite0" else "timm"
        raise SettingsError(
            "network", name, f"needs the package timm; pip install 'embedding-pipeline[{extra}]'"
        ) from error
    if not timm.is_model(model):
        near = (
            ", ".join(get_close_matches(model, timm.list_models(), 5, 0.3))
            or "resnet18, efficientnet_b0"
        )
        raise SettingsError("network", name, f"timm has no such network; it has {near} and others")
    body: nn.Module = timm.create_model(model, pretrained=False, num_classes=0)
    config: Any = body.pretrained_cfg
    heads = config.get("classifier") or ()
    return body, tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))


def projection_head(features: int, dim: int) -> nn.Module:
    """The fully connected layers that take the place of a library network's last one."""
    hidden = (nn.Linear(features, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU())
    return nn.Sequential(nn.Dropout(0.5), *hidden, nn.Dropout(0.5), nn.Linear(HIDDEN, dim))


def trunk_blocks(trunk: nn.Module) -> list[nn.Module]:
    """A trunk's parts that hold weights, from the pixels on: sequences, and what holds over half of all weights, are opened."""
    half = _weights(trunk) / 2

    def parts(module: nn.Module) -> list[nn.Module]:
        opened = type(module) in (nn.Sequential, nn.ModuleList) or (
            _weights(module) > half and len(list(module.children())) > 0
        )
        if opened:
            return [part for child in module.children() for part in parts(child)]
        return [module] if _weights(module) else []

    return parts(trunk)


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
