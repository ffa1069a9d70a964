"""Describe the enrolments in the record of a classifier."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.numbers import count_of

LISTED = 10  # classes that are listed by name


def image_count(enrolment: Mapping[str, Any]) -> int:
    """Return the number of images of an enrolment."""
    return sum(enrolment["images"].values())


def enrolled_count(record: Mapping[str, Any]) -> int:
    """Return the number of enrolled images of a classifier: the last ones of its gallery."""
    return sum(map(image_count, record.get("enrolled", ())))


def images_per_class(record: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of enrolled images of each class that has some."""
    counts: Counter[str] = Counter()
    for enrolment in record.get("enrolled", ()):
        counts.update(enrolment["images"])
    return dict(counts)


def describe_enrolments(record: Mapping[str, Any]) -> list[str]:
    """Return one phrase per enrolment, oldest first: images, classes and source.

    Example:
        >>> enrolment = {"images": {"owl": 5, "cat": 1}, "new_classes": ["owl"], "source": "/new"}
        >>> describe_enrolments({"enrolled": [enrolment]})
        ['5 images of 1 new class (owl) and 1 image of 1 known class (cat) from /new']
    """
    phrases = []
    for enrolment in record.get("enrolled", ()):
        new_classes = set(enrolment["new_classes"])
        parts = []
        for kind in ("new", "known"):
            counts = {
                name: count
                for name, count in enrolment["images"].items()
                if (name in new_classes) == (kind == "new")
            }
            if counts:
                parts.append(f"{describe_images(counts, kind)} ({list_first(counts)})")
        phrases.append(f"{' and '.join(parts)} from {enrolment['source']}")
    return phrases


def describe_images(counts: Mapping[str, int], kind: str) -> str:
    """Describe images of classes of a kind, ``new`` or ``known``, by the number of each.

    Example:
        >>> describe_images({"cat": 2, "dog": 1}, "known")
        '3 images of 2 known classes'
    """
    noun = "class" if len(counts) == 1 else "classes"
    return f"{count_of(sum(counts.values()), 'image')} of {len(counts)} {kind} {noun}"


def list_first(names: Iterable[str]) -> str:
    """List the first ten of some names.

    Example:
        >>> list_first("abcdefghijkl")
        'a, b, c, d, e, f, g, h, i, j, ...'
    """
    listed = list(names)
    return ", ".join([*listed[:LISTED], *(["..."] if len(listed) > LISTED else [])])
