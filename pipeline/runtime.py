"""The machine: device, precision, threads, versions. Nothing else in the project asks about them."""

import importlib.metadata
import platform
import warnings

import torch

from stages.errors import SettingsError

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "fp32", "bf16")


def start(device: str, threads: int | None) -> torch.device:
    """Choose the device and make what runs on it repeatable.

    device: one of `DEVICES`; `auto` takes CUDA where there is one, else the CPU. threads: of the CPU, None: torch's choice.
    Raises SettingsError for a device that this machine lacks.
    """
    if threads is not None:
        if threads < 1:
            raise SettingsError(f"--threads {threads}: out of range; use at least 1")
        torch.set_num_threads(threads)
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    chosen = ("cuda" if available["cuda"] else "cpu") if device == "auto" else device
    if not available[chosen]:
        found = ", ".join(name for name, there in available.items() if there)
        raise SettingsError(f"--device {device}: not on this machine, which has {found}; use one of these, or auto")
    # On CUDA some operations have no deterministic form: there the rest is, and a warning each would help nobody.
    torch.use_deterministic_algorithms(True, warn_only=chosen != "cpu")
    # Filling fresh memory would find reads of it, of which there are none, at a seventh of the training time.
    torch.utils.deterministic.fill_uninitialized_memory = False
    if chosen != "cpu":
        warnings.filterwarnings("ignore", message=".*deterministic.*", category=UserWarning)
    return torch.device(chosen)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """What training computes convolutions in: `auto` is bfloat16 where the processor or GPU has it, else float32."""
    if name == "auto":
        if device.type == "cuda":
            name = "bf16" if torch.cuda.is_bf16_supported() else "fp32"
        else:
            name = "bf16" if device.type == "cpu" and _cpu_has_bfloat16() else "fp32"
    return torch.bfloat16 if name == "bf16" else torch.float32


def _cpu_has_bfloat16() -> bool:
    """Emulated bfloat16 is slower than float32, so only instructions for it count."""
    found: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # older torch: not known, so float32
    return any(bool(found.get(name)) for name in ("avx512_bf16", "amx_bf16", "sve_bf16", "bf16"))


def versions() -> dict[str, str]:
    """Of what a result depends on."""
    packages = ("torch", "torchvision", "numpy", "scikit-learn", "scipy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}
