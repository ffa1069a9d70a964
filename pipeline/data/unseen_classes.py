"""Choose the classes that are tested but not trained on, and those that choose the epoch."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

from pipeline.data.components import Edge, connected_groups
from pipeline.data.dataset import Source, folded_name
from stages.errors import DataError

# Held-out classes cost training data. With fewer training classes, their loss would cost more than
# a better choice of the epoch gains.
MIN_TRAINING_CLASSES = 20
# A tenth of the training classes is held out, but 4 to 50. With fewer than four classes, recall@1
# is near 1 for every epoch; with more than fifty, its order of the epochs hardly changes.
HELD_OUT_SHARE, MIN_HELD_OUT, MAX_HELD_OUT = 0.1, 4, 50


def requested_classes(setting: int | float, class_count: int) -> int:
    """Return the number of unseen classes that a setting asks for.

    Args:
        setting: Number of classes, or as a float their share.
        class_count: Number of classes of the source.

    Example:
        >>> requested_classes(3, 10), requested_classes(0.25, 10)
        (3, 2)
    """
    if isinstance(setting, int):
        return setting
    return min(max(2, round(setting * class_count)), class_count - 2)


def choose_unseen_classes(source: Source, groups: Iterable[Sequence[int]]) -> set[str]:
    """Choose the classes of which every image is a test image.

    Classes are visited in the order of a hash of their name and the split seed, so that other
    classes hardly influence which are chosen. Classes that share a group or copies of an image, or
    whose names differ only by case or Unicode form, are chosen together. If this does not allow
    the requested number, fewer are chosen.

    Args:
        source: Decoded source, whose settings hold the number or share of the classes.
        groups: The rows of ``source`` that must stay in one split, group by group.

    Returns:
        Names of at least two classes, with at least two others left.

    Raises:
        DataError: If the source has too few classes, test classes without training images or
            roles, or connections do not allow two classes on either side.
    """
    setting = source.read.unseen_classes
    labels = {entry.label for entry in source.entries}
    trained = {entry.label for entry in source.entries if entry.part in ("", "train")}
    _check_source(source, labels - trained)
    requested = requested_classes(setting, len(labels))
    if not 2 <= requested <= len(labels) - 2:
        advice = f"use 2 to {len(labels) - 2}" if len(labels) >= 4 else "at least 4 are needed"
        problem = (
            f"{source.name} has {len(labels)} classes, of which 2 must be trained on; {advice}"
        )
        raise _error(source, problem)
    chosen = _fill(_connected_classes(source, groups, "unseen"), requested)
    if len(chosen) < 2:
        raise _error(
            source,
            f"copies, groups and similar names connect the classes of {source.name}: no 2 to "
            f"{requested} of them can be held out; use another number, or remove copies",
        )
    return set(chosen)


def _check_source(source: Source, untrained: set[str]) -> None:
    """Raise DataError if unseen classes cannot be chosen from a source."""
    if untrained:
        raise _error(
            source,
            f"in {source.name}, the class {min(untrained)} has no training image already; "
            "use 0, or remove the classes without training images",
        )
    if any(entry.role for entry in source.entries):
        raise _error(
            source,
            f"the training images of {source.name} have no role in retrieval; "
            "use 0, or remove the column role",
        )


def _error(source: Source, problem: str) -> DataError:
    return DataError(f"--unseen-classes {source.read.unseen_classes}: {problem}")


def choose_held_out_classes(
    source: Source, rows: Sequence[int], groups: Iterable[Sequence[int]]
) -> set[str]:
    """Choose the training classes on which stage one does not train.

    Only classes with at least two training images count. Classes that share a group or copies are
    chosen together.

    Args:
        source: Decoded source, whose settings hold the split seed.
        rows: Rows of the training images.
        groups: The same rows, group by group.

    Returns:
        Names of the classes; none if fewer than ``MIN_TRAINING_CLASSES`` are trained on, or if
        connections do not allow two.
    """
    sizes = Counter(source.entries[row].label for row in rows)
    if len(sizes) < MIN_TRAINING_CLASSES:
        return set()
    usable = {label for label, size in sizes.items() if size >= 2}
    count = min(max(MIN_HELD_OUT, round(HELD_OUT_SHARE * len(usable))), MAX_HELD_OUT)
    components = _connected_classes(source, groups, "held-out")
    components = [component for component in components if usable.issuperset(component)]
    chosen = _fill(components, min(count, len(usable) // 2))
    return set(chosen) if len(chosen) >= 2 else set()


def _connected_classes(
    source: Source, groups: Iterable[Sequence[int]], purpose: str
) -> list[list[str]]:
    """Return the classes that must be chosen together, in the order of their hashes."""
    edges: list[tuple[str, str]] = []
    first: dict[str, str] = {}  # folded name -> first class with it
    labels: set[str] = set()
    for group in groups:
        in_group = sorted({source.entries[row].label for row in group})
        labels.update(in_group)
        edges += [(in_group[0], label) for label in in_group[1:]]
    ordered = sorted(labels)
    for label in ordered:
        edges.append((first.setdefault(folded_name(label), label), label))
    index = {label: position for position, label in enumerate(ordered)}
    pairs: list[Edge] = [(index[left], index[right]) for left, right in edges]
    components = [
        [ordered[position] for position in component]
        for component in connected_groups(len(ordered), pairs)
    ]

    def sort_key(component: list[str]) -> bytes:
        texts = [f"{source.read.split_seed}:{purpose}:{label}" for label in component]
        return min(
            hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest() for text in texts
        )

    return sorted(components, key=sort_key)


def _fill(components: Sequence[list[str]], count: int) -> list[str]:
    """Choose whole components with ``count`` classes together, or else as many as possible.

    The first components win. A start that does not reach ``count`` is dropped for the next one.

    Example:
        >>> _fill([["a"], ["b", "c"], ["d"]], 2), _fill([["a"], ["b", "c"]], 2)
        (['a', 'd'], ['b', 'c'])
    """
    best: list[str] = []
    for start in range(len(components)):
        chosen: list[str] = []
        for component in components[start:]:
            if len(chosen) + len(component) <= count:
                chosen += component
        if len(chosen) > len(best):
            best = chosen
        if len(best) == count:
            break
    return best
