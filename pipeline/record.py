"""Check the JSON record of a checkpoint.

A file may be damaged, edited, or from another version. A record that passes the check has all
fields that the commands use, each with a possible value.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from types import UnionType
from typing import Any, NamedTuple, get_args, get_type_hints

from stages.errors import SettingsError
from stages.records import EpochLog, HeadLog
from stages.settings import MAX_DIM, ClassifySettings, EmbedSettings, ReadSettings


class RecordError(ValueError):
    """An invalid record. The message says where and what was found.

    Args:
        problem: The message.
        newer: True if a newer version of the program has probably written the record.
    """

    def __init__(self, problem: str, *, newer: bool = False) -> None:
        super().__init__(problem)
        self.newer = newer


class _Rule(NamedTuple):
    """A condition on a value, and its description."""

    holds: Callable[[Any], bool]
    allowed: str


class _Nullable(NamedTuple):
    """A value that may be null."""

    schema: Any


def _whole(low: int, high: int | None = None) -> _Rule:
    allowed = f"a whole number of at least {low}" if high is None else f"{low} to {high}"
    return _Rule(lambda v: type(v) is int and low <= v and (high is None or v <= high), allowed)


def _one_of(*values: Any) -> _Rule:
    return _Rule(
        lambda v: any(type(v) is type(value) and v == value for value in values),
        " or ".join(map(str, values)),
    )


def _are_names(value: Any) -> bool:
    """Return True for a list of distinct, non-empty strings."""
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        return False
    return 0 < len(set(value)) == len(value)


def _are_versions(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


_STRING = _Rule(lambda v: isinstance(v, str), "a text")
_TEXT = _Rule(lambda v: isinstance(v, str) and v != "", "a text that is not empty")
_NUMBER = _Rule(lambda v: type(v) in (int, float), "a number")
_SHARE = _Rule(lambda v: type(v) in (int, float) and 0 <= v <= 1, "0 to 1")
_BOOL = _Rule(lambda v: isinstance(v, bool), "true or false")
_TRUNK = _Rule(
    lambda v: isinstance(v, str) and bool(re.fullmatch("tune|frozen|last-[1-9][0-9]{0,5}", v)),
    "tune, frozen or last-N",
)
# A temperature near 0 would divide the log-probabilities to infinity.
_TEMPERATURE = _Rule(lambda v: type(v) in (int, float) and 1e-3 <= v <= 1e3, "0.001 to 1000")

_NETWORK = {
    "name": _TEXT,
    "channels": _one_of(1, 3),
    "size": _whole(4, 1024),
    "dim": _whole(1, MAX_DIM),
    "trunk": _TRUNK,
    "pretrained": _BOOL,
}
_RUN = {"fingerprint": _TEXT, "read": ReadSettings}
_CHECKPOINT = {
    **_RUN,
    "network": _NETWORK,
    "classes": _Rule(_are_names, "distinct names that are not empty"),
    "source": _TEXT,
    "counts": {"train": _whole(1), "val": _whole(0), "test": _whole(0)},
    "skipped": [{"path": _STRING, "reason": _STRING}],
    "unseen": _Nullable({"classes": [_TEXT], "images": _whole(1)}),
    "versions": _Rule(_are_versions, "a version per package"),
}
_PROGRESS = {
    "step": _whole(0),
    "steps": _whole(1),
    "history": [EpochLog],
    "sums": [_NUMBER],
    "position": _whole(0),
    "best": _Nullable({"score": _SHARE, "triplet": _SHARE, "epoch": _whole(1)}),
}
# A schema is a rule, an object of fields, a list of one schema, a data class, or nullable.
_SCHEMAS: dict[str, dict[str, Any]] = {
    "embedding": {
        **_CHECKPOINT,
        "settings": EmbedSettings,
        "weights": _Nullable({"origin": _TEXT, "digest": _TEXT}),
        "root": _Nullable(_TEXT),
        "epoch": _whole(0),
        "held_out_classes": [_TEXT],
        "history": [EpochLog],
        "precision": _TEXT,
        "processes": _whole(1),
    },
    "classifier": {
        **_CHECKPOINT,
        "settings": ClassifySettings,
        "embedding_settings": EmbedSettings,
        "embedding_digest": _TEXT,
        "gallery_ids": [_STRING],
        "temperature": _TEMPERATURE,
        "calibrated": _BOOL,
        "k": _whole(1),
        "epoch": _whole(1),
        "history": [HeadLog],
    },
    "vectors": {
        "embedding_digest": _TEXT,
        "fingerprint": _TEXT,
        "ids": [_STRING],
        "k": _whole(1),
    },
    "state": {
        **_RUN,
        "settings": EmbedSettings,
        "precision": _TEXT,
        "processes": _whole(1),
        "speeds": [_Nullable(_NUMBER)],
        "finished": _BOOL,
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
        pipeline.record.RecordError: k is missing
    """
    try:
        record = json.loads(
            text,
            object_pairs_hook=_distinct_keys,
            parse_constant=_finite,
            parse_float=_finite,
            parse_int=_int64,
        )
    except (ValueError, RecursionError) as error:
        raise RecordError(f"the record is no valid JSON ({str(error)[:100]})") from error
    if not isinstance(record, dict):
        raise RecordError(f"the record is {_shown(record)}, not a JSON object")
    schema = _SCHEMAS[kind]
    _check({name: record[name] for name in schema if name in record}, schema, "")
    _check_together(record)
    return record


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key occurs twice")
    return values


def _finite(text: str) -> float:
    """Convert a number, and reject ``NaN``, ``Infinity`` and ``1e999``."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not finite")
    return number


def _int64(text: str) -> int:
    if len(text) > 18:
        raise ValueError(f"{text[:20]}... has too many digits")
    return int(text)


def _check(value: Any, schema: Any, place: str) -> None:
    """Check a value and everything in it."""
    if isinstance(schema, _Nullable):
        if value is not None:
            _check(value, schema.schema, place)
    elif isinstance(schema, _Rule):
        if not schema.holds(value):
            raise RecordError(f"{place} is {_shown(value)} instead of {schema.allowed}")
    elif isinstance(schema, list):
        if not isinstance(value, list):
            raise RecordError(f"{place} is {_shown(value)} instead of a list")
        for index, item in enumerate(value):
            _check(item, schema[0], f"{place}[{index}]")
    elif isinstance(schema, dict):
        _check_object(value, schema, place)
    else:
        _check_object(value, _rules_of(schema), place)
        try:
            schema(**value)
        except SettingsError as error:
            raise RecordError(f"{place}.{error}") from error


def _check_object(value: Any, schema: Mapping[str, Any], place: str) -> None:
    if not isinstance(value, dict):
        raise RecordError(f"{place} is {_shown(value)} instead of a JSON object")
    prefix = f"{place}." if place else ""
    for name in value:
        if name not in schema:
            raise RecordError(f"{prefix}{name[:60]} is unknown to this version", newer=True)
    for name, field in schema.items():
        if name not in value:
            raise RecordError(f"{prefix}{name} is missing")
        _check(value[name], field, f"{prefix}{name}")


def _of_types(types: set[Any], allowed: str) -> _Rule:
    return _Rule(lambda v: type(v) in types, allowed)


@cache
def _rules_of(data_class: Any) -> dict[str, _Rule]:
    """Return a rule for the type of each field of a data class."""
    descriptions = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    hints, rules = get_type_hints(data_class), {}
    for field in fields(data_class):
        hint = hints[field.name]
        types = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        allowed = " or ".join(descriptions.get(t, "null") for t in types)
        accepted = {*types, int} if float in types else set(types)
        rules[field.name] = _of_types(accepted, allowed)
    return rules


def _check_together(record: Mapping[str, Any]) -> None:
    """Check fields that depend on each other."""
    if "network" in record:
        for name in ("size", "channels"):
            if record["read"][name] != record["network"][name]:
                raise RecordError(
                    f"read.{name} is {record['read'][name]} but network.{name} is "
                    f"{record['network'][name]}"
                )
        settings = record.get("embedding_settings", record["settings"])
        for name, setting in (("name", "network"), ("dim", "dim"), ("trunk", "trunk")):
            if record["network"][name] != settings[setting]:
                raise RecordError(
                    f"network.{name} is {_shown(record['network'][name])} but the setting "
                    f"{setting} is {_shown(settings[setting])}"
                )
    for name, rows in (("epoch", "history"), ("k", "gallery_ids"), ("k", "ids")):
        if name in record and rows in record and record[name] > len(record[rows]):
            raise RecordError(f"{name} is {record[name]} but {rows} has {len(record[rows])} items")
    if record.get("calibrated") is False and record["temperature"] != 1:
        raise RecordError(f"temperature is {record['temperature']} but calibrated is false")
    _check_classes(record)
    if "progress" in record:
        _check_progress(record["progress"], record["speeds"])


def _check_classes(record: Mapping[str, Any]) -> None:
    """Check that held-out classes were known and unseen classes were not."""
    classes = set(record.get("classes", ()))
    if unknown := set(record.get("held_out_classes", ())) - classes:
        raise RecordError(f"held_out_classes has {_shown(min(unknown))}, which is not in classes")
    unseen = record.get("unseen")
    if unseen and (known := set(unseen["classes"]) & classes):
        raise RecordError(f"unseen.classes has {_shown(min(known))}, which is in classes")


def _check_progress(progress: Mapping[str, Any], speeds: list[float | None]) -> None:
    step, steps, epochs = progress["step"], progress["steps"], len(progress["history"])
    if step > steps:
        raise RecordError(f"progress.step is {step} but progress.steps is {steps}")
    if len(progress["sums"]) != 3:
        raise RecordError(f"progress.sums has {len(progress['sums'])} numbers instead of 3")
    if len(speeds) != epochs:
        raise RecordError(f"speeds has {len(speeds)} items but progress.history has {epochs}")
    if progress["best"] and progress["best"]["epoch"] > epochs:
        raise RecordError(
            f"progress.best.epoch is {progress['best']['epoch']} but progress.history has {epochs}"
        )


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
