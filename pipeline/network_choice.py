"""Choose the network that ``--network auto`` stands for."""

from dataclasses import replace
from typing import NamedTuple

from pipeline.context import RunContext
from stages.settings import AUTO, EmbedSettings, ReadSettings


class NetworkChoice(NamedTuple):
    """Settings without ``auto``.

    Attributes:
        read: How to read the images.
        settings: Settings of stage one, with the chosen network.
        reason: Why it was chosen, one sentence. Empty if the settings name a network.
    """

    read: ReadSettings
    settings: EmbedSettings
    reason: str


def choose_network(
    source: object, read: ReadSettings, settings: EmbedSettings, context: RunContext
) -> NetworkChoice:
    """Replace ``auto`` in the settings by a network that suits the images.

    Args:
        source: Source of the images, or a data set that is already read.
        read: How to read the source.
        settings: Settings of stage one.
        context: Cache, download and output options.

    Returns:
        The settings; those given, unless the network is ``auto``.
    """
    if settings.network != AUTO:
        return NetworkChoice(read, settings, "")
    return NetworkChoice(read, replace(settings, network="conv"), "")
