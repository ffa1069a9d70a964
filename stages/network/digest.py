"""SHA-256 digest of a network's tensors."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def state_digest(tensors: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 digest of named tensors.

    The digest covers names, dtypes, shapes and values. It does not depend on the order of the
    tensors, their memory layout or their device.

    Args:
        tensors: Tensors by name, such as the ``state_dict()`` of a module.

    Returns:
        The digest as 64 hexadecimal digits.

    Example:
        >>> weights = {"a": torch.zeros(2), "b": torch.ones(3)}
        >>> state_digest(weights) == state_digest(dict(reversed(weights.items())))
        True
        >>> state_digest(weights) == state_digest({**weights, "a": torch.ones(2)})
        False
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
