"""Random damages to the bytes of a file and to the values of a JSON record."""

import copy
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st


@st.composite
def mutations(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Return a function that damages bytes in one to three places."""
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["flip", "set", "cut", "insert", "delete", "repeat", "zero"]),
                st.floats(0, 1, exclude_max=True),
                st.integers(1, 64),
                st.integers(0, 255),
            ),
            min_size=1,
            max_size=3,
        )
    )

    def mutate(content: bytes) -> bytes:
        for action, place, length, byte in steps:
            # Half of the mutations hit the header, which is short.
            start = int(place * 2 * min(len(content), 4096 if byte % 2 else len(content)) / 2)
            part = content[start : start + length]
            replacement = {
                "flip": bytes([value ^ (1 << byte % 8) for value in part[:1]]),
                "set": bytes([byte]) * min(1, len(part)),
                "cut": b"",
                "insert": bytes([byte]) * length + part,
                "delete": b"",
                "repeat": part + part,
                "zero": bytes(len(part)),
            }[action]
            removed = 1 if action in ("flip", "set") else length
            rest = b"" if action == "cut" else content[start + removed :]
            content = content[:start] + replacement + rest
        return content

    return mutate


VALUES = [
    *(None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308),
    *(float("nan"), float("inf"), "", "x", "\ud800", "a" * 10_000, "1", [], {}, [[]], {"a": 1}),
]


def places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the place of every value in a JSON value."""
    found = [place]
    if isinstance(value, list):
        value = dict(enumerate(value))
    for key, child in value.items() if isinstance(value, dict) else ():
        found += places(child, (*place, key))
    return found


def mutated_record(record: Any, data: st.DataObject) -> Any:
    """Return a record in which a value is replaced, removed, added or doubled."""
    place = data.draw(st.sampled_from(places(record)))
    value = data.draw(st.sampled_from(VALUES))
    if not place:
        return value
    record = copy.deepcopy(record)
    parent = record
    for key in place[:-1]:
        parent = parent[key]
    action = data.draw(st.sampled_from(["replace", "replace", "remove", "add", "double"]))
    if action == "replace":
        parent[place[-1]] = value
    elif action == "remove":
        del parent[place[-1]]
    elif action == "double" and isinstance(parent[place[-1]], list):
        parent[place[-1]] *= 2
    elif isinstance(parent, list):
        parent.append(value)
    else:
        parent["novelty"] = value
    return record
