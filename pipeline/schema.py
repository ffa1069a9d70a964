"""Check JSON values against a schema.

A schema is a :class:`Rule`, an object of fields, a list of one schema, a data class whose fields
have types, or one of these in :class:`Nullable` or :class:`Optional`.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from stages.errors import SettingsError


class RecordError(ValueError):
    """An invalid record. The message says where and what was found.

    Args:
        problem: The message.
        newer: True if a newer version of the program has probably written the record.
    """

    def __init__(self, problem: str, *, newer: bool = False) -> None:
        super().__init__(problem)
        self.newer = newer


class Rule(NamedTuple):
    """A condition on a value, and its description."""

    holds: Callable[[Any], bool]
    allowed: str


class Nullable(NamedTuple):
    """A value that may be null."""

    schema: Any


class Optional(NamedTuple):
    """A field that may be missing: earlier versions did not write it."""

    schema: Any


def whole_number(low: int, high: int | None = None) -> Rule:
    """Return the rule for an int from ``low`` to ``high``, or without an upper limit."""
    allowed = f"a whole number of at least {low}" if high is None else f"{low} to {high}"
    return Rule(lambda v: type(v) is int and low <= v and (high is None or v <= high), allowed)


def one_of(*values: Any) -> Rule:
    """Return the rule for one of the values, of the same type."""
    return Rule(
        lambda v: any(type(v) is type(value) and v == value for value in values),
        " or ".join(map(str, values)),
    )


STRING = Rule(lambda v: isinstance(v, str), "a text")
TEXT = Rule(lambda v: isinstance(v, str) and v != "", "a text that is not empty")
NUMBER = Rule(lambda v: type(v) in (int, float), "a number")
SHARE = Rule(lambda v: type(v) in (int, float) and 0 <= v <= 1, "0 to 1")
BOOL = Rule(lambda v: isinstance(v, bool), "true or false")


def parse_json(text: str) -> dict[str, Any]:
    """Parse a JSON object strictly: finite numbers, and each key at most once per object.

    Args:
        text: The JSON text.

    Raises:
        RecordError: If the text is no JSON object.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_distinct_keys,
            parse_constant=_finite,
            parse_float=_finite,
            parse_int=_int64,
        )
    except (ValueError, RecursionError) as error:
        raise RecordError(f"the record is no valid JSON ({str(error)[:100]})") from error
    if not isinstance(value, dict):
        raise RecordError(f"the record is {shown(value)}, not a JSON object")
    return value


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


def check(value: Any, schema: Any, place: str) -> None:
    """Check a value and everything in it.

    Args:
        value: Value from :func:`parse_json`.
        schema: Its schema, as described in the module.
        place: Where the value is, such as ``read.size``.

    Raises:
        RecordError: If it does not match the schema.
    """
    if isinstance(schema, Optional):
        check(value, schema.schema, place)
    elif isinstance(schema, Nullable):
        if value is not None:
            check(value, schema.schema, place)
    elif isinstance(schema, Rule):
        if not schema.holds(value):
            raise RecordError(f"{place} is {shown(value)} instead of {schema.allowed}")
    elif isinstance(schema, list):
        if not isinstance(value, list):
            raise RecordError(f"{place} is {shown(value)} instead of a list")
        for index, item in enumerate(value):
            check(item, schema[0], f"{place}[{index}]")
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
        raise RecordError(f"{place} is {shown(value)} instead of a JSON object")
    prefix = f"{place}." if place else ""
    for name in value:
        if name not in schema:
            raise RecordError(f"{prefix}{name[:60]} is unknown to this version", newer=True)
    for name, field in schema.items():
        if name not in value:
            if isinstance(field, Optional):
                continue
            raise RecordError(f"{prefix}{name} is missing")
        check(value[name], field, f"{prefix}{name}")


def _of_types(types: set[Any], allowed: str) -> Rule:
    return Rule(lambda v: type(v) in types, allowed)


@cache
def _rules_of(data_class: Any) -> dict[str, Any]:
    """Return a rule for the type of each field of a data class.

    A field with the metadata ``added`` may be missing: earlier versions did not write it.
    """
    descriptions = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        dict: "an object",
    }
    hints, rules = get_type_hints(data_class), {}
    for field in fields(data_class):
        hint = hints[field.name]
        hinted = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        types = [get_origin(kind) or kind for kind in hinted]
        allowed = " or ".join(descriptions.get(t, "null") for t in types)
        accepted = {*types, int} if float in types else set(types)
        rule = _of_types(accepted, allowed)
        rules[field.name] = Optional(rule) if field.metadata.get("added") else rule
    return rules


def shown(value: Any) -> str:
    """Return a value as JSON for a message, shortened to 60 characters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
