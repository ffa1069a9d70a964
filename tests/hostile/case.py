"""A hostile case: a command, what is prepared for it, and the expected outcome.

The functions below make cases. A new case is one line in a file of ``cases/``:

    error("embed --dim 0", "--dim 0")
"""

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

REMEDY = re.compile(r";|\b(use|give|run|install|try|add|remove|choose|free|create)\b", re.I)
CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Case:
    """One command line with its expected outcome.

    Attributes:
        command: Arguments of `pipeline`, quoted as in a shell; of a shell case, a bash script.
        status: Allowed exit statuses.
        mentions: Texts that the error message contains, or for status 0 the output. ``a|b``: one
            of them.
        prints: Texts that standard output contains.
        prepare: Called in the folder of the case before the command.
        writes: Files that the command writes. It changes nothing else.
        may_write: True if other files may change too.
        environment: Environment variables; ``None`` removes one.
        name: Name of the case, by default the command.
        shell: True for a bash script in a separate process.
    """

    command: str
    status: tuple[int, ...]
    mentions: tuple[str, ...] = ()
    prints: tuple[str, ...] = ()
    prepare: Callable[[], Any] = lambda: None
    writes: tuple[str, ...] = ()
    may_write: bool = False
    environment: Mapping[str, str | None] = field(default_factory=dict)
    name: str = ""
    shell: bool = False

    @property
    def arguments(self) -> list[str]:
        """Arguments of `pipeline`."""
        return shlex.split(self.command)

    @property
    def id(self) -> str:
        """Name in the list of tests: printable ASCII."""
        return ascii(self.name or self.command)[1:-1][:120]


@dataclass(frozen=True)
class Outcome:
    """Result of a command.

    Attributes:
        status: Exit status, or None if it did not end by itself.
        out: Standard output.
        err: Standard error, with the traceback of an exception that the command did not catch.
        changes: Paths that were created, changed or removed.
    """

    status: int | None
    out: str
    err: str
    changes: frozenset[str]


def error(command: str, *mentions: str, **options: Any) -> Case:
    """Expect an invalid input, file or setting: one message, and nothing is written."""
    return Case(command, (1,), mentions, **options)


def usage(command: str, *mentions: str, **options: Any) -> Case:
    """Expect a usage error: one message, and nothing is written."""
    return Case(command, (2,), mentions, **options)


def rejected(command: str, *mentions: str, **options: Any) -> Case:
    """Expect an error of either kind."""
    return Case(command, (1, 2), mentions, **options)


def works(command: str, *mentions: str, **options: Any) -> Case:
    """Expect that the command is tolerated. ``mentions`` are notes or warnings."""
    return Case(command, (0,), mentions, **options)


def some_unreadable(command: str, *mentions: str, prints: tuple[str, ...], **options: Any) -> Case:
    """Expect all rows, a reason for each unreadable image that was named, and status 1."""
    return Case(command, (1,), mentions, prints=prints, **options)


def problems(case: Case, outcome: Outcome) -> list[str]:
    """Return how an outcome differs from the expected one."""
    found = []
    if outcome.status not in case.status:
        found.append(f"exit status {outcome.status}, expected {case.status}")
    if "Traceback" in outcome.out + outcome.err:
        found.append("traceback")
    # The rows of `predict` hold file names as they are.
    messages = outcome.err if case.prints else outcome.out + outcome.err
    if CONTROL_CHARACTER.search(messages):
        found.append("control character in the output")
    rejects = case.status != (0,) and not case.prints
    message = outcome.out + outcome.err if case.status == (0,) else outcome.err
    if rejects and outcome.status in (1, 2):
        message = error_message(outcome)
        found += message_problems(message, outcome)
    for text in case.mentions:
        if not any(part.lower() in message.lower() for part in text.split("|")):
            found.append(f"message without {text!r}")
    found += [f"output without {text!r}" for text in case.prints if text not in outcome.out]
    found += [f"{path} not written" for path in case.writes if path not in outcome.changes]
    if not case.may_write:
        others = sorted(outcome.changes - set(case.writes))
        found += [f"changed: {', '.join(others)}"] if others else []
    return found


def error_message(outcome: Outcome) -> str:
    """Return standard error from the error message on."""
    label = "error: " if outcome.status == 1 else "Error: "
    start = f"\n{outcome.err}".find(f"\n{label}")
    return outcome.err[start:] if start >= 0 else ""


def message_problems(message: str, outcome: Outcome) -> list[str]:
    """Return what is wrong with an error message: it is one, in one line, with a remedy."""
    if not message:
        return ["no error message"]
    found = []
    if len(message.strip().splitlines()) > 1:
        found.append("text after the error message")
    # click's hint, "Try 'pipeline embed -h' for help", comes before its message.
    if not REMEDY.search(outcome.err if outcome.status == 2 else message):
        found.append("no remedy")
    return found
