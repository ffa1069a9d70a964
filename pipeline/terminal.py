"""Standard output and standard error: encodings, closed streams and control characters.

Importing this module imports no torch.
"""

import codecs
import os
import sys
from contextlib import suppress

import click

from pipeline.escape import printable


def prepare_streams() -> None:
    """Make printing safe: any text, and streams that the caller has closed.

    A character that the encoding lacks is printed as a backslash escape. The bytes of a file name
    that is not valid text are printed unchanged.
    """
    # A file that is opened later would otherwise become standard output or standard error.
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)
    if sys.stdout is None:  # closed; writing to the replacement fails, as it should
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  # until the process ends
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    codecs.register_error("pipeline-text", _encode_unencodable)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(
                errors="pipeline-text" if stream is sys.stdout else "backslashreplace"
            )


def _encode_unencodable(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encode what an encoding lacks: the original byte of a file name, or a backslash escape."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


def print_text(text: str) -> None:
    """Print text to standard output, with control characters escaped."""
    click.echo(printable(text))


def print_error(text: str) -> None:
    """Print a message to standard error, with control characters escaped.

    If standard error is closed or full, the message is lost; the exit status remains.
    """
    with suppress(OSError):
        click.echo(printable(text), err=True)


def flush_output() -> None:
    """Write what standard output still holds.

    Raises:
        OSError: If it cannot be written.
    """
    sys.stdout.flush()


def discard_output() -> None:
    """Discard what standard output still holds, so that Python's exit does not fail again."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
