"""Decide whether two checkpoints belong to the same run."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipeline.checkpoint import read_header
from pipeline.data.dataset import Dataset
from stages.errors import CheckpointError
from stages.network.pretrained import PretrainedWeights
from stages.settings import ClassifySettings, EmbedSettings


def embedding_identity(
    data: Dataset, settings: EmbedSettings, pretrained: PretrainedWeights | None
) -> dict[str, Any]:
    """What makes a stage one run the same run: its images, how they were read and split, its settings.

    A file of weights counts by what it holds, wherever it lies.
    """
    if pretrained and settings.weights != "default":
        settings = replace(settings, weights=pretrained.digest[:12])
    return {
        "fingerprint": data.fingerprint,
        "read": asdict(data.read),
        "settings": asdict(settings),
    }


def classifier_identity(embedding: Mapping[str, Any], settings: ClassifySettings) -> dict[str, Any]:
    """The same of stage two, from the embedding's record."""
    return {
        "fingerprint": embedding["fingerprint"],
        "read": embedding["read"],
        "settings": asdict(settings),
        "embedding_settings": embedding["settings"],
    }


def refuse_to_replace(path: Path, kind: str, identity: Mapping[str, Any], force: bool) -> None:
    """Never replace another run's checkpoint unasked."""
    if force or not path.exists():
        return
    header = read_header(path)
    if header.kind != kind:
        raise CheckpointError(
            f"{path}: holds a checkpoint of kind {header.kind}; give another --out, or --force to replace it"
        )
    if differing := describe_differences(identity, header.record):
        raise CheckpointError(
            f"{path}: holds {differing}; give another --out, or --force to replace it"
        )


def describe_differences(wanted: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """In words, what another run a record is of; empty if it is of the same."""
    for name, value in json.loads(json.dumps(wanted)).items():
        found = record.get(name)
        if found == value:
            continue
        if name == "fingerprint":
            return f"a run on other images, {record.get('source', 'or of another split')}"
        old, new = (one if isinstance(one, dict) else {name: one} for one in (found, value))
        stage = "its embedding's " if name == "embedding_settings" else ""
        return f"a run with {stage}" + ", ".join(
            f"{key.replace('_', '-')} {old.get(key)}, not {new[key]}"
            for key in new
            if old.get(key) != new[key]
        )
    return ""
