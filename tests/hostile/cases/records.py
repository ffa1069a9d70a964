"""Edited records of checkpoints: each field is validated, also where the digests are right."""

from typing import Any

from hostile.case import Case, error
from hostile.prepare import CLASSIFIER, EMBEDDING, record

CLASSES = ["ash", "birch", "cedar"]


def edited(field: str, value: Any, *mentions: str, path: str = CLASSIFIER) -> Case:
    """Expect that a record with another value of a field is rejected."""
    command = "predict photos" if path == CLASSIFIER else "classify --force"
    places = [part.replace("_", separator) for part in field.split(".") for separator in "-_"]
    shown = "(removed)" if value is ... else str(value)
    return error(
        command,
        path,
        "|".join([*places, "tensors"]),  # a wrong shape may be noticed first
        *mentions,
        prepare=record(path, {field: value}),
        name=f"{path.split('/')[1]}: {field} = {shown[:40]}",
    )


def wrong_digest(value: Any) -> Case:
    """Expect that a classifier is rejected whose record names another embedding."""
    prepare = record(CLASSIFIER, {"embedding_digest": value})
    return error(
        "predict photos", CLASSIFIER, "digest", prepare=prepare, name=f"embedding_digest = {value}"
    )


def unsigned(field: str, value: Any) -> Case:
    """Expect that a record is rejected whose digest was not updated."""
    return error(
        "predict photos",
        CLASSIFIER,
        "record",
        prepare=record(CLASSIFIER, {field: value}, digest=False),
        name=f"old record digest: {field} = {value}",
    )


CLASSIFIER_FIELDS = (
    *("classes", "settings", "read", "network", "temperature", "calibrated", "k"),
    *("embedding_digest", "gallery_ids"),
)
EMBEDDING_FIELDS = ("classes", "settings", "read", "network", "fingerprint", "source")

CASES = [
    *(edited(field, ...) for field in CLASSIFIER_FIELDS),
    *(edited(field, None) for field in CLASSIFIER_FIELDS if field != "embedding_digest"),
    *(edited(field, ..., path=EMBEDDING) for field in EMBEDDING_FIELDS),
    *(edited(field, 5, path=EMBEDDING) for field in EMBEDDING_FIELDS),
    # Numbers.
    *(edited("temperature", value, str(value)) for value in (0, -1, float("nan"), float("inf"))),
    *(edited("temperature", value) for value in ("1", True, [], 10**400)),
    *(edited("k", value, str(value)) for value in (0, -1, 10**9, 1.5)),
    *(edited("k", value) for value in ("5", True, [5])),
    # Unseen and held-out classes.
    *(edited("unseen", value) for value in (..., 5, [], {}, {"classes": ["yew"], "images": 0})),
    *(edited("unseen", value, path=EMBEDDING) for value in (..., {"classes": [5], "images": 1})),
    edited("unseen", {"classes": ["ash"], "images": 1}, path=EMBEDDING),
    *(edited("held_out_classes", value, path=EMBEDDING) for value in (..., None, "ash", [5])),
    edited("held_out_classes", ["yew"], path=EMBEDDING),
    edited("calibrated", False),
    *(
        edited("read.unseen_classes", value, path=EMBEDDING)
        for value in (1, 1.5, -2, float("nan"), "3", True)
    ),
    *(edited("counts.val", value) for value in (-1, 1.5, 10**6)),
    *(edited("settings.dropout", value, str(value)) for value in (7, -1, float("nan"))),
    edited("settings.dropout", "0.5"),
    edited("settings.max_iter", 0),
    edited("settings.seed", -1),
    edited("settings.balance", "yes"),
    edited("settings.dropout", ...),
    # A field of a newer version.
    edited("settings.new_option", 5, "newer"),
    edited("read.new_option", 5, "newer"),
    edited("settings.new_option", 5, "newer", path=EMBEDDING),
    edited("read.new_option", 5, "newer", path=EMBEDDING),
    # Classes.
    edited("classes", []),
    edited("classes", CLASSES[:2]),
    edited("classes", [*CLASSES, "oak"]),
    edited("classes", ["ash", "ash", "cedar"], "ash"),
    edited("classes", [1, 2, 3]),
    edited("classes", "abc"),
    edited("classes", {"ash": 1, "birch": 2, "cedar": 3}),
    edited("classes", ["ash", "birch", ""]),
    edited("classes", CLASSES[:2], path=EMBEDDING),
    edited("classes", ["ash", "ash", "cedar"], "ash", path=EMBEDDING),
    edited("gallery_ids", []),
    edited("gallery_ids", ["ash/1.png"]),
    edited("gallery_ids", [1] * 15),
    # How images are read.
    *(edited("read.size", value, str(value)) for value in (10**6, 0, -12, 13)),
    edited("read.size", "12"),
    edited("read.size", ...),
    edited("read.channels", 2, "2"),
    edited("read.channels", 3),
    edited("read.resize", "zoom", "zoom"),
    edited("read.val", 5, path=EMBEDDING),
    edited("read.size", 10**6, path=EMBEDDING),
    # The network.
    edited("network_choice", 5, path=EMBEDDING),
    edited("network.name", "nonsense", "nonsense"),
    edited("network.name", 5),
    edited("network.name", "torchvision:nonsense", "nonsense"),
    edited("network.name", "conv-deep"),
    edited("network.dim", 10**9),
    edited("network.dim", 9),
    edited("network.dim", 0),
    edited("network.dim", "8"),
    edited("network.channels", 10**9),
    edited("network.channels", 3),
    edited("network.size", 10**9),
    edited("network.pretrained", "maybe"),
    edited("network.new_option", 5),
    edited("network.dim", 10**9, path=EMBEDDING),
    edited("network.name", "nonsense", "nonsense", path=EMBEDDING),
    *(wrong_digest(value) for value in ("0" * 64, 5, None)),
    edited("settings.dim", 10**9, path=EMBEDDING),
    edited("settings.margin", "much", path=EMBEDDING),
    # The digest of the record.
    unsigned("temperature", 2.0),
    unsigned("k", 1),
    unsigned("classes", ["cat", "dog", "fox"]),
    unsigned("settings.dropout", 0.1),
    unsigned("source", "elsewhere"),
]
