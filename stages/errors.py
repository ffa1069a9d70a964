"""User-facing errors. Every other exception is a bug and keeps its traceback."""


class PipelineError(Exception):
    """Invalid input. The message says where, what was found and what to do."""


class DataError(PipelineError):
    """Unusable images, labels or splits."""


class SettingsError(PipelineError):
    """A setting with a value that cannot work.

    Args:
        field: Name of the settings field, such as ``images_per_class``. The command line shows
            it as an option, ``--images-per-class``.
        value: The rejected value. ``None`` if there is none to show.
        problem: What is wrong and which values are allowed.

    Example:
        >>> str(SettingsError("dim", 0, "out of range; use a whole number of at least 1"))
        'dim 0: out of range; use a whole number of at least 1'
    """

    def __init__(self, field: str, value: object, problem: str) -> None:
        super().__init__(field, value, problem)  # all arguments, so that the error can be pickled
        self.field = field

    def __str__(self) -> str:
        field, value, problem = self.args
        shown = field if value is None else f"{field} {value}"
        return f"{shown}: {problem}"


class CheckpointError(PipelineError):
    """A missing, damaged or mismatched checkpoint, or weights that do not fit the network."""
