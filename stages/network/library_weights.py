"""Weights of library networks for another image size or in another format."""

import importlib
import io
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

from torch import Tensor, nn

from stages.errors import CheckpointError
from stages.network.library_bodies import timm_name
from stages.network.mismatch import describe_mismatch
from stages.network.pretrained import LibraryTrunk

PATCHES = "patch_embed.proj.weight"  # in timm, the weights of the layer that embeds patches


def fit_weights(
    trunk: LibraryTrunk, name: str, tensors: Mapping[str, Tensor], *, where: str
) -> dict[str, Tensor]:
    """Return given weights as a library trunk needs them.

    Weights that fit are returned as they are. Otherwise the library's own conversion is applied:
    it resamples the position embeddings of a vision transformer for the trunk's image size, and
    renames the weights of original files, such as those of DINOv2 or CLIP. Then, too, no weight
    may be missing. Weights of the classifier and of auxiliary heads are left out.

    Args:
        trunk: The trunk.
        name: Name of the network, as for :func:`stages.network.pretrained.make_trunk`.
        tensors: Weights and buffers.
        where: Origin of the weights, for the error message.

    Returns:
        Weights and buffers of ``trunk.body``. Counters of BatchNorm may be missing.

    Raises:
        CheckpointError: If a tensor is missing, unknown or of another shape.
    """
    given = _without_heads(trunk, tensors)
    mismatch = _mismatch(trunk, given)
    if mismatch and _have_equal_patches(trunk.body, given):
        converted = _convert(trunk, name, tensors)
        if converted is not None:
            given = _without_heads(trunk, converted)
            mismatch = _mismatch(trunk, given)
    if mismatch:
        raise CheckpointError(
            f"{where}: not the weights of {name} at size {trunk.side} ({mismatch}); give the "
            "weights of this network, or change the network or the size"
        )
    return given


def _without_heads(trunk: LibraryTrunk, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if not name.startswith(trunk.heads)}


def _mismatch(trunk: LibraryTrunk, given: Mapping[str, Tensor]) -> str:
    # Files from before BatchNorm had this counter lack it, and nothing uses it.
    required = {
        name: value
        for name, value in trunk.body.state_dict().items()
        if name in given or not name.endswith("num_batches_tracked")
    }
    return describe_mismatch(required, given, dtypes=False)


def _have_equal_patches(body: nn.Module, given: Mapping[str, Tensor]) -> bool:
    """Return False if timm would resample the weights of a network with another patch size."""
    expected = body.state_dict().get(PATCHES)
    patches = given.get(PATCHES)
    if expected is None or patches is None or patches.ndim != expected.ndim:
        return True
    return tuple(patches.shape) == tuple(expected.shape)


def _convert(
    trunk: LibraryTrunk, name: str, tensors: Mapping[str, Tensor]
) -> Mapping[str, Tensor] | None:
    """Apply the library's conversion. Return None if it has none or cannot convert the weights."""
    copies: dict[str, Any] = dict(tensors)  # conversions change the dictionary
    body: Any = trunk.body
    try:
        if name.startswith("torchvision:vit_"):
            from torchvision.models.vision_transformer import interpolate_embeddings

            resampled: Mapping[str, Tensor] = interpolate_embeddings(
                trunk.side, body.patch_size, copies
            )
            return resampled
        if name.startswith("torchvision:"):
            return None
        import timm

        builder = timm.models.model_entrypoint(timm_name(name).partition(".")[0])
        module = importlib.import_module(builder.__module__)
        convert: Any = getattr(module, "checkpoint_filter_fn", None)
        if convert is None:
            return None
        # One of the conversions prints, and others warn of what timm itself does.
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            converted: Mapping[str, Tensor] = convert(copies, body)
    except Exception:  # conversions raise many kinds for weights of another network
        return None
    return converted
