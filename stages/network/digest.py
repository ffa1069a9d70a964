"""SHA-256 digest of a network's tensors."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class TensorBytes(NamedTuple):
    """A tensor whose values need not be in memory.

    Attributes:
        dtype: Its type.
        shape: Its shape.
        blocks: Returns the bytes of the values in order, in blocks of any size. It can be called
            again.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[bytes]]


def tensor_bytes(tensor: Tensor) -> TensorBytes:
    """Return the values of a tensor as bytes.

    Args:
        tensor: Tensor on any device and in any memory layout.
    """
    values = tensor.detach().cpu().contiguous()
    return TensorBytes(
        values.dtype,
        tuple(values.shape),
        lambda: [values.reshape(-1).view(torch.uint8).numpy().tobytes()],
    )


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
        _update(digest, name, tensor_bytes(tensors[name]))
    return digest.hexdigest()


def streamed_digest(tensors: Mapping[str, TensorBytes]) -> str:
    """Compute the digest of :func:`state_digest` for tensors that need not be in memory.

    Args:
        tensors: Tensors by name.

    Example:
        >>> weights = {"a": torch.zeros(2)}
        >>> streamed_digest({"a": tensor_bytes(weights["a"])}) == state_digest(weights)
        True
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        _update(digest, name, tensors[name])
    return digest.hexdigest()


def _update(digest: "hashlib._Hash", name: str, tensor: TensorBytes) -> None:
    """Add a tensor to a digest."""
    digest.update(f"{name}\0{tensor.dtype}\0{tensor.shape}\0".encode())
    for block in tensor.blocks():
        digest.update(block)
