"""The errors that a user can cause; everything else is a bug and keeps its traceback."""


class PipelineError(Exception):
    """Something the user gave is wrong: the message says where, what was found and what to do."""


class DataError(PipelineError):
    """The images, labels or splits can't be used."""


class SettingsError(PipelineError):
    """A setting has a value that can't work."""


class CheckpointError(PipelineError):
    """A file of weights is missing, damaged, of the wrong kind, or belongs to something else."""
