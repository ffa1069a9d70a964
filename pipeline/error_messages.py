"""Messages and exit statuses of errors that are not bugs. Importing this imports no torch."""

import io

import click

from stages.errors import PipelineError, SettingsError


def describe_error(error: Exception) -> tuple[int, str]:
    """Return the exit status and the message of an error that is not a bug.

    Args:
        error: Error of a command.

    Raises:
        Exception: The error itself, if it is a bug.
    """
    if isinstance(error, click.Abort):
        # click wraps the interrupt.
        return 130, str(error.__cause__ or "") or "interrupted"
    if isinstance(error, click.ClickException):
        text = io.StringIO()
        error.show(text)
        return error.exit_code, text.getvalue().rstrip()
    if isinstance(error, PipelineError):
        return 1, f"error: {error_message(error)}"
    if isinstance(error, OSError):
        place = error.filename or "standard output"
        return 1, f"error: {place}: {error.strerror or error}; check the path and the free space"
    from pipeline.device import is_out_of_memory
    from pipeline.processes import is_lost_process

    if is_lost_process(error):
        message = "another process of this run has died; start the run again, `embed` with --resume"
        return 1, f"error: {message}"
    if is_out_of_memory(error):
        advice = "use a smaller --size, --dim, --classes-per-batch or --images-per-class"
        return 1, f"error: out of memory ({str(error)[:200]}); {advice}"
    raise error


def error_message(error: PipelineError) -> str:
    """Return the error's message, with a settings field spelled as its option."""
    if not isinstance(error, SettingsError):
        return str(error)
    return f"--{error.field.replace('_', '-')}{str(error).removeprefix(error.field)}"
