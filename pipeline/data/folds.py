"""Assign images to cross-validation folds."""

from collections import Counter
from dataclasses import replace

from pipeline.data.dataset import Source
from pipeline.data.splits import assign_splits, indivisible_groups
from stages.errors import SettingsError


def assign_folds(source: Source, folds: int, salt: str = "") -> list[int]:
    """Each image's fold, from 0: copies and groups whole, each class and all images as evenly as that allows.

    Large units go first, each to the fold that has fewest of its classes, then fewest images. So without groups a class's
    share of two folds differs by at most one image, and so does their size; as many folds as images leave one out at a time.
    Raises SettingsError for fewer than two folds, or more than there are units.
    """
    entries = source.entries
    together = indivisible_groups(source, range(len(entries)), salt)
    if not 2 <= folds <= len(together):
        kept = (
            ""
            if len(together) == len(entries)
            else f", {len(together)} when copies and groups stay together"
        )
        advice = (
            f"use 2 to {len(together)} folds"
            if len(together) > 1
            else "folds need two that may be parted"
        )
        raise SettingsError(
            "folds", folds, f"{source.name} has {len(entries)} images{kept}; {advice}"
        )
    chosen, sizes, held = [0] * len(entries), [0] * folds, [Counter[str]() for _ in range(folds)]
    for rows in sorted(together, key=lambda rows: (-len(rows), entries[rows[0]].label)):
        labels = Counter(entries[row].label for row in rows)
        fold = min(
            range(folds),
            key=lambda fold: (
                sum(held[fold][label] * n for label, n in labels.items()),
                sizes[fold],
            ),
        )
        held[fold] += labels
        sizes[fold] += len(rows)
        for row in rows:
            chosen[row] = fold
    return chosen


def plan_folds(source: Source, folds: int, repeats: int) -> tuple[dict[str, list[str]], list[str]]:
    """Each image's part in every fold by the fold's name, and what should be known about it.

    source: without parts of its own. A fold's validation images come from its training part, by the rule of every split;
    but from none if in some fold most classes are too small to give one up.
    """
    if repeats < 1:
        raise SettingsError("repeats", repeats, "out of range; use at least 1")
    labels = [entry.label for entry in source.entries]
    plans: dict[str, list[str]] = {}
    for repeat in range(1, repeats + 1):
        of = assign_folds(source, folds, f"repeat-{repeat}")
        for fold in range(folds):
            name = f"repeat-{repeat}-fold-{fold + 1}" if repeats > 1 else f"fold-{fold + 1}"
            entries = [
                entry._replace(part="test" if of[row] == fold else "")
                for row, entry in enumerate(source.entries)
            ]
            plans[name] = assign_splits(replace(source, entries=tuple(entries)), name)
    remarks, alone, small = [], set(), False
    for name, parts in plans.items():
        held = {
            part: {label for label, given in zip(labels, parts, strict=True) if given == part}
            for part in ("train", "val", "test")
        }
        sizes = Counter(label for label, part in zip(labels, parts, strict=True) if part != "test")
        if len(sizes) < 2 or max(sizes.values()) < 2:
            raise SettingsError(
                "folds",
                folds,
                f"{name} has no two training images of one class beside another class; use more folds, or add images",
            )
        alone |= held["test"] - held["train"]
        small |= 2 * len(held["val"]) < len(held["train"])
    if small:
        plans = {
            name: ["train" if part == "val" else part for part in parts]
            for name, parts in plans.items()
        }
        remarks.append(
            "most classes are too small to give up a validation image: epochs, k and weight decay are fixed, temperature is 1"
        )
    if alone:
        named = ", ".join(sorted(alone)[:5])
        remarks.append(
            f"{len(alone)} classes ({named}) have a fold with none of their images in training: it can't name them rightly"
        )
    return plans, remarks
