"""Assign images to training, validation and test splits."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from pipeline.data.components import Edge, connected_groups
from pipeline.data.dataset import (
    Dataset,
    Source,
    composed_name,
    describe_skipped,
    folded_name,
    natural_key,
)
from pipeline.data.entries import SPLITS
from pipeline.data.unseen_classes import (
    choose_held_out_classes,
    choose_unseen_classes,
    requested_classes,
)
from stages.errors import DataError
from stages.records import Split


def split_source(source: Source, parts: Sequence[str] | None = None) -> Dataset:
    """Split a source into training, validation and test images.

    Args:
        source: Decoded source.
        parts: Split of each image. ``None`` applies :func:`assign_splits`, and then a class
            without a training image is an unseen class: it may have test images only. With given
            splits, every class is a training class, even without an image.

    Returns:
        The data set. Classes are in natural order.

    Raises:
        DataError: If there are fewer than two classes to train on, a class has validation images
            but no training image, an unseen class has nearly the name of a training class, or
            the settings ask for unseen classes that cannot be held out.
    """
    splits = parts or assign_splits(source)
    rows: dict[str, list[int]] = {name: [] for name in SPLITS}
    for row, split in enumerate(splits):
        rows[split].append(row)
    class_rows = rows["train"] if parts is None else range(len(splits))
    class_sizes = Counter(source.entries[row].label for row in class_rows)
    _check_classes(source, class_sizes, rows["val"])
    classes = tuple(sorted(class_sizes, key=natural_key))
    known: list[int] = []
    unseen: list[int] = []
    for row in rows["test"]:
        (known if source.entries[row].label in class_sizes else unseen).append(row)
    unseen_names = {source.entries[row].label for row in unseen}
    unseen_classes = tuple(sorted(unseen_names, key=natural_key))
    train = _select(source, rows["train"], classes)
    assert train is not None  # two classes were counted in it
    held_out = _held_out(source, rows["train"], train) if unseen else None
    fewer = _fewer_unseen(source, len(unseen_classes), len(classes) + len(unseen_classes))
    return Dataset(
        train=train,
        validation=_select(source, rows["val"], classes),
        test=_select(source, known, classes),
        source=source.name,
        read=source.read,
        fingerprint=_fingerprint(source, splits),
        skipped=source.skipped,
        notes=_notes(source, classes, class_sizes) + fewer,
        leaked=_leaked(source, known, rows),
        origin=source,
        parts=tuple(splits),
        unseen=_select(source, unseen, unseen_classes),
        leaked_unseen=_leaked(source, unseen, rows),
        held_out=held_out,
    )


def _check_classes(source: Source, class_sizes: Counter[str], val_rows: list[int]) -> None:
    if len(class_sizes) < 2:
        names = ", ".join(class_sizes)
        noun = "class" if len(class_sizes) == 1 else "classes"
        raise DataError(
            f"{source.name}: {len(class_sizes)} {noun} to train on ({names}); "
            "triplets need at least 2" + "".join(f" ({note})" for note in source.notes)
        )
    unknown = {}
    for row in val_rows:
        entry = source.entries[row]
        if entry.label not in class_sizes:
            unknown[entry.label] = entry.id
    if unknown:
        label, example = min(unknown.items())
        raise DataError(
            f"{source.name}: class {label} ({example}) has no image in the training split; "
            "add training images or remove the class"
        )
    # A manifest may have the characters a and A as classes. Folders that differ by case do not
    # even exist on some file systems.
    is_manifest = source.name.lower().endswith(".csv")
    folded = composed_name if is_manifest else folded_name
    similar_names = {folded(label): label for label in class_sizes}
    for entry in source.entries:
        similar = similar_names.get(folded(entry.label))
        if entry.label not in class_sizes and similar:
            raise DataError(
                f"{source.name}: class {entry.label} ({entry.id}) has no image in the training "
                f"split, and differs from the class {similar} only by case or Unicode form; "
                "give both the same name, or remove one"
            )


def _leaked(source: Source, test: list[int], rows: dict[str, list[int]]) -> tuple[int, ...]:
    """Return the positions of test images that are copies of training or validation images."""
    pixels = source.facts["pixels"]
    leaked = np.flatnonzero(np.isin(pixels[test], pixels[rows["train"] + rows["val"]]))
    return tuple(leaked.tolist())


def _held_out(source: Source, rows: list[int], train: Split) -> Split | None:
    """Return the training images of the classes that choose the epoch, or None without any."""
    names = choose_held_out_classes(source, rows, indivisible_groups(source, rows))
    chosen = [position for position, row in enumerate(rows) if source.entries[row].label in names]
    return train.select(torch.tensor(chosen)) if chosen else None


def _select(source: Source, rows: list[int], classes: tuple[str, ...]) -> Split | None:
    """Return the images in the given rows, or None without rows."""
    if not rows:
        return None
    class_index = {label: index for index, label in enumerate(classes)}
    entries = [source.entries[row] for row in rows]
    roles = [entry.role for entry in entries]
    return Split(
        store=source.images,
        rows=torch.tensor(rows),
        labels=torch.tensor([class_index[entry.label] for entry in entries]),
        classes=classes,
        ids=tuple(entry.id for entry in entries),
        queries=torch.tensor([role == "query" for role in roles]) if any(roles) else None,
    )


def _notes(source: Source, classes: Sequence[str], class_sizes: Counter[str]) -> tuple[str, ...]:
    notes = [describe_skipped(source)] if source.skipped else []
    notes += source.notes
    single = [label for label in classes if class_sizes[label] == 1]
    if single:
        examples = ", ".join(single[:5])
        notes.append(
            f"{len(single)} {'class' if len(single) == 1 else 'classes'} with one training image "
            f"({examples}): "
            "such an image is never an anchor of a triplet"
        )
    return tuple(notes)


def _fewer_unseen(source: Source, unseen: int, class_count: int) -> tuple[str, ...]:
    """Return a note if fewer unseen classes were held out than the settings ask for."""
    setting = source.read.unseen_classes
    requested = requested_classes(setting, class_count) if setting else 0
    if unseen >= requested:
        return ()
    return (
        f"{unseen} unseen classes instead of {requested}: copies, groups and similar names keep "
        "classes together",
    )


def _fingerprint(source: Source, splits: Sequence[str]) -> str:
    contents = source.facts["content"].tolist()
    lines = sorted(
        f"{split}\t{entry.id}\t{entry.label}\t{content.decode()}"
        for entry, split, content in zip(source.entries, splits, contents, strict=True)
    )
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def assign_splits(source: Source, salt: str = "") -> list[str]:
    """Assign each image to a split.

    With the setting ``unseen_classes``, all images of some classes are test images; see
    :func:`pipeline.data.unseen_classes.choose_unseen_classes`. The other images keep the splits
    that the source assigns. Missing splits are taken from the training images,
    stratified by class. Copies of an image and images of one group stay together. Groups are
    visited in the order of a hash of their pixels (for a reduced JPEG, of its file) and the split
    seed, so that neither the order of the images nor other images influence it. A group is moved
    to test, otherwise to validation, if both hold:

    - the class counts of that split get closer to the rounded shares;
    - every class of the group keeps at least two training images.

    Args:
        source: Decoded source, whose settings hold the shares and the split seed.
        salt: Text that is hashed with the split seed; another salt gives another split.

    Returns:
        Split of each image, in the order of ``source.entries``.

    Raises:
        DataError: If the unseen classes cannot be chosen.
    """
    entries, read = source.entries, source.read
    splits = [entry.part or "train" for entry in entries]
    if read.unseen_classes:
        unseen = choose_unseen_classes(source, indivisible_groups(source, range(len(entries))))
        for row, entry in enumerate(entries):
            if entry.label in unseen:
                splits[row] = "test"
    shares = {"test": read.test, "val": read.val}
    for split in {entry.part for entry in entries}:
        shares.pop(split, None)
    pool = [row for row, split in enumerate(splits) if split == "train"]
    if not shares or not pool:
        return splits
    train_counts = Counter(entries[row].label for row in pool)
    missing: dict[str, Counter[str]] = {}  # split -> class -> number of images still to be moved
    for split, share in shares.items():
        missing[split] = Counter(
            {label: round(share * count) for label, count in train_counts.items()}
        )
    for group in indivisible_groups(source, pool, salt):
        counts = Counter(entries[row].label for row in group)
        if any(train_counts[label] - count < 2 for label, count in counts.items()):
            continue
        for split in shares:
            if _gets_closer(missing[split], counts):
                for row in group:
                    splits[row] = split
                missing[split].subtract(counts)
                train_counts.subtract(counts)
                break
    return splits


def _gets_closer(missing: Counter[str], counts: Counter[str]) -> bool:
    """Return True if moving ``counts`` images brings a split closer to its class counts."""
    before = sum(abs(missing[label]) for label in counts)
    after = sum(abs(missing[label] - count) for label, count in counts.items())
    return after < before


def indivisible_groups(source: Source, pool: Sequence[int], salt: str = "") -> list[list[int]]:
    """Group the rows that must stay in one split.

    Images with the same pixels, in any class, stay together, and so do images of one group.

    Args:
        source: Decoded source.
        pool: Rows of ``source`` to group.
        salt: Text that is hashed with the split seed; another salt gives another order.

    Returns:
        Every row of ``pool`` in exactly one group, sorted by a hash of pixels and split seed.
    """
    pixels = source.facts["pixels"][pool].tolist()
    seed = f"{source.read.split_seed}:{salt}".encode()
    sort_keys = [hashlib.sha256(seed + digest).digest() for digest in pixels]
    first: dict[bytes | str, int] = {}  # pixels (bytes) or group (str) -> first index with it
    edges: list[Edge] = []
    for index, row in enumerate(pool):
        keys: list[bytes | str] = [pixels[index]]
        if source.entries[row].group:
            keys.append(source.entries[row].group)
        for key in keys:
            if first.setdefault(key, index) != index:
                edges.append((first[key], index))
    groups = connected_groups(len(pool), edges)
    groups.sort(key=lambda group: min(sort_keys[index] for index in group))
    return [[pool[index] for index in group] for group in groups]
