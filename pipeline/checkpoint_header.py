"""Write and check the header of a checkpoint; see :mod:`pipeline.checkpoint`."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.record import KINDS, parse_record
from pipeline.schema import RecordError
from stages.errors import CheckpointError

FORMAT_VERSION = 2
# The commands that create a file. The data and the embedding are placeholders: a default could
# train on other data than the user's.
COMMANDS = {
    "embedding": "pipeline embed --data SOURCE",
    "classifier": "pipeline classify --embedding FILE",
    "gallery": "pipeline vectors IMAGE...",
    "state": "pipeline embed --data SOURCE",
}


class Header(NamedTuple):
    """Header of a checkpoint file.

    Attributes:
        kind: Kind of checkpoint: ``embedding``, ``classifier``, ``gallery``, ``vectors`` or
            ``state``.
        digest: SHA-256 of the tensors.
        record: Settings, data source, training history and versions.
    """

    kind: str
    digest: str
    record: dict[str, Any]


def make_header(kind: str, digest: str, record: Mapping[str, Any]) -> dict[str, str]:
    """Return the strings to write to the header of a file.

    Args:
        kind: Kind of checkpoint.
        digest: Digest of the tensors.
        record: JSON-serialisable record.

    Raises:
        ValueError: If a number of the record is not finite.
    """
    text = json.dumps(record, allow_nan=False)  # NaN is no JSON; the file would be unreadable
    return {
        "format_version": str(FORMAT_VERSION),
        "kind": kind,
        "digest": digest,
        "record": text,
        "record_digest": _text_digest(text),
    }


def parse_header(path: Path, metadata: Mapping[str, str]) -> Header:
    """Check the strings in the header of a file.

    Args:
        path: The file, for messages.
        metadata: The strings.

    Returns:
        The header.

    Raises:
        CheckpointError: If the file is not a checkpoint, of another format, or its record is
            damaged or invalid.
    """
    version, kind = metadata.get("format_version", ""), metadata.get("kind", "")
    if not re.fullmatch("[1-9][0-9]{0,8}", version) or not kind:
        raise CheckpointError(
            f"{path}: a safetensors file, but not a checkpoint of this program; use one that "
            "`pipeline embed` or `pipeline classify` has written"
        )
    if int(version) < FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: has format {version}, which an older version has written; "
            f"{advice(path, kind)}"
        )
    if int(version) > FORMAT_VERSION or kind not in KINDS:
        raise CheckpointError(
            f"{path}: has format {version} and kind {kind[:20]}, but this version reads format "
            f"{FORMAT_VERSION} and the kinds {', '.join(KINDS)}; install a newer version"
        )
    missing = {"record", "record_digest", "digest"} - set(metadata)
    if missing or _text_digest(metadata["record"]) != metadata["record_digest"]:
        found = f"has no {min(missing)}" if missing else "the record does not match its digest"
        raise CheckpointError(f"{path}: the header is damaged: {found}; {advice(path, kind)}")
    try:
        record = parse_record(metadata["record"], kind)
    except RecordError as error:
        remedy = "install a newer version" if error.newer else advice(path, kind)
        raise CheckpointError(f"{path}: {error}; {remedy}") from error
    return Header(kind=kind, digest=metadata["digest"], record=record)


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def advice(path: Path, kind: str) -> str:
    """Return how to replace a file that cannot be used.

    Args:
        path: The file.
        kind: Its kind; may be empty or unknown.
    """
    if kind not in COMMANDS:
        return "create the file again"
    out = path.with_suffix(".safetensors") if kind == "state" else path
    return f"create it again with `{COMMANDS[kind]} --out {out} --force`"
