"""Check the JSON record of a checkpoint.

A file may be damaged, edited, or from another version. A record that passes the check has all
fields that the commands use, each with a possible value.
"""

import re
from collections.abc import Mapping
from typing import Any

from pipeline.enrolments import enrolled_count, image_count
from pipeline.schema import (
    BOOL,
    NUMBER,
    SHARE,
    STRING,
    TEXT,
    Nullable,
    Optional,
    RecordError,
    Rule,
    check,
    one_of,
    parse_json,
    shown,
    whole_number,
)
from stages.network.projection import RESIDUAL
from stages.records import EpochLog, HeadLog
from stages.settings import MAX_DIM, ClassifySettings, EmbedSettings, ReadSettings


def _are_names(value: Any) -> bool:
    """Return True for a list of distinct, non-empty strings."""
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        return False
    return 0 < len(set(value)) == len(value)


def _are_names_or_none(value: Any) -> bool:
    return value == [] or _are_names(value)


def _are_counts(value: Any) -> bool:
    """Return True for an object of counts that are at least 1."""
    if not isinstance(value, dict) or not value:
        return False
    return all(name and type(count) is int and count >= 1 for name, count in value.items())


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _are_versions(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


_TRUNK = Rule(
    lambda v: isinstance(v, str) and bool(re.fullmatch("tune|frozen|last-[1-9][0-9]{0,5}", v)),
    "tune, frozen or last-N",
)
# A temperature near 0 would divide the log-probabilities to infinity.
_TEMPERATURE = Rule(lambda v: type(v) in (int, float) and 1e-3 <= v <= 1e3, "0.001 to 1000")

_NETWORK = {
    "name": TEXT,
    "channels": one_of(1, 3),
    "size": whole_number(4, 1024),
    "dim": whole_number(1, MAX_DIM),
    "trunk": _TRUNK,
    "pretrained": BOOL,
    "side": Optional(whole_number(4, 2048)),  # of library networks
    "projection": Optional(one_of(RESIDUAL)),
}
_RUN = {"fingerprint": TEXT, "read": ReadSettings}
_CHECKPOINT = {
    **_RUN,
    "network": _NETWORK,
    "classes": Rule(_are_names, "distinct names that are not empty"),
    "source": TEXT,
    "counts": {"train": whole_number(1), "val": whole_number(0), "test": whole_number(0)},
    "skipped": [{"path": STRING, "reason": STRING}],
    "unseen": Nullable({"classes": [TEXT], "images": whole_number(1)}),
    "versions": Rule(_are_versions, "a version per package"),
}
_PROGRESS = {
    "step": whole_number(0),
    "steps": whole_number(1),
    "history": [EpochLog],
    "sums": [NUMBER],
    "position": whole_number(0),
    "kept": Nullable({"highest": SHARE, "epoch": whole_number(1)}),
}
_SCHEMAS: dict[str, dict[str, Any]] = {
    "embedding": {
        **_CHECKPOINT,
        "settings": EmbedSettings,
        "weights": Nullable({"origin": TEXT, "digest": TEXT}),
        "root": Nullable(TEXT),
        "epoch": whole_number(0),
        "held_out_classes": [TEXT],
        "history": [EpochLog],
        "precision": TEXT,
        "processes": whole_number(1),
        "network_choice": Optional(TEXT),
    },
    "classifier": {
        **_CHECKPOINT,
        "settings": ClassifySettings,
        "embedding_settings": EmbedSettings,
        "embedding_digest": TEXT,
        "gallery_ids": [STRING],
        "temperature": _TEMPERATURE,
        "calibrated": BOOL,
        "k": whole_number(1),
        "epoch": whole_number(1),
        "history": [HeadLog],
        # One item per `pipeline enroll`, oldest first.
        "enrolled": Optional(
            [
                {
                    "source": TEXT,
                    "classifier_digest": TEXT,
                    "images": Rule(_are_counts, "a count of images per class"),
                    "new_classes": [TEXT],
                    "copies": whole_number(0),
                    "distances": whole_number(0),
                    "skipped": [{"path": STRING, "reason": STRING}],
                }
            ]
        ),
    },
    "gallery": {
        "network": _NETWORK,
        "read": ReadSettings,
        "classes": Rule(_are_names_or_none, "distinct names that are not empty"),
        "embedding_digest": TEXT,
        # One rule for the list: a million ids are checked in a tenth of a second.
        "ids": Rule(_are_texts, "a list of texts"),
        "versions": Rule(_are_versions, "a version per package"),
    },
    "vectors": {
        "embedding_digest": TEXT,
        "fingerprint": TEXT,
        "ids": [STRING],
        "k": whole_number(1),
    },
    "state": {
        **_RUN,
        "settings": EmbedSettings,
        "precision": TEXT,
        "processes": whole_number(1),
        "speeds": [Nullable(NUMBER)],
        "finished": BOOL,
        "progress": _PROGRESS,
    },
}
KINDS = tuple(_SCHEMAS)


def parse_record(text: str, kind: str) -> dict[str, Any]:
    """Parse and check the record of a checkpoint.

    Unknown fields of the record itself are allowed; unknown settings are not, because they may
    change the meaning of the others.

    Args:
        text: The record as JSON.
        kind: Kind of the checkpoint, one of ``KINDS``.

    Returns:
        The record.

    Raises:
        RecordError: If the text is no JSON object, or a field is missing or has an invalid value.

    Example:
        >>> parse_record('{"embedding_digest": "a", "fingerprint": "b", "ids": ["c"]}', "vectors")
        Traceback (most recent call last):
        pipeline.schema.RecordError: k is missing
    """
    record = parse_json(text)
    schema = _SCHEMAS[kind]
    known = {name: record[name] for name in schema if name in record}
    check(known, schema, "")
    if "read" in known:  # earlier versions decoded every JPEG in full
        record["read"].setdefault("jpeg", "full")
    _check_together(known)
    return record


def _check_together(record: Mapping[str, Any]) -> None:
    """Check fields that depend on each other."""
    if "network" in record:
        for name in ("size", "channels"):
            if record["read"][name] != record["network"][name]:
                raise RecordError(
                    f"read.{name} is {record['read'][name]} but network.{name} is "
                    f"{record['network'][name]}"
                )
        settings = record.get("embedding_settings", record.get("settings"))
        if settings is None:  # a gallery
            return
        for name, setting in (("name", "network"), ("dim", "dim"), ("trunk", "trunk")):
            if record["network"][name] != settings[setting]:
                raise RecordError(
                    f"network.{name} is {shown(record['network'][name])} but the setting "
                    f"{setting} is {shown(settings[setting])}"
                )
    for name, rows in (("epoch", "history"), ("k", "gallery_ids"), ("k", "ids")):
        if name in record and rows in record and record[name] > len(record[rows]):
            raise RecordError(f"{name} is {record[name]} but {rows} has {len(record[rows])} items")
    if record.get("calibrated") is False and record["temperature"] != 1:
        raise RecordError(f"temperature is {record['temperature']} but calibrated is false")
    _check_enrolled(record)
    _check_classes(record)
    if "progress" in record:
        _check_progress(record["progress"], record["speeds"])


def _check_enrolled(record: Mapping[str, Any]) -> None:
    """Check that the enrolments fit together, the classes and the gallery."""
    enrolments = record.get("enrolled", ())
    for number, enrolment in enumerate(enrolments):
        place, images = f"enrolled[{number}]", enrolment["images"]
        if unknown := set(images) - set(record["classes"]):
            raise RecordError(f"{place}.images has {shown(min(unknown))}, which is not in classes")
        if empty := set(enrolment["new_classes"]) - set(images):
            raise RecordError(f"{place}.new_classes has {shown(min(empty))}, which has no images")
        if enrolment["distances"] > image_count(enrolment):
            raise RecordError(
                f"{place}.distances is {enrolment['distances']} but the number of images is "
                f"{image_count(enrolment)}"
            )
    if enrolments and enrolled_count(record) >= len(record["gallery_ids"]):
        raise RecordError(
            f"enrolled has {enrolled_count(record)} images but gallery_ids, with the training "
            f"images, has {len(record['gallery_ids'])} items"
        )
    new_classes = [name for enrolment in enrolments for name in enrolment["new_classes"]]
    if new_classes and record["classes"][-len(new_classes) :] != new_classes:
        raise RecordError("classes does not end with the new_classes of enrolled in their order")


def _check_classes(record: Mapping[str, Any]) -> None:
    """Check that held-out classes were known and unseen classes were not."""
    classes = set(record.get("classes", ()))
    for enrolment in record.get("enrolled", ()):  # classes that were unseen when it was trained
        classes -= set(enrolment["new_classes"])
    if unknown := set(record.get("held_out_classes", ())) - classes:
        raise RecordError(f"held_out_classes has {shown(min(unknown))}, which is not in classes")
    unseen = record.get("unseen")
    if unseen and (known := set(unseen["classes"]) & classes):
        raise RecordError(f"unseen.classes has {shown(min(known))}, which is in classes")


def _check_progress(progress: Mapping[str, Any], speeds: list[float | None]) -> None:
    step, steps, epochs = progress["step"], progress["steps"], len(progress["history"])
    if step > steps:
        raise RecordError(f"progress.step is {step} but progress.steps is {steps}")
    if len(progress["sums"]) != 3:
        raise RecordError(f"progress.sums has {len(progress['sums'])} numbers instead of 3")
    if len(speeds) != epochs:
        raise RecordError(f"speeds has {len(speeds)} items but progress.history has {epochs}")
    if progress["kept"] and progress["kept"]["epoch"] > epochs:
        raise RecordError(
            f"progress.kept.epoch is {progress['kept']['epoch']} but progress.history has {epochs}"
        )
