"""Optimisers that do not load torch's compiler, whose import takes 1.5 seconds."""

import inspect

import torch


class EagerOptimiser(torch.optim.Optimizer):
    """Base class that goes before an optimiser of torch.

    torch wraps these methods so that its compiler skips them, and the wrapper imports the compiler
    at the first call. Nothing is compiled here, so the plain methods do the same.

    Example:
        >>> class SGD(EagerOptimiser, torch.optim.SGD):
        ...     pass
        >>> SGD([torch.zeros(1)], lr=0.1).param_groups[0]["lr"]
        0.1
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
