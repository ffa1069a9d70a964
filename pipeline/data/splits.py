"""Assign images to training, validation and test splits."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from pipeline.data.dataset import SPLITS, Dataset, Source, describe_skipped, natural_key
from stages.errors import DataError
from stages.records import Split


def split_source(source: Source, parts: Sequence[str] | None = None) -> Dataset:
    """Give each image its part, and check that there is something to train on.

    parts: each image's, if they have been chosen; then a class may be missing in the training part.
    Raises DataError for fewer than two classes to train on, or a class that only validation or test has.
    """
    entries, chosen = source.entries, parts is not None
    parts = parts or assign_splits(source)
    sizes = Counter(
        entry.label for entry, part in zip(entries, parts, strict=True) if chosen or part == "train"
    )
    classes = tuple(sorted(sizes, key=natural_key))
    if len(classes) < 2:
        raise DataError(
            f"{source.name}: {len(classes)} class to train on ({', '.join(classes)}); triplets need at least 2"
        )
    unknown = {entry.label: entry.id for entry in entries if entry.label not in sizes}
    if unknown:
        label, example = min(unknown.items())
        raise DataError(
            f"{source.name}: class {label} ({example}) has no image in the training part; add some, or take it out"
        )
    index = {label: number for number, label in enumerate(classes)}
    splits: dict[str, Split | None] = dict.fromkeys(SPLITS)
    rows: dict[str, list[int]] = {name: [] for name in SPLITS}
    for row, part in enumerate(parts):
        rows[part].append(row)
    for name, mine in rows.items():
        if mine:
            labels = torch.tensor([index[entries[row].label] for row in mine])
            splits[name] = Split(
                source.images,
                torch.tensor(mine),
                labels,
                classes,
                tuple(entries[row].id for row in mine),
            )
    train = splits["train"]
    assert train is not None  # two classes were just counted in it
    notes = [describe_skipped(source)] if source.skipped else []
    notes += source.notes
    if lone := [label for label in classes if sizes[label] == 1]:
        notes.append(
            f"{len(lone)} classes with one training image ({', '.join(lone[:5])}): no triplet has them as anchor"
        )
    pixels = source.facts["pixels"]
    leaked = np.flatnonzero(np.isin(pixels[rows["test"]], pixels[rows["train"] + rows["val"]]))
    return Dataset(
        train,
        splits["val"],
        splits["test"],
        source.name,
        source.read,
        _fingerprint(source, parts),
        source.skipped,
        tuple(notes),
        tuple(leaked.tolist()),
        source,
        tuple(parts),
    )


def _fingerprint(source: Source, parts: Sequence[str]) -> str:
    contents = source.facts["content"].tolist()
    lines = sorted(
        f"{part}\t{entry.id}\t{entry.label}\t{content.decode()}"
        for entry, part, content in zip(source.entries, parts, contents, strict=True)
    )
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def assign_splits(source: Source, salt: str = "") -> list[str]:
    """Each image's part: the given one, or one split off the training part; another salt splits differently.

    Images with the same pixels, in whatever class, and images of the same group stay together, as one unit. Units are
    ordered by a hash of their pixels and the split seed, so that neither the order nor the number of the others moves one.
    Each goes to the test, else to validation, if that brings the part closer to its rounded share of each of the unit's
    classes and leaves those classes two images for training; else it is trained on.
    """
    entries, read = source.entries, source.read
    given = {entry.part for entry in entries}
    wanted = {
        name: share for name, share in (("test", read.test), ("val", read.val)) if name not in given
    }
    parts = [entry.part or "train" for entry in entries]
    pool = [row for row, part in enumerate(parts) if part == "train"]
    if not wanted or not pool:
        return parts
    left = Counter(entries[row].label for row in pool)
    missing = {
        name: {label: round(share * count) for label, count in left.items()}
        for name, share in wanted.items()
    }
    for rows in indivisible_groups(source, pool, salt):
        counts: dict[str, int] = {}
        for row in rows:
            counts[entries[row].label] = counts.get(entries[row].label, 0) + 1
        for name, lacking in missing.items():
            closer = (
                sum(
                    abs(lacking[label] - count) - abs(lacking[label])
                    for label, count in counts.items()
                )
                < 0
            )
            if closer and all(left[label] - count >= 2 for label, count in counts.items()):
                for row in rows:
                    parts[row] = name
                for label, count in counts.items():
                    lacking[label] -= count
                    left[label] -= count
                break
    return parts


def indivisible_groups(source: Source, pool: Sequence[int], salt: str = "") -> list[list[int]]:
    """Rows that must not be separated, in the order of a hash."""
    hashes = source.facts["pixels"][pool].tolist()
    head: dict[object, object] = {}

    def find(key: object) -> object:
        while (above := head.setdefault(key, key)) != key:
            head[key] = key = head[above]
        return key

    for row, pixels in zip(pool, hashes, strict=True):
        if group := source.entries[row].group:
            head[find(pixels)] = find(group)  # bytes and str never collide
    together: dict[object, list[int]] = {}
    keys: dict[object, bytes] = {}
    seed = f"{source.read.split_seed}:{salt}".encode()
    for row, pixels in zip(pool, hashes, strict=True):
        unit = find(pixels)
        together.setdefault(unit, []).append(row)
        key = hashlib.sha256(seed + pixels).digest()
        keys[unit] = min(key, keys.get(unit, key))
    return [together[unit] for unit in sorted(together, key=keys.__getitem__)]
