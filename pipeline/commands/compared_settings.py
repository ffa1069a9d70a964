"""Settings of the networks, losses or mining modes that `pipeline compare` compares."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from stages.errors import SettingsError
from stages.settings import AUTO, MININGS, PML, EmbedSettings

OPTIONS = {"network": "networks", "loss": "losses", "mining": "mining"}  # field -> option
WITHOUT_WEIGHTS = (AUTO, "conv", "conv-deep")
# Settings that belong to a network, a loss or a mining mode, and not to all of them.
PARAMETERS = {"loss_options": "loss", "mining_options": "mining"}  # table -> field of its owner
SPECIFIC = {"network", "weights", "loss", "loss_options", "mining", "mining_options"}


def check_shared(field: str, values: Sequence[str], shared: Mapping[str, Any]) -> None:
    """Check what does not depend on a single network, loss or mining mode.

    Args:
        field: Setting that differs: ``network``, ``loss`` or ``mining``.
        values: Its values.
        shared: The other settings of stage one that are given.

    Raises:
        SettingsError: If a setting is unknown or out of range, there are fewer than two values, a
            value is given twice, or there are weights and no network that takes them.
    """
    if field not in OPTIONS:
        raise SettingsError("field", field, f"cannot be compared; use {', '.join(OPTIONS)}")
    option = OPTIONS[field]
    if len(values) < 2:
        raise SettingsError(option, ",".join(values) or None, "give two or more to compare")
    for value in values:
        if values.count(value) > 1:
            raise SettingsError(option, value, "given twice; use each of them once")
    known = {item.name for item in fields(EmbedSettings)}
    for name in shared:
        if name not in known or name == field:
            raise SettingsError(name, None, "is no setting that all share; leave it out")
    _check_parameters(field, values, shared)
    common = {name: value for name, value in shared.items() if name not in SPECIFIC}
    EmbedSettings(**common)
    networks = values if field == "network" else [shared.get("network", AUTO)]
    weights = shared.get("weights", "none")
    if weights != "none" and all(name in WITHOUT_WEIGHTS for name in networks):
        problem = f"{', '.join(networks)} take no weights; add a network such as efficientnet-lite0"
        raise SettingsError("weights", weights, problem)


def settings_of(field: str, value: str, shared: Mapping[str, Any]) -> EmbedSettings:
    """Return the settings of one network, loss or mining mode.

    Shared settings that do not apply to it keep their defaults: ``weights`` and ``trunk`` for
    ``auto``, ``conv`` and ``conv-deep`` among networks; margin, distance and mining mode of the
    triplet loss for another loss, and a miner of pytorch-metric-learning for the triplet loss;
    parameters of the other kind of loss. Parameters under ``pml:NAME`` apply to that loss or miner
    only.

    Args:
        field: Setting that differs.
        value: Its value.
        shared: The other settings of stage one that are given.

    Raises:
        SettingsError: If the value is unknown or does not fit the other settings.

    Example:
        >>> shared = {"weights": "default", "trunk": "frozen"}
        >>> settings = settings_of("network", "conv", shared)
        >>> settings.weights, settings.trunk
        ('none', 'tune')
    """
    settings = {**shared, field: value}
    if field == "network" and value in WITHOUT_WEIGHTS:
        settings.pop("weights", None)
        settings.pop("trunk", None)
    is_triplet = settings.get("loss", "triplet") == "triplet"
    mining = settings.get("mining", EmbedSettings.mining)
    # A mining mode that is compared must fit; a shared one applies where it fits.
    if field == "loss" and (mining.startswith(PML) if is_triplet else mining in MININGS):
        settings.pop("mining", None)
    if is_triplet:
        settings.pop("loss_options", None)
    elif field == "loss":
        settings.pop("margin", None)
        settings.pop("distance", None)
    if not settings.get("mining", EmbedSettings.mining).startswith(PML):
        settings.pop("mining_options", None)
    for name, owner in PARAMETERS.items():
        if _are_by_name(settings.get(name)):
            settings[name] = settings[name].get(settings[owner])
    return EmbedSettings(**settings)


def _check_parameters(field: str, values: Sequence[str], shared: Mapping[str, Any]) -> None:
    """Check the names of losses or miners that have parameters of their own."""
    for name, owner in PARAMETERS.items():
        if not _are_by_name(shared.get(name)):
            continue
        names = values if field == owner else [shared.get(owner)]
        for key in shared[name]:
            if key not in names:
                problem = f"{key} is not among {', '.join(map(str, names))}; "
                problem += "give each name its parameters, or all the same ones without names"
                raise SettingsError(name, None, problem)


def _are_by_name(options: object) -> bool:
    """Return True for a table with one table per loss or miner, such as ``{"pml:A": {...}}``."""
    return isinstance(options, dict) and any(str(key).startswith(PML) for key in options)
