"""Assign images to cross-validation folds."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from pipeline.data.dataset import Source
from pipeline.data.entries import SPLITS
from pipeline.data.splits import assign_splits, indivisible_groups
from stages.errors import SettingsError

MAX_REPEATS = 1000  # more would not make a standard deviation more precise


def assign_folds(source: Source, folds: int, salt: str = "") -> list[int]:
    """Assign each image to a fold.

    Copies of an image and images of one group share a fold. Classes and images are spread over
    the folds as evenly as possible: without groups and copies, the sizes of two folds differ by
    at most one image, and so do their numbers of images of a class. With as many folds as images
    this is leave-one-out.

    Args:
        source: Decoded source.
        folds: Number of folds.
        salt: Text that is hashed with the split seed; another salt gives other folds.

    Returns:
        Fold of each image, from 0, in the order of ``source.entries``.

    Raises:
        SettingsError: If ``folds`` is below 2 or above the number of indivisible groups.
    """
    entries = source.entries
    groups = indivisible_groups(source, range(len(entries)), salt)
    _check_fold_count(source, folds, len(groups))
    assigned = [0] * len(entries)
    fold_sizes = [0] * folds
    class_counts = [Counter[str]() for _ in range(folds)]
    # Large groups come first: small ones can then still level the folds.
    for group in sorted(groups, key=lambda group: (-len(group), entries[group[0]].label)):
        labels = Counter(entries[row].label for row in group)
        fold = least_filled_fold(labels, class_counts, fold_sizes)
        class_counts[fold].update(labels)
        fold_sizes[fold] += len(group)
        for row in group:
            assigned[row] = fold
    return assigned


def _check_fold_count(source: Source, folds: int, groups: int) -> None:
    if 2 <= folds <= groups:
        return
    problem = f"{source.name} has {len(source.entries)} images"
    if groups != len(source.entries):
        problem += f" in {groups} groups, since copies and groups are not divided"
    advice = f"use 2 to {groups} folds" if groups > 1 else "folds need at least 2 groups"
    raise SettingsError("folds", folds, f"{problem}; {advice}")


def least_filled_fold(
    labels: Counter[str], class_counts: Sequence[Counter[str]], fold_sizes: Sequence[int]
) -> int:
    """Choose the fold for a group of images.

    Args:
        labels: Number of images of each class in the group.
        class_counts: Number of images of each class in each fold so far.
        fold_sizes: Number of images in each fold so far.

    Returns:
        The fold with the fewest images of the group's classes, weighted by ``labels``. Ties go
        to the fold with the fewest images, then to the first one.

    Example:
        >>> least_filled_fold(Counter(a=1), [Counter(a=2), Counter(b=5), Counter(b=3)], [2, 5, 3])
        2
    """

    def filling(fold: int) -> tuple[int, int]:
        same_class = sum(class_counts[fold][label] * count for label, count in labels.items())
        return same_class, fold_sizes[fold]

    return min(range(len(fold_sizes)), key=filling)


def plan_folds(source: Source, folds: int, repeats: int) -> tuple[dict[str, list[str]], list[str]]:
    """Plan the splits of repeated cross-validation.

    Validation images are taken from the training images of a fold, as in :func:`assign_splits`.
    If in some fold most classes are too small for that, no fold has validation images.

    Args:
        source: Decoded source that assigns no splits.
        folds: Number of folds.
        repeats: Number of repeats, each with other folds.

    Returns:
        Split of each image by the name of the fold (``fold-1``, or ``repeat-1-fold-1``), and
        notes for the user.

    Raises:
        SettingsError: If ``folds`` or ``repeats`` is out of range, or some fold has no triplet to
            train on.
    """
    if not 1 <= repeats <= MAX_REPEATS:
        raise SettingsError("repeats", repeats, f"out of range; use 1 to {MAX_REPEATS}")
    plans: dict[str, list[str]] = {}
    for repeat in range(1, repeats + 1):
        assigned = assign_folds(source, folds, f"repeat-{repeat}")
        for fold in range(folds):
            name = f"repeat-{repeat}-fold-{fold + 1}" if repeats > 1 else f"fold-{fold + 1}"
            plans[name] = _splits_of_fold(source, assigned, fold, name)

    labels = [entry.label for entry in source.entries]
    too_small = False
    untrained: set[str] = set()
    for name, splits in plans.items():
        _check_triplets(labels, splits, folds, name)
        classes = _classes_by_split(labels, splits)
        too_small |= 2 * len(classes["val"]) < len(classes["train"])
        untrained |= classes["test"] - classes["train"]

    notes = []
    if too_small:
        for name, splits in plans.items():
            plans[name] = ["train" if split == "val" else split for split in splits]
        reason = "most classes are too small for a validation image"
        if source.read.val == 0:
            reason = "no validation images (--val 0)"
        notes.append(f"{reason}: epochs, k and weight decay are fixed, probabilities uncalibrated")
    if untrained:
        examples = ", ".join(sorted(untrained)[:5])
        notes.append(
            f"{len(untrained)} classes ({examples}) have no training image in some fold: "
            "their images cannot be classified correctly there"
        )
    return plans, notes


def _splits_of_fold(source: Source, assigned: list[int], fold: int, name: str) -> list[str]:
    """Return the split of each image when one fold is the test split."""
    entries = []
    for entry, entry_fold in zip(source.entries, assigned, strict=True):
        entries.append(entry._replace(part="test" if entry_fold == fold else ""))
    return assign_splits(replace(source, entries=tuple(entries)), name)


def _check_triplets(labels: list[str], splits: list[str], folds: int, name: str) -> None:
    """Raise SettingsError if no triplet can be formed outside of the test split."""
    sizes = Counter(label for label, split in zip(labels, splits, strict=True) if split != "test")
    if len(sizes) < 2 or max(sizes.values()) < 2:
        raise SettingsError(
            "folds",
            folds,
            f"{name} lacks two training images of one class and one of another; "
            "use more folds, or add images",
        )


def _classes_by_split(labels: list[str], splits: list[str]) -> dict[str, set[str]]:
    classes: dict[str, set[str]] = {split: set() for split in SPLITS}
    for label, split in zip(labels, splits, strict=True):
        classes[split].add(label)
    return classes
