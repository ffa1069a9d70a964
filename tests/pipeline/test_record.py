"""A record with an impossible value is rejected, also if its digest is right."""

import json

import pytest
from checkpoint_files import assert_rejected, change_header

from pipeline.checkpoint import load_classifier, load_embedding
from pipeline.tensor_files import read_header

LOAD = {"embedding": load_embedding, "classifier": load_classifier}


def change_record(path, place, value):
    """Set or remove (``...``) a value of the record, such as ``settings.dim``; fix the digest."""
    record = read_header(path).record
    *parents, name = place.split(".")
    holder = record
    for parent in parents:
        holder = holder[int(parent) if isinstance(holder, list) else parent]
    if value is ...:
        del holder[name]
    else:
        holder[int(name) if isinstance(holder, list) else name] = value
    change_header(path, record=json.dumps(record), record_digest=None)


@pytest.mark.parametrize("place", ["classes.0", "extra"])
def test_possible_change_of_the_record_is_accepted(checkpoint, kind, place):
    """The following test rejects its files for their values, not because they were changed."""
    change_record(checkpoint, place, "other")
    assert LOAD[kind](checkpoint).record


@pytest.mark.parametrize(
    ("kind", "place", "value"),
    [
        *[("classifier", "temperature", value) for value in (0, -1, 1e300, "1", None, True, ...)],
        *[("classifier", "calibrated", value) for value in (0, "true", None, ...)],
        *[("classifier", "k", value) for value in (0, -1, 4, 1.5, "1", True, 10**17, ...)],
        *[("classifier", "settings.dropout", value) for value in (7, 1, -0.1, "0.5", None, ...)],
        *[("classifier", "epoch", value) for value in (0, 2, 0.5)],
        *[("classifier", "gallery_ids", value) for value in (["x"], ["x", "y", 3], {}, None, ...)],
        ("classifier", "embedding_settings.margin", 9),
        ("classifier", "history.0.converged", "yes"),
        ("classifier", "history.0.weight_decay", None),
        *[("embedding", "settings.lr", value) for value in (0, 2, "0.1", None, ...)],
        ("embedding", "settings.augment", 1),
        ("embedding", "settings.network", "unknown"),
        ("embedding", "settings", []),
        ("embedding", "epoch", 2),
        ("embedding", "history", {}),
        ("embedding", "history.0.loss", "0.1"),
        ("embedding", "history.0.val_knn", ...),
        ("embedding", "root", 1),
        ("embedding", "weights", {"origin": "default"}),
        ("embedding", "processes", 0),
        ("embedding", "precision", ""),
        *[("embedding", "network.dim", value) for value in (0, 9, 10**9, 10**17, "8", True, ...)],
        *[("embedding", "network.size", value) for value in (3, 16, 10**6, 8.0)],
        *[("embedding", "network.channels", value) for value in (2, 3, "1")],
        *[("embedding", "network.trunk", value) for value in ("last-0", "last-" + "9" * 5000, 1)],
    ],
    ids=lambda value: str(value)[:20],
)
def test_impossible_value_is_rejected_also_with_the_right_digest(checkpoint, kind, place, value):
    change_record(checkpoint, place, value)
    found = "" if value is ... or isinstance(value, dict | list) else json.dumps(value)[:20]
    assert_rejected(checkpoint, found.strip('"'), load=LOAD[kind])


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *[("classes", value) for value in ([], ["a"], ["a", "a"], ["a", ""], ["a", 1], "ab")],
        *[("read.size", value) for value in (None, 16, 2000)],
        *[("read.channels", value) for value in (None, 3)],
        ("read.resize", "melt"),
        ("counts.test", -1),
        ("counts", {}),
        ("source", ""),
        ("fingerprint", 7),
        ("skipped", [{"path": "x"}]),
        ("versions", {"torch": 2}),
        *[("network.name", value) for value in ("", 1, "no-network", "conv-deep")],
        *[(name, ...) for name in ("classes", "read", "settings", "network", "counts", "history")],
    ],
    ids=lambda value: str(value)[:20],
)
def test_impossible_value_of_any_checkpoint_is_rejected(checkpoint, kind, place, value):
    if (kind, place) == ("embedding", "classes") and value == ["a"]:
        pytest.skip("only a head has one row per class")
    change_record(checkpoint, place, value)
    assert_rejected(checkpoint, load=LOAD[kind])


@pytest.mark.parametrize("place", ["settings.novelty", "read.novelty", "network.novelty"])
def test_unknown_setting_is_of_a_newer_version(checkpoint, kind, place):
    change_record(checkpoint, place, 1)
    assert_rejected(checkpoint, place, "newer version", load=LOAD[kind])


@pytest.mark.parametrize(
    "record",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"k": 1, "k": 1}',
        '{"k": NaN}',
        '{"k": -Infinity}',
        '{"k": 1e999}',
        '{"k": ' + "9" * 5000 + "}",
    ],
    ids=lambda text: text[:12],
)
def test_record_that_is_no_valid_json_object_is_rejected(checkpoint, kind, record):
    change_header(checkpoint, record=record or " ", record_digest=None)
    assert_rejected(checkpoint, "record", load=LOAD[kind])
