"""A finding of the report."""

from typing import NamedTuple


class Finding(NamedTuple):
    """A finding of the report.

    Attributes:
        kind: ``answer``, ``note``, or ``warning`` where the scores alone would mislead.
        text: One or a few sentences.
        statement: The text without the run's values, if other runs can have the same finding with
            other values. The text is then ``{statement} ({values}).``
        values: These values.
    """

    kind: str
    text: str
    statement: str = ""
    values: str = ""
