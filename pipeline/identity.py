"""Decide whether two checkpoints belong to the same run."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from pipeline.data.dataset import Dataset
from pipeline.enrolments import describe_enrolments
from pipeline.tensor_files import read_header
from stages.errors import CheckpointError
from stages.network.pretrained import PretrainedWeights
from stages.settings import ClassifySettings, EmbedSettings

# Settings that earlier versions did not record, with the value that they had.
_ADDED = {field.name: field.default for field in fields(EmbedSettings) if field.metadata}


def embedding_identity(
    data: Dataset, settings: EmbedSettings, pretrained: PretrainedWeights | None
) -> dict[str, Any]:
    """Return what identifies a run of stage one: images, split and settings.

    A file of weights is identified by its content, not by its path.

    Args:
        data: Images of the run.
        settings: Settings of the run.
        pretrained: Initial weights of the trunk, if they are not random.

    Returns:
        The entries ``fingerprint``, ``read`` and ``settings`` of the checkpoint's record.
    """
    if pretrained and settings.weights != "default":
        settings = replace(settings, weights=pretrained.digest[:12])
    return {
        "fingerprint": data.fingerprint,
        "read": asdict(data.read),
        "settings": asdict(settings),
    }


def classifier_identity(embedding: Mapping[str, Any], settings: ClassifySettings) -> dict[str, Any]:
    """Return what identifies a run of stage two.

    Args:
        embedding: Record or identity of the embedding.
        settings: Settings of stage two.

    Returns:
        The entries ``fingerprint``, ``read``, ``settings`` and ``embedding_settings`` of the
        checkpoint's record.
    """
    return {
        "fingerprint": embedding["fingerprint"],
        "read": embedding["read"],
        "settings": asdict(settings),
        "embedding_settings": embedding["settings"],
    }


def refuse_to_replace(path: Path, kind: str, identity: Mapping[str, Any], force: bool) -> None:
    """Raise an error if a checkpoint of another run, or with enrolled images, would be replaced.

    Args:
        path: Checkpoint to write.
        kind: Kind of the checkpoint, ``embedding`` or ``classifier``.
        identity: Identity of the run that will write it.
        force: Accept that another run's checkpoint is replaced.

    Raises:
        CheckpointError: If the file holds another run, enrolled images or another kind of
            checkpoint.
    """
    if force or not path.exists():
        return
    header = read_header(path)
    if header.kind != kind:
        content = f"a checkpoint of kind {header.kind}"
    elif enrolments := describe_enrolments(header.record):
        content = f"a classifier with enrolled images: {'; '.join(enrolments)}"
    else:
        content = describe_differences(identity, header.record)
    if content:
        raise CheckpointError(
            f"{path}: holds {content}; use another --out, or --force to replace it"
        )


def describe_differences(identity: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """Describe how a recorded run differs from another run.

    Args:
        identity: Identity of the other run.
        record: Record of the recorded run.

    Returns:
        A phrase such as ``a run with margin 0.2 instead of 0.1``; empty for the same run.

    Example:
        >>> describe_differences({"settings": {"margin": 0.1}}, {"settings": {"margin": 0.2}})
        'a run with margin 0.2 instead of 0.1'
    """
    if "fingerprint" in identity and identity["fingerprint"] != record.get("fingerprint"):
        source = f" ({record['source']})" if "source" in record else ""
        # Earlier versions took another split of photos, because they decoded them in full.
        jpeg = [run.get("read", {}).get("jpeg", "full") for run in (record, identity)]
        differs = f" with jpeg {jpeg[0]} instead of {jpeg[1]}" if jpeg[0] != jpeg[1] else ""
        return f"a run on other images or another split{source}{differs}"
    # JSON turns tuples into lists, as in the record.
    current = json.loads(json.dumps(identity))
    differences = []
    # Settings before how images are read: the network decides on the size of the images.
    for name in sorted(current, key=lambda name: name == "read"):
        new, old = current[name], record.get(name)
        if not isinstance(new, dict):
            old, new = {name: old}, {name: new}
        before = old or {}
        stage = "its embedding's " if name == "embedding_settings" else ""
        for key, value in new.items():
            earlier = before.get(key, _ADDED.get(key))
            if earlier != value:
                option = f"{stage}{key.replace('_', '-')}"
                differences.append(
                    f"{option} {_shown(key, earlier)} instead of {_shown(key, value)}"
                )
    return f"a run with {', '.join(differences)}" if differences else ""


def _shown(key: str, value: object) -> object:
    """Return a setting as on the command line."""
    if value is None:
        return {"margin": "soft", "patience": "never"}.get(key, "automatic")
    return value
