"""The machine: device, precision, threads, processes, signals, versions. Nothing else in the project asks about them."""

import ctypes
import importlib.metadata
import os
import platform
import sys
import warnings

import torch
import torch.distributed as dist
from torch import nn

from pipeline.processes import join_process_group
from stages.errors import SettingsError

DEVICES = ("auto", "cpu", "cuda", "mps")


PRECISIONS = ("auto", "fp32", "bf16")


def start_device(device: str, threads: int | None) -> torch.device:
    """Choose the device, make what runs on it repeatable, and join the other processes if `torchrun` started several.

    device: one of `DEVICES`; `auto` takes CUDA where there is one, else the CPU. threads: of the CPU, None: torch's choice.
    Raises SettingsError for a device that this machine lacks.
    """
    if threads is not None:
        if threads < 1:
            raise SettingsError("threads", threads, "out of range; use at least 1")
        torch.set_num_threads(threads)
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    chosen = ("cuda" if available["cuda"] else "cpu") if device == "auto" else device
    if not available[chosen]:
        found = ", ".join(name for name, there in available.items() if there)
        raise SettingsError(
            "device", device, f"not on this machine, which has {found}; use one of these, or auto"
        )
    # On CUDA some operations have no deterministic form: there the rest is, and a warning each would help nobody.
    # (`use_deterministic_algorithms` does the same, and imports torch's compiler for a second first.)
    torch.set_deterministic_debug_mode("error" if chosen == "cpu" else "warn")
    # Filling fresh memory would find reads of it, of which there are none, at a seventh of the training time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # made at run time, unseen by types
    if chosen == "cpu":
        _keep_freed_memory()
    else:
        warnings.filterwarnings("ignore", message=".*deterministic.*", category=UserWarning)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        join_process_group(chosen)
    return torch.device(chosen)


def _keep_freed_memory() -> None:
    """Keep what a training step frees for the next one: giving it back to Linux, and getting it page by page again, takes a
    tenth of the time of the small networks, a quarter of that of large ones; keeping it takes up to a fifth more memory. The
    limits are glibc's, see mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        trim_threshold, mmap_threshold = -1, -3
        if not mallopt(mmap_threshold, 2**31 - 1):
            mallopt(mmap_threshold, 2**25)  # the most that an older glibc takes
        mallopt(trim_threshold, 2**31 - 1)


def choose_precision(
    name: str, device: torch.device, network: nn.Module | None = None
) -> torch.dtype:
    """What training computes convolutions in: `auto` is bfloat16 where the processor or GPU has it, else float32.

    network: if given, `auto` is float32 on a CPU for one that `wants_float32`.
    """
    if name == "auto":
        if device.type == "cuda":
            name = "bf16" if torch.cuda.is_bf16_supported() else "fp32"
        else:
            faster = (
                device.type == "cpu"
                and _cpu_has_bfloat16()
                and not (network and prefers_float32(network))
            )
            name = "bf16" if faster else "fp32"
    return torch.bfloat16 if name == "bf16" else torch.float32


def prefers_float32(network: nn.Module) -> bool:
    """Whether CPUs train it faster in float32: depthwise convolutions beside BatchNorm gain nothing from bfloat16, and copy more.

    Measured on torchvision's and timm's networks: the EfficientNets, MobileNets and MnasNet take 0.9 to 1.5 times as long in
    bfloat16, networks without depthwise convolutions, ConvNeXt and ViT 0.4 to 0.7 times.
    """
    modules = list(network.modules())
    depthwise = any(
        isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
        for module in modules
    )
    return depthwise and any(isinstance(module, nn.BatchNorm2d) for module in modules)


def _cpu_has_bfloat16() -> bool:
    """Emulated bfloat16 is slower than float32, so only instructions for it count."""
    found: dict[str, bool] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # older torch: not known, so float32
    return any(bool(found.get(name)) for name in ("avx512_bf16", "amx_bf16", "sve_bf16", "bf16"))


def package_versions() -> dict[str, str]:
    """Of what a result depends on."""
    packages = ("torch", "torchvision", "numpy", "scikit-learn", "scipy")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }
