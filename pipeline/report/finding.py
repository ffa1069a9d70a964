"""A finding of the report."""

from typing import NamedTuple


class Finding(NamedTuple):
    """A finding of the report.

    Attributes:
        kind: ``answer``, ``note``, or ``warning`` where the scores alone would mislead.
        text: One or a few sentences.
    """

    kind: str
    text: str
