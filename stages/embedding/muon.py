"""Muon: momentum whose steps are orthogonal matrices, for the weights of convolutions and layers.

AdamW divides each coordinate of a step by its own scale. Muon scales the directions of a whole
matrix instead: all singular values of its step are near 1, so no few directions dominate. It needs
fewer steps to the same accuracy; `benchmarks/defaults.py` has the measurements.

References:
    Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks",
    https://kellerjordan.github.io/posts/muon/.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stages.eager_optimiser import EagerOptimiser

MOMENTUM = 0.95
# Coefficients of the polynomial a s + b s^3 + c s^5. Applied four times, it takes every singular
# value s in [0.0052, 1] to between 0.68 and 1.21. Jordan et al. apply it five times, which was not
# more accurate in `benchmarks/defaults.py`.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 4


def orthogonal(matrix: Tensor) -> Tensor:
    """Replace the singular values of a matrix by numbers near 1.

    The result is about U V' for the singular value decomposition U S V'. The polynomial of Jordan
    et al. is applied to the Gram matrix of the shorter side, (m, m), and the factors are collected,
    so that the long side n enters two products only, instead of three in each iteration.

    Args:
        matrix: Floating point, shape (m, n).

    Returns:
        Matrix of the same shape and dtype; zeros for zeros.

    Example:
        >>> orthogonal(torch.diag(torch.tensor([3.0, 0.5]))).diag().sub(1).abs().max() < 0.4
        tensor(True)
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.T).T
    a, b, c = COEFFICIENTS
    gram = matrix @ matrix.T  # (m, m)
    norm = gram.trace().sqrt().clamp(min=1e-15)  # its square must not underflow
    gram /= norm**2  # singular values of matrix / norm are at most 1
    product = torch.eye(len(gram), dtype=matrix.dtype, device=matrix.device) / norm
    for iteration in range(ITERATIONS):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor @ product
        if iteration < ITERATIONS - 1:
            gram = factor @ gram @ factor  # polynomials of one matrix commute
    result: Tensor = product @ matrix
    return result


# Without the wrapper that imports torch's compiler.
_adamw_step = inspect.unwrap(torch.optim.AdamW.step)


class Muon(EagerOptimiser, torch.optim.AdamW):
    """Muon for the parameter groups with ``orthogonal=True``, AdamW for the others.

    A tensor of shape (m, ...) is taken as a matrix (m, n). Its norm is kept at sqrt(m), that of an
    orthogonal matrix, so that the learning rate is the share of the weights that a step changes.
    This fits weights whose scale has no effect, because BatchNorm or L2 normalisation follows.

    Args:
        groups: Parameter groups.
        weight_decay: Weight decay of AdamW.
    """

    def __init__(self, groups: list[dict[str, Any]], *, weight_decay: float) -> None:
        super().__init__(groups, weight_decay=weight_decay, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take one step. A group with ``orthogonal`` has no gradients afterwards.

        Args:
            closure: Not supported.
        """
        assert closure is None
        for group in self.param_groups:
            if group.get("orthogonal", False):
                for weights in group["params"]:
                    self._orthogonal_step(weights, group["lr"])
        _adamw_step(self)  # it skips parameters without a gradient

    def _orthogonal_step(self, weights: Tensor, rate: float) -> None:
        if weights.grad is None:
            return
        gradient, weights.grad = weights.grad, None
        state = self.state[weights]
        if not state:
            state["step"] = torch.zeros(())  # AdamW requires it when a state is restored
            state["momentum"] = torch.zeros_like(weights)
        state["step"] += 1
        momentum = state["momentum"].mul_(MOMENTUM).add_(gradient)
        direction = gradient.add(momentum, alpha=MOMENTUM).flatten(1)  # Nesterov
        rows = len(weights)
        weights.mul_(rows**0.5 / weights.norm().clamp(min=1e-20))
        weights.sub_(orthogonal(direction).view(weights.shape), alpha=rate)
