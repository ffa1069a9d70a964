"""Networks of torchvision and timm without their classifier."""

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import Any

from torch import nn

from stages.errors import SettingsError
from stages.settings import EFFICIENTNETS

# Builds a network for images of a side in pixels; None is the size that it was designed for.
# Returns the network and the prefixes of the weights that it lacks: its classifiers.
BodyBuilder = Callable[[int | None], tuple[nn.Module, tuple[str, ...]]]


def body_builder(name: str) -> BodyBuilder:
    """Return the function that builds a library network without its classifier.

    Args:
        name: ``efficientnet-liteN``, ``torchvision:NAME`` or ``timm:NAME``.

    Raises:
        SettingsError: If the library is not installed or has no such network.
    """
    library, _, model = name.partition(":")
    if library == "torchvision":
        _require_torchvision(model)
        return partial(_torchvision_body, model)
    _require_timm(name, model)
    return partial(_timm_body, timm_name(name))


def timm_name(name: str) -> str:
    """Return the name in timm of a network of the settings."""
    if name in EFFICIENTNETS:
        return f"tf_{name.replace('-', '_')}"
    return name.removeprefix("timm:")


def patch_size(body: nn.Module) -> int:
    """Return the side in pixels of the patches that a vision transformer works on, else 1."""
    # Most have a layer `patch_embed`, networks of timm's NaFlexVit `embeds`, others neither.
    for module in (getattr(body, "patch_embed", None), getattr(body, "embeds", None), body):
        size: Any = getattr(module, "patch_size", 1)
        size = size[0] if isinstance(size, (tuple, list)) else size
        if isinstance(size, int) and size > 1:
            return size
    return 1


def _require_torchvision(model: str) -> None:
    """Raise an error with similar names if torchvision has no classification network ``model``."""
    from torchvision import models  # slow to import

    if model not in (names := models.list_models(module=models)):
        similar = ", ".join(get_close_matches(model, names, 5, 0.3)) or "resnet18, inception_v3"
        raise SettingsError(
            "network",
            f"torchvision:{model}",
            f"torchvision has no such classification network; choose one such as {similar}",
        )


def _torchvision_body(model: str, side: int | None) -> tuple[nn.Module, tuple[str, ...]]:
    """Build a torchvision network without its last layer and without auxiliary classifiers."""
    from torchvision import models

    options: dict[str, Any] = {}
    if side is not None and model.startswith("vit_"):
        options = {"image_size": side}
    if model in ("inception_v3", "googlenet"):
        # Their weights expect pixels in [-1, 1]; with transform_input the networks convert them.
        options = {"aux_logits": False, "transform_input": True, "init_weights": True}
    body: nn.Module = models.get_model(model, weights=None, **options)
    weighted_layers = [
        path for path, module in body.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    last_layer = weighted_layers[-1]
    body.set_submodule(last_layer, nn.Identity())
    return body, (f"{last_layer}.", "AuxLogits.", "aux1.", "aux2.")


def _require_timm(name: str, model: str) -> None:
    """Raise an error if timm is missing or has no such network, with similar names."""
    try:
        import timm  # slow to import
    except ImportError as error:
        raise SettingsError(
            "network",
            name,
            "needs the package timm; run pip install timm",
        ) from error
    if name in EFFICIENTNETS:
        return
    known = ":" not in model and timm.is_model(model)
    if not known:
        matches = get_close_matches(model.split(".")[0], timm.list_models(), 5, 0.3)
        similar = ", ".join(matches) or "resnet18, efficientnet_b0"
        raise SettingsError(
            "network", name, f"timm has no such network; choose one such as {similar}"
        )
    architecture, _, tag = model.partition(".")
    tags = [full.partition(".")[2] for full in timm.models.get_arch_pretrained_cfgs(architecture)]
    if tag and tag not in tags:
        choice = ", ".join(tags) or "the name without a tag"
        raise SettingsError(
            "network", name, f"timm has no weights {tag} of {architecture}; choose {choice}"
        )


def _timm_body(model: str, side: int | None) -> tuple[nn.Module, tuple[str, ...]]:
    """Build a timm network without its classifier.

    Its pooling stays: without classes, timm returns pooled features.
    """
    import timm

    options: dict[str, Any] = {}
    config: Any = timm.get_pretrained_cfg(model)
    if side is not None and config and config.fixed_input_size:
        options = {"img_size": side}  # number of position embeddings, or size of windows
    body: nn.Module = timm.create_model(model, pretrained=False, num_classes=0, **options)
    built_config: Any = body.pretrained_cfg
    classifiers = built_config.get("classifier") or ()
    if isinstance(classifiers, str):
        classifiers = (classifiers,)
    return body, tuple(_absent_prefix(body, classifier) for classifier in classifiers)


def _absent_prefix(body: nn.Module, classifier: str) -> str:
    """Return the prefix of a classifier's weights, and of a normalisation that went with it."""
    module = f"{classifier.partition('.')[0]}."
    has_rest = any(name.startswith(module) for name in body.state_dict())
    return f"{classifier}." if has_rest else module
