"""Command-line options and their help texts. Importing this module imports no torch."""

import functools
import gc
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from pipeline.option_help import AUTOMATIC, HELP
from stages.settings import DISTANCES, JPEGS, MININGS, PML, REJECT, RESIZES

EMBEDDING = Path("checkpoints/embedding.safetensors")
CLASSIFIER = Path("checkpoints/classifier.safetensors")
REPORTS = Path("reports")


class _MiningType(click.Choice[str]):
    """A mode of the triplet loss, or a miner of pytorch-metric-learning."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if str(value).startswith(PML):
            return value
        return super().convert(value, param, ctx)


CHOICES = {
    "resize": click.Choice(RESIZES),
    "jpeg": click.Choice(JPEGS),
    "distance": click.Choice(DISTANCES),
    "mining": _MiningType((*MININGS, "pml:NAME")),
}

SOURCE = (
    "Labelled images: `digits`; a folder with one subfolder per class, or with train/, val/ and "
    "test/ that have one subfolder per class; a .csv file with the columns path and label, "
    "optionally split, group and role; or torchvision:NAME."
)
MOVED = "Source of the images. Needed only if they have moved since stage one."


def number_or_soft(value: str | float) -> float | None:
    """Return the margin as a number, or None for ``soft``."""
    return None if value == "soft" else float(value)


def share_or_count(value: str | float) -> int | float:
    """Return a whole number as a count, and a number with a decimal point as a share."""
    if not isinstance(value, str):
        return value
    for number in (int, float):
        try:
            return number(value)
        except ValueError:
            continue
    advice = "use a count such as 3, or a share such as 0.3"
    raise click.BadParameter(f"{value!r} is not a number; {advice}")


def table(value: str | dict[str, Any]) -> dict[str, Any]:
    """Return parameters by name, from JSON or from a table of the --config file."""
    if isinstance(value, dict):
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        advice = 'use a JSON object such as {"margin": 0.2}'
        raise click.BadParameter(f"{value!r} is not a JSON object; {advice}")
    return parsed


TYPES: dict[Any, Callable[[Any], Any]] = {
    dict[str, Any] | None: table,
    int | float: share_or_count,
    float | None: number_or_soft,
    int: int,
    float: float,
    str: str,
    int | None: int,
    bool: bool,
}


class _PathType(click.Path):
    """A path. An empty one, which would be the current folder, is rejected."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if value == "":
            self.fail("empty; give a path", param, ctx)
        if "\0" in str(value):
            self.fail(f"{str(value)!r} has a null byte; give another path", param, ctx)
        return super().convert(value, param, ctx)


PATH = _PathType(path_type=Path)


def combine(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a decorator that adds several options to a command, in this order."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def settings_options(settings: type, *, leave_out: Sequence[str] = ()) -> Callable[[Any], Any]:
    """Return a decorator that adds one option per field of a settings class.

    Args:
        settings: Frozen dataclass. The options have the fields' defaults.
        leave_out: Fields without an option.

    Returns:
        Decorator for a click command.
    """
    options = []
    for field in fields(settings):
        if field.name in leave_out:
            continue
        flag = f"--{field.name.replace('_', '-')}"
        option = click.option(
            f"{flag}/--no-{field.name}" if field.type is bool else flag,
            type=CHOICES.get(field.name, TYPES.get(field.type)),
            default=field.default,
            show_default=AUTOMATIC.get(field.name, True),
            help=HELP[field.name],
        )
        options.append(option)
    return combine(*options)


def pick(settings: type, options: dict[str, Any]) -> Any:
    """Build a dataclass from the options that have its fields' names.

    Args:
        settings: Dataclass to build.
        options: Values by option name. Other names are ignored; missing ones keep their default.

    Returns:
        An instance of ``settings``.

    Raises:
        SettingsError: If a value is out of range.
    """
    names = {field.name for field in fields(settings)}
    return settings(**{name: value for name, value in options.items() if name in names})


def path_option(flag: str, default: Path | None, text: str) -> Callable[[Any], Any]:
    """Return an option that takes a path."""
    return click.option(
        flag,
        type=PATH,
        default=default and str(default),  # click converts it; help shows it as text
        show_default=True,
        help=text,
    )


def paths_option(flag: str, default: Path, text: str) -> Callable[[Any], Any]:
    """Return an option that takes a path and may be repeated."""
    return click.option(
        flag,
        type=PATH,
        default=[str(default)],
        multiple=True,
        show_default=True,
        help=text,
    )


def data_option(default: str | None, text: str) -> Callable[[Any], Any]:
    """Return the option ``--data`` and the argument ``SOURCE``; the command gets ``source``."""

    def decorate(command: Any) -> Any:
        @functools.wraps(command)
        def with_source(
            *arguments: Any, positional: str | None, source: str | None, **options: Any
        ) -> Any:
            if positional is not None and source not in (None, positional):
                raise click.UsageError(f"SOURCE {positional} and --data {source}: give one of them")
            chosen = source if positional is None else positional
            if chosen == "":
                raise click.UsageError("--data '': empty; give a source")
            return command(*arguments, source=default if chosen is None else chosen, **options)

        option = click.option(
            "--data", "source", metavar="SOURCE", show_default=default or False, help=text
        )
        return click.argument("positional", metavar="[SOURCE]", required=False)(option(with_source))

    return decorate


def force_option(text: str) -> Callable[[Any], Any]:
    """Return the option ``--force``."""
    return click.option("--force", is_flag=True, help=text)


quiet_option = click.option("--quiet", is_flag=True, help="Show no progress and no notes.")


device_options = combine(
    click.option(
        "--device",
        type=click.Choice(("auto", "cpu", "cuda", "mps")),
        default="auto",
        show_default=True,
        help="Device to compute on; auto uses CUDA if it is available.",
    ),
    click.option("--threads", type=int, show_default="one per core", help="Number of CPU threads."),
    quiet_option,
)
precision_option = click.option(
    "--precision",
    type=click.Choice(("auto", "fp32", "bf16")),
    default="auto",
    show_default=True,
    help="Precision of training; evaluation always uses float32.",
)
cache_options = combine(
    click.option(
        "--cache",
        type=PATH,
        show_default="the user's cache folder",
        help="Folder for decoded images.",
    ),
    click.option(
        "--root",
        type=PATH,
        show_default="the user's cache folder",
        help="Folder of torchvision's data sets.",
    ),
    click.option(
        "--download", is_flag=True, help="Download a torchvision data set that is missing."
    ),
)
figures_option = path_option("--figures", None, "Folder for the figures as PNG and SVG files.")
queries_option = click.option(
    "--queries",
    type=click.IntRange(min=1),
    default=None,
    show_default="(all)",
    help="Evaluate this many test images, drawn at random; they query all test images. Intervals "
    "are those of the sample. For very large test splits.",
)
reject_option = click.option(
    "--reject",
    type=float,
    metavar="SHARE",
    default=REJECT,
    show_default=True,
    help="Typicality below which an image is marked as unknown. About this share of the images of "
    "known classes is marked too. 0 marks none.",
)
resume_option = click.option(
    "--resume",
    is_flag=True,
    help="Resume an interrupted stage one; start it if there is nothing to resume.",
)


def run_context(options: dict[str, Any]) -> Any:
    """Build the RunContext from a command's options, when all modules have been imported."""
    from pipeline.context import RunContext
    from pipeline.device import keep_freed_memory

    gc.freeze()  # see `pipeline.cli.main`
    gc.enable()
    keep_freed_memory(options.get("device", "auto"))
    return pick(RunContext, {**options, "given": given_options()})


def given_options() -> frozenset[str]:
    """Return the names of the options given on the command line or in the --config file."""
    context = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    return frozenset(
        name for name in context.params if context.get_parameter_source(name) != default
    )


def spell(*hints: tuple[str, object, object]) -> str:
    """Return the options that differ from their defaults, as one types them.

    Args:
        hints: Flag, value and default of each option.
    """
    given = [(flag, str(value)) for flag, value, default in hints if value != default]
    return "".join(f" {flag} {shlex.quote(value)}" for flag, value in given)


def predict_hint(classifier: Path) -> str:
    """Return the `pipeline predict` command for a classifier."""
    return f"predict IMAGE...{spell(('--classifier', classifier, CLASSIFIER))}"
