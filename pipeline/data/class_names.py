"""Match the class names of new images with known classes."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pipeline.data.dataset import composed_name, folded_name
from stages.errors import DataError


class ClassNames(NamedTuple):
    """Classes of new images.

    Attributes:
        names: Class name by the name in the source.
        notes: One sentence per name that is written in another Unicode form.
    """

    names: dict[str, str]
    notes: tuple[str, ...]


def match_class_names(source: str, labels: Iterable[str], known: Sequence[str]) -> ClassNames:
    """Return the class of each name in a source: a known one, or a new one.

    Names that differ only by Unicode form look the same and are one class, with the spelling of the
    known class or else of the first new one.

    Args:
        source: Name of the source, for the messages.
        labels: Names in the source, in a stable order; repeated ones are allowed.
        known: Names of the known classes.

    Raises:
        DataError: If a name differs from another one only by case, or looks like several known
            classes.

    Example:
        >>> match_class_names("new", ["owl", "cat"], ["cat", "dog"]).names
        {'owl': 'owl', 'cat': 'cat'}
    """
    names: dict[str, str] = {}
    notes = []
    known_names = set(known)
    composed: dict[str, list[str]] = {}  # composed name -> known classes and then new ones
    folded: dict[str, str] = {}  # folded name -> first such class
    for name in known:
        composed.setdefault(composed_name(name), []).append(name)
        folded.setdefault(folded_name(name), name)
    for label in dict.fromkeys(labels):
        if label in known_names:
            names[label] = label
            continue
        same = composed.get(composed_name(label), [])
        if len(same) > 1:
            raise DataError(
                f"{source}: the class {label!a} looks like the known classes "
                f"{' and '.join(map(ascii, same))}, which differ by Unicode form; rename the "
                "folder or label to one of them exactly"
            )
        if same:
            names[label] = same[0]
            notes.append(
                f"{label} is the class {same[0]}: the names differ only by Unicode form "
                f"({label!a} and {same[0]!a})"
            )
            continue
        similar = folded.get(folded_name(label))
        if similar is not None:
            kind = "known" if similar in known_names else "new"
            raise DataError(
                f"{source}: the class {label} differs from the {kind} class {similar} only by "
                "case; rename the folder or label"
            )
        names[label] = label
        composed[composed_name(label)] = [label]
        folded[folded_name(label)] = label
    return ClassNames(names, tuple(notes))
