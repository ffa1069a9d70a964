"""Inputs that several commands share."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.context import RunContext
from pipeline.data.audit import audit_source, audit_warnings
from pipeline.data.dataset import Dataset
from pipeline.data.sources import load_dataset
from pipeline.data.trunk_features import cache_trunk_features
from pipeline.files import default_cache
from pipeline.processes import assert_equal_across_ranks, main_process_first
from pipeline.weights import enlargement_notes, load_weights, with_pretrained_size
from stages.classifier.choose_k import choose_k
from stages.embedding.library_loss import new_library_loss
from stages.errors import DataError
from stages.evaluation.knn import default_k
from stages.network.embedding_net import EmbeddingNet
from stages.network.pretrained import PretrainedWeights
from stages.settings import EmbedSettings, ReadSettings


@dataclass(frozen=True, eq=False)
class EmbedInputs:
    """Inputs of stage one that do not depend on the seed.

    Attributes:
        data: Images, read and split.
        pretrained: Initial weights of the trunk. None: random weights.
        warnings: Problems of the images that an audit has found, as messages.
        network_choice: The network that ``auto`` stands for, and why. Empty if it was named.
    """

    data: Dataset
    pretrained: PretrainedWeights | None
    warnings: tuple[str, ...]
    network_choice: str = ""


def prepare_inputs(
    source: str | Dataset | EmbedInputs,
    read: ReadSettings,
    settings: EmbedSettings,
    context: RunContext,
) -> EmbedInputs:
    """Load the images and the initial weights of stage one.

    Args:
        source: Source of the images, a data set that is already read, or prepared inputs, which
            are returned unchanged.
        read: How to read and split the source.
        settings: Settings of stage one.
        context: Device and output of the run, already started.

    Returns:
        The inputs of :func:`pipeline.commands.embed.embed`.

    Raises:
        DataError: If the images cannot be used for training.
        CheckpointError: If the weights cannot be loaded.
        SettingsError: If the network is unknown, or the loss or a parameter of it.
    """
    if isinstance(source, EmbedInputs):
        return source
    new_library_loss(settings, torch.arange(2))  # finds wrong parameters before images are read
    read = with_pretrained_size(read, settings)
    pretrained = load_weights(settings)
    data = load_data(source, read, context)
    say_network_notes(settings, data, context)
    assert_equal_across_ranks(
        data.source, f"fingerprint {data.fingerprint[:12]}", "give every machine the same images"
    )
    return with_audit(data, pretrained)


def with_audit(data: Dataset, pretrained: PretrainedWeights | None) -> EmbedInputs:
    """Return inputs of stage one together with the warnings of an audit."""
    return EmbedInputs(
        data=data,
        pretrained=pretrained,
        warnings=tuple(audit_warnings(audit_source(data.origin, dataset=data))),
    )


def load_data(source: str | Dataset, read: ReadSettings, context: RunContext) -> Dataset:
    """Read a source and show its notes. A data set is returned unchanged."""
    if isinstance(source, Dataset):
        return source
    data = main_process_first(
        lambda: load_dataset(
            source,
            read,
            cache=context.cache,
            root=context.root,
            download=context.download,
            progress=context.show,
        )
    )
    for note in data.notes:
        context.say(f"note: {note}")
    return data


def source_files(source: object) -> list[Path]:
    """Return the file that a source is, a manifest, so that no output replaces it."""
    is_file = isinstance(source, str) and os.path.isfile(source)
    return [Path(str(source))] if is_file else []


def say_network_notes(settings: EmbedSettings, data: Dataset, context: RunContext) -> None:
    """Say if the network enlarges the images, or starts with random weights unasked."""
    notes = enlargement_notes(settings, data.train.store.shape[-1])
    is_random = settings.from_library and settings.weights == "none"
    if is_random and settings.trunk != "frozen" and "weights" not in context.given:
        notes.append(
            f"{settings.network} starts with random weights; for pretrained ones add "
            "--weights default --trunk frozen"
        )
    for note in notes:
        context.say(f"note: {note}")


def choose_k_for(queries: Tensor | None, gallery: Tensor, data: Dataset) -> int:
    """Return kNN's k, chosen on validation, or from the class sizes if there is no validation.

    Args:
        queries: Validation vectors, float32, shape (Q, D), if there are any.
        gallery: Training vectors, float32, shape (N, D).
        data: Data set that the vectors belong to.
    """
    if queries is None or data.validation is None:
        return default_k(data.train.labels)
    return choose_k(queries, data.validation.labels, gallery, data.train.labels)


def add_trunk_features(
    data: Dataset, network: EmbeddingNet, device: torch.device, context: RunContext
) -> Dataset:
    """Return the data set with the cached features of a frozen trunk, else unchanged."""
    return main_process_first(
        lambda: cache_trunk_features(
            data, network, cache=context.cache or default_cache(), device=device, show=context.show
        )
    )


def reload_dataset(
    record: Mapping[str, Any], source: str | Dataset | None, context: RunContext
) -> Dataset:
    """Read the images that a checkpoint was trained on, with the same split.

    Args:
        record: Record of the checkpoint.
        source: Where the images are now. None: where they were for the checkpoint.
        context: Cache and download options.

    Returns:
        The data set.

    Raises:
        DataError: If the images or their split are not those of the checkpoint.
    """
    if context.root is None and record.get("root"):
        context = replace(context, root=Path(record["root"]))
    try:
        data = load_data(source or record["source"], ReadSettings(**record["read"]), context)
    except DataError as error:
        if source is not None:
            raise
        raise DataError(
            f"{error}; if the images have moved, give their place with --data"
        ) from None
    if data.fingerprint != record["fingerprint"]:
        raise DataError(
            f"{data.source}: not the images that the checkpoint was trained on (fingerprint "
            f"{data.fingerprint[:12]} instead of {record['fingerprint'][:12]}); give the "
            "original images with --data, or train again with `pipeline embed`"
        )
    return data
