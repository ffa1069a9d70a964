"""Inputs that several commands share."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.context import RunContext
from pipeline.data.dataset import Dataset
from pipeline.data.sources import load_dataset
from pipeline.data.trunk_features import cache_trunk_features
from pipeline.files import default_cache
from pipeline.processes import main_process_first
from stages.classifier.calibration import choose_k
from stages.errors import DataError
from stages.evaluation.knn import default_k
from stages.network.embedding_net import EmbeddingNet
from stages.settings import ReadSettings


def load_data(source: str | Dataset, read: ReadSettings, context: RunContext) -> Dataset:
    """Read a source; one that has been read already comes back as it is."""
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


def choose_k_for(queries: Tensor | None, gallery: Tensor, data: Dataset) -> int:
    """k of kNN from validation, or from the class sizes."""
    if queries is None or data.validation is None:
        return default_k(data.train.labels)
    return choose_k(queries, data.validation.labels, gallery, data.train.labels)


def add_trunk_features(
    data: Dataset, network: EmbeddingNet, device: torch.device, context: RunContext
) -> Dataset:
    return main_process_first(
        lambda: cache_trunk_features(
            data, network, cache=context.cache or default_cache(), device=device, show=context.show
        )
    )


def reload_dataset(
    record: Mapping[str, Any], source: str | Dataset | None, context: RunContext
) -> Dataset:
    """The data that a checkpoint was trained on, split the same way."""
    if context.root is None and record.get("root"):
        context = replace(context, root=Path(record["root"]))
    data = load_data(source or record["source"], ReadSettings(**record["read"]), context)
    if data.fingerprint != record["fingerprint"]:
        raise DataError(
            f"{data.source}: not the images that the checkpoint was trained on (fingerprint {data.fingerprint[:12]}, trained on "
            f"{record['fingerprint'][:12]}); give these with --data, or train again with `pipeline embed`"
        )
    return data
