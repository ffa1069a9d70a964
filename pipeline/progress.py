"""Progress display of long loops."""

from collections.abc import Callable, Iterable
from typing import Any

# Wraps an iterable for display: (caption, total, items) -> items.
Progress = Callable[[str, int, Iterable[Any]], Iterable[Any]]


def no_progress(caption: str, total: int, items: Iterable[Any]) -> Iterable[Any]:
    """Return the items without displaying anything.

    Args:
        caption: Ignored.
        total: Ignored.
        items: Iterable to return.

    Returns:
        ``items``.
    """
    return items
