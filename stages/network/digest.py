"""SHA-256 digest of a network's tensors."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def state_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: names, dtypes, shapes and values, whatever their memory layout, order or device."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
