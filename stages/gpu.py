"""Copies to a device, and the free memory of a GPU."""

import torch
from torch import Tensor


def copy_to(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; with CUDA, without waiting for the device.

    A plain copy waits until the GPU has done all work so far. Only CUDA may be copied to without
    waiting: other devices could read the memory of a temporary tensor after it has been freed.

    Args:
        tensor: Any tensor. It is returned unchanged if it is on the device.
        device: Device of the result.

    Example:
        >>> copy_to(torch.ones(2), torch.device("cpu"))
        tensor([1., 1.])
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def free_memory(device: torch.device) -> int:
    """Return the free memory of a GPU of CUDA in bytes, 0 for another device."""
    if device.type != "cuda":
        return 0
    kept_for_reuse = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept_for_reuse
