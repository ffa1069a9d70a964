"""Layers that depend on the whole batch, in a network that gets one rank's rows of it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from stages.distributed import rank_and_world_size
from stages.network.batch_norm import batch_norm


def as_whole_batch(own: slice) -> AbstractContextManager[Any]:
    """Let a network compute this rank's rows as a single process computes the whole batch.

    Within the ``with`` block, BatchNorm uses the statistics of all ranks' rows, and dropout and
    stochastic depth draw random numbers for the whole batch. Every rank must run the same layers
    and start with the same state of torch's generator. It then also ends with the same state, that
    of a single process. In a single process nothing changes.

    The block replaces functions instead of layers. So it holds for the layers of libraries that
    are derived from BatchNorm and also apply an activation, and the network itself and the names
    of its weights stay the same.

    Args:
        own: Rows of this rank, from :func:`stages.distributed.rank_slice`.

    Returns:
        Context manager for the forward pass.
    """
    if rank_and_world_size()[1] == 1:
        return nullcontext()
    return _WholeBatch(own)


class _WholeBatch(TorchFunctionMode):
    """Replace functions of torch by those of the whole batch."""

    def __init__(self, own: slice) -> None:
        super().__init__()
        self.own = own

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return batch_norm(*args, **kwargs)
        if func is F.dropout and self._has_rows(args[0]):
            return self._dropout(*args, **kwargs)
        if func is Tensor.bernoulli_ and self._has_rows(args[0]):  # stochastic depth
            return self._bernoulli(*args, **kwargs)
        return func(*args, **kwargs)

    def _has_rows(self, values: Tensor) -> bool:
        """Return True if each image has equally many rows; one number may hold for all images."""
        return values.ndim > 0 and len(values) * rank_and_world_size()[1] % self.own.stop == 0

    def _dropout(
        self, values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0:
            return values
        mask = self._own_rows(F.dropout(torch.ones_like(self._whole(values)), p))
        return values.mul_(mask) if inplace else values * mask

    def _bernoulli(self, values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return values.copy_(self._own_rows(self._whole(values).bernoulli_(*args, **kwargs)))

    def _whole(self, values: Tensor) -> Tensor:
        """Return a tensor with as many rows as the whole batch has, in the same layout."""
        return torch.cat([values.detach()] * rank_and_world_size()[1])

    def _own_rows(self, whole: Tensor) -> Tensor:
        """Return this rank's rows. An image may have several, such as its windows."""
        per_image = whole.view(self.own.stop, -1, *whole.shape[1:])
        return per_image[self.own].flatten(0, 1)
