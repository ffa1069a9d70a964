"""Device, precision, determinism and memory settings of the process, and package versions."""

import ctypes
import importlib.metadata
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pipeline.processes import join_process_group, world_size_of_torchrun
from stages.errors import SettingsError

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "fp32", "bf16")
# Typed as Any: its attribute is created while torch is imported, so type checkers do not see it.
DETERMINISTIC: Any = torch.utils.deterministic
THREADS_PER_CORE = 4  # more only cost time and memory
# Capabilities that PyTorch reports for processors with bfloat16 instructions.
BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "sve_bf16", "bf16")


def start_device(device: str, threads: int | None) -> torch.device:
    """Choose the device, turn on deterministic algorithms and join the process group, if any.

    Args:
        device: One of ``DEVICES``. ``auto`` is CUDA if it is available, else the CPU.
        threads: Number of CPU threads. ``None`` keeps PyTorch's choice.

    Returns:
        The chosen device.

    Raises:
        SettingsError: If the device is not available or ``threads`` is out of range.
    """
    if threads is not None:
        most = THREADS_PER_CORE * (os.cpu_count() or 1)
        if not 1 <= threads <= most:
            raise SettingsError("threads", threads, f"out of range; use 1 to {most}")
        torch.set_num_threads(threads)
    chosen = _choose_device(device)
    _use_deterministic_algorithms(chosen)
    if world_size_of_torchrun() > 1 and not dist.is_initialized():
        join_process_group(chosen)
    return torch.device(chosen)


@contextmanager
def restore_torch_settings() -> Iterator[None]:
    """Restore at the end the settings that :func:`start_device` changes for the whole process.

    The commands' functions are decorated with it, so that a Python program that calls them keeps
    its own settings.
    """
    mode, threads = torch.get_deterministic_debug_mode(), torch.get_num_threads()
    fill = DETERMINISTIC.fill_uninitialized_memory
    with warnings.catch_warnings():
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(mode)
            DETERMINISTIC.fill_uninitialized_memory = fill
            torch.set_num_threads(threads)


def _choose_device(device: str) -> str:
    available = ["cpu"]
    if torch.cuda.is_available():
        available.append("cuda")
    if torch.backends.mps.is_available():
        available.append("mps")
    if device == "auto":
        return "cuda" if "cuda" in available else "cpu"
    if device not in available:
        raise SettingsError(
            "device", device, f"not on this machine; use auto or {', '.join(available)}"
        )
    return device


def _use_deterministic_algorithms(device: str) -> None:
    """Make two runs with the same seed give the same result.

    On the CPU every operation that training uses has a deterministic version, so a missing one is
    an error. On GPUs some operations have none. They run anyway, and PyTorch's warnings about them
    are hidden because users cannot act on them.
    """
    # Same effect as torch.use_deterministic_algorithms, which takes a second to import
    # torch's compiler.
    torch.set_deterministic_debug_mode("error" if device == "cpu" else "warn")
    # Deterministic mode fills new memory with NaN to expose reads of uninitialised memory.
    # There are no such reads here, and filling takes a seventh of the training time.
    DETERMINISTIC.fill_uninitialized_memory = False
    if device != "cpu":
        warnings.filterwarnings("ignore", message=".*deterministic.*", category=UserWarning)


def keep_freed_memory(device: str = "auto") -> None:
    """Keep freed memory in the process, so that the next training step on a CPU reuses it.

    The command line calls this function. It cannot be undone, so the functions of
    ``pipeline.commands`` leave it to the program that calls them.

    By default glibc returns large blocks to the kernel, and each training step then pays for new
    pages. Keeping them saves a tenth of the training time of small networks and a quarter of that
    of large ones, and needs up to a fifth more memory. The limits are described in mallopt(3).

    Args:
        device: One of ``DEVICES``. Nothing is changed unless it is the CPU.

    Raises:
        SettingsError: If the device is not available.
    """
    if _choose_device(device) != "cpu" or sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        trim_threshold, mmap_threshold = -1, -3
        if not mallopt(mmap_threshold, 2**31 - 1):
            mallopt(mmap_threshold, 2**25)  # the maximum of older glibc versions
        mallopt(trim_threshold, 2**31 - 1)


def choose_precision(
    name: str, device: torch.device, network: nn.Module | None = None
) -> torch.dtype:
    """Choose the data type in which training computes.

    Args:
        name: One of ``PRECISIONS``. ``auto`` is bfloat16 if the hardware supports it and the
            network gains from it, else float32.
        device: Device of the training.
        network: Network to train. On a CPU, ``auto`` is float32 for networks that
            :func:`prefers_float32`.

    Returns:
        ``torch.bfloat16`` or ``torch.float32``.
    """
    if name == "auto":
        if device.type == "cuda":
            # Older GPUs emulate bfloat16, which is slower than float32.
            bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            bfloat16 = device.type == "cpu" and _cpu_has_bfloat16()
            bfloat16 = bfloat16 and not (network and prefers_float32(network))
        name = "bf16" if bfloat16 else "fp32"
    return torch.bfloat16 if name == "bf16" else torch.float32


def prefers_float32(network: nn.Module) -> bool:
    """Return True if a CPU trains the network faster in float32 than in bfloat16.

    This holds for networks with depthwise convolutions and BatchNorm: they gain nothing from
    bfloat16 and spend time on conversions. Measured on networks of torchvision and timm: bfloat16
    takes 0.9 to 1.5 times as long for EfficientNets, MobileNets and MnasNet, and 0.4 to 0.7 times
    as long for ConvNeXt, ViT and networks without depthwise convolutions.

    Args:
        network: Network to train.

    Returns:
        True if the network has both depthwise convolutions and BatchNorm layers.

    Example:
        >>> prefers_float32(nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8)))
        True
        >>> prefers_float32(nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)))
        False
    """
    modules = list(network.modules())
    depthwise = any(
        isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
        for module in modules
    )
    return depthwise and any(isinstance(module, nn.BatchNorm2d) for module in modules)


def _cpu_has_bfloat16() -> bool:
    """Return True if the processor has bfloat16 instructions; emulation is slower than float32."""
    # Older versions of torch cannot tell; float32 is then the safe choice.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(bool(capabilities.get(name)) for name in BFLOAT16_INSTRUCTIONS)


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that influence results."""
    packages = ("torch", "torchvision", "numpy", "scikit-learn", "scipy")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error means that memory has run out, on the CPU or on a GPU.

    Args:
        error: Any error.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
