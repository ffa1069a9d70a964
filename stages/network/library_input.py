"""Image sides that the networks of torchvision and timm run on."""

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stages.errors import SettingsError
from stages.network.library_bodies import body_builder, patch_size

MIN_SIDE = 32  # smallest side that is tried
STEP = 32  # most networks halve the side up to five times
MAX_PROBED_SIDE = 512  # largest multiple of STEP that is tried, if the images are smaller
MULTIPLES = 8  # multiples of the patch size that are tried one after the other


class LibraryInput(NamedTuple):
    """Input and output of a library network.

    Attributes:
        side: Side in pixels of the images that the network runs on.
        features: Number of features.
        patch: Side in pixels of the patches of a vision transformer, else 1.
        parameters: Number of the network's parameters.
    """

    side: int
    features: int
    patch: int
    parameters: int


@cache
def library_input(name: str, size: int, side: int | None = None) -> LibraryInput:
    """Find the smallest image side, from ``size`` up, that a library network runs on.

    Many networks run on some sides only: multiples of their patch size or of 32, at least 75
    pixels, or a single side. The sides are tried on the meta device, which computes shapes without
    values, so that large networks take neither memory nor time.

    Args:
        name: ``efficientnet-liteN``, ``torchvision:NAME`` or ``timm:NAME``.
        size: Side of the square images in pixels.
        side: The only side to try, if it is known.

    Returns:
        The side, and the numbers of features and parameters.

    Raises:
        SettingsError: If the library is not installed or has no such network, or if the network
            does not run on images of this size.
    """
    first_error: Exception | None = None
    # Random numbers must not depend on what was tried, nor on what is in the cache.
    with torch.random.fork_rng(devices=[]):
        for device in ("meta", "cpu"):  # a few networks cannot be built on the meta device
            try:
                with torch.device(device):
                    return _first_possible(name, size, side)
            except SettingsError:
                raise
            except Exception as error:  # networks raise many kinds for a size they don't take
                first_error = first_error or error
    raise _impossible(name, size, first_error)


def _impossible(name: str, size: int, error: Exception | None, possible: int = 0) -> SettingsError:
    """Return the error for a size, with a side that is possible if it is known."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    advice = f"a size of at most {possible}" if possible else "another size or network"
    problem = f"does not run on images of {size} x {size} ({reason}); choose {advice}"
    return SettingsError("network", name, problem)


def enlargement(name: str, size: int) -> str:
    """Describe how a library network enlarges images that it does not take as they are.

    Args:
        name: Name of the network, as for :func:`library_input`.
        size: Side of the square images in pixels.

    Returns:
        A phrase; empty if it takes the images as they are.

    Raises:
        SettingsError: As for :func:`library_input`.
    """
    found = library_input(name, size)
    if found.side == size:
        return ""
    if size % found.patch:
        reason = f"takes multiples of {found.patch} pixels"
    else:
        reason = f"does not run on {size} x {size} pixels"
    return f"{name} {reason}: images are enlarged from {size} to {found.side}"


def count_features(body: nn.Module, side: int) -> int:
    """Return the number of features that a network computes, by applying it to a black image.

    Args:
        body: The network. It is set to evaluation mode.
        side: Side of the image in pixels.
    """
    with torch.no_grad():
        features: Tensor = body.eval()(torch.zeros(1, 3, side, side))
    return features.flatten(1).shape[1]


def _first_possible(name: str, size: int, side: int | None) -> LibraryInput:
    """Try sides on the current device.

    Raises:
        SettingsError: If none is possible, but the side that the network was designed for is.
        Exception: That of the first side, if the network cannot be tried on this device.
    """
    build = body_builder(name)
    body, _ = build(None)
    parameters = sum(parameter.numel() for parameter in body.parameters())
    patch, designed = patch_size(body), _designed_side(body)
    first_error: Exception | None = None
    for candidate in [side] if side else _candidate_sides(size, patch, designed):
        try:
            features = count_features(build(candidate)[0], candidate)
        except Exception as error:  # networks raise many kinds
            first_error = first_error or error
        else:
            return LibraryInput(candidate, features, patch, parameters)
    count_features(body, designed)  # raises an error if the device is the problem
    raise _impossible(name, size, first_error, designed)


def _candidate_sides(size: int, patch: int, designed: int) -> list[int]:
    """Return the sides to try, ascending; a transformer's are multiples of its patch size.

    Some transformers run on other sides too, but leave out the last columns and rows of pixels.
    """
    smallest = max(size, MIN_SIDE)
    first = patch * math.ceil(smallest / patch)
    sides = {first + patch * index for index in range(MULTIPLES if patch > 1 else 1)}
    step = math.lcm(STEP, patch)
    sides.update(range(step * math.ceil(smallest / step), MAX_PROBED_SIDE + 1, step))
    if designed >= smallest:
        sides.add(designed)
    return sorted(sides)


def _designed_side(body: nn.Module) -> int:
    """Return the image side that timm states for a network; 224 for networks of torchvision."""
    config = getattr(body, "pretrained_cfg", None) or {}
    return int(config.get("input_size", (3, 224, 224))[-1])
