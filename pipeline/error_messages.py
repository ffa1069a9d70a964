"""Messages and exit statuses of errors that are not bugs. Importing this imports no torch."""

import io

import click

from pipeline.failures import LOST_PROCESS, failure_of_another_rank, is_lost_process
from stages.errors import PipelineError, SettingsError


def describe_error(error: Exception) -> tuple[int, str]:
    """Return the exit status and the message of an error that is not a bug.

    Args:
        error: Error of a command.

    Raises:
        Exception: The error itself, if it is a bug.
    """
    if isinstance(error, click.Abort):
        # click wraps the interrupt. torchrun interrupts a process if another one has failed.
        failure = failure_of_another_rank()
        message = f"error: {failure}" if failure else str(error.__cause__ or "")
        return 1 if failure else 130, message or "interrupted"
    if isinstance(error, click.ClickException):
        text = io.StringIO()
        error.show(text)
        message = text.getvalue().rstrip()
        if isinstance(error, click.UsageError) and error.ctx is None:
            message += "; --help lists the options"
        return error.exit_code, message
    if isinstance(error, PipelineError):
        # A line break in a file name must not look like a second message.
        return 1, f"error: {error_message(error)}".replace("\n", "\\n").replace("\r", "\\r")
    if isinstance(error, OSError):
        place = error.filename or "standard output"
        return 1, f"error: {place}: {error.strerror or error}; check the path and the free space"
    if is_lost_process(error):
        return 1, f"error: {failure_of_another_rank() or LOST_PROCESS}"
    from pipeline.device import is_out_of_memory

    if is_out_of_memory(error):
        advice = "use a smaller --size, --dim, --classes-per-batch or --images-per-class"
        return 1, f"error: out of memory ({str(error)[:200]}); {advice}"
    raise error


def describe_failure(error: Exception) -> tuple[str, bool]:
    """Return the message of an error in one line, for work that continues after it.

    Args:
        error: Any error.

    Returns:
        The message, and True if the error is a bug.
    """
    is_bug = False
    try:
        message = describe_error(error)[1].removeprefix("error: ")
    except Exception:  # describe_error raises what it does not know
        message, is_bug = f"{type(error).__name__}: {error}", True
    return " ".join(message.split())[:500].removesuffix("."), is_bug


def error_message(error: PipelineError) -> str:
    """Return the error's message, with a settings field spelled as its option."""
    if not isinstance(error, SettingsError):
        return str(error)
    return f"--{error.field.replace('_', '-')}{str(error).removeprefix(error.field)}"
