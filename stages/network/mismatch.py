"""Differences between the tensors of two states."""

from collections.abc import Mapping, Sequence

from torch import Tensor


def describe_mismatch(
    expected: Mapping[str, Tensor], given: Mapping[str, Tensor], *, dtypes: bool = True
) -> str:
    """Describe how the names, shapes and dtypes of tensors differ from the expected ones.

    Args:
        expected: Tensors by name, on any device.
        given: The tensors to compare with them.
        dtypes: False to accept any dtype.

    Returns:
        A phrase that names up to three tensors per kind of difference; empty if all fit.

    Example:
        >>> import torch
        >>> describe_mismatch({"a": torch.zeros(2)}, {"a": torch.zeros(3), "b": torch.zeros(1)})
        'unknown b; wrong shape: a (3,) instead of (2,)'
    """
    missing = [name for name in expected if name not in given]
    unknown = [name for name in given if name not in expected]
    reshaped, retyped = [], []
    for name, value in expected.items():
        other = given.get(name, value)
        if other.shape != value.shape:
            reshaped.append(f"{name} {tuple(other.shape)} instead of {tuple(value.shape)}")
        elif dtypes and other.dtype != value.dtype:
            retyped.append(f"{name} {other.dtype} instead of {value.dtype}")
    problems = {
        "missing": missing,
        "unknown": unknown,
        "wrong shape:": reshaped,
        "wrong dtype:": retyped,
    }
    listed = [f"{problem} {_first_three(names)}" for problem, names in problems.items() if names]
    return "; ".join(listed)


def _first_three(names: Sequence[str]) -> str:
    listed = ", ".join(names[:3])
    return f"{listed} and {len(names) - 3} more" if len(names) > 3 else listed
