"""The command `pipeline compare`. Importing this module imports no torch."""

from pathlib import Path
from typing import Any

import click

from pipeline import options as opt
from pipeline import terminal
from pipeline.config import configured_values
from pipeline.fold_options import check_fold_options, folds_options
from pipeline.options import REPORTS, pick
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings

FIELDS = {"networks": "network", "losses": "loss", "mining": "mining"}  # option -> field


def parse_names(_: click.Context, option: click.Parameter, value: str) -> tuple[str, ...]:
    """Return the names in a list with commas.

    Raises:
        click.BadParameter: If a name is empty or given twice.
    """
    names = tuple(name.strip() for name in value.split(","))
    if "" in names:
        problem = f"{value!r}: empty name; use names with commas between them, such as A,B"
        raise click.BadParameter(problem, param=option)
    for name in names:
        if names.count(name) > 1:
            problem = f"{value}: {name} is given twice; use each name once"
            raise click.BadParameter(problem, param=option)
    return names


def names_option(flag: str, default: str, text: str) -> Any:
    """Return an option that takes one or more names."""
    return click.option(
        flag,
        metavar="A,B,...",
        default=default,
        show_default=True,
        callback=parse_names,
        help=text,
    )


@click.command()
@opt.data_option("digits", opt.SOURCE)
@names_option(
    "--networks",
    EmbedSettings.network,
    "Networks to compare, as for `pipeline embed --network`. --weights and --trunk apply to those "
    "of a library.",
)
@names_option("--losses", EmbedSettings.loss, "Losses to compare, as for `pipeline embed --loss`.")
@names_option(
    "--mining", EmbedSettings.mining, "Mining modes to compare, as for `pipeline embed --mining`."
)
@opt.path_option("--out", REPORTS / "compare", "Folder for the report.")
@opt.force_option("Replace a comparison, or a report on cross-validation.")
@opt.figures_option
@folds_options
@opt.settings_options(EmbedSettings, leave_out=("network", "loss", "mining"))
@opt.settings_options(ReadSettings)
@opt.cache_options
@opt.precision_option
@opt.device_options
@click.pass_context
def compare(context: click.Context, /, source: str, **options: Any) -> None:
    """Compare networks, losses or mining modes on the same images.

    Give several names to one of --networks, --losses and --mining. Each of them is trained and
    tested on the same images; one report says which is the best, and by how much. No model is kept.

    \b
    pipeline compare --data photos/ --networks auto,conv --folds 5
    """  # noqa: D301  # click needs the control character
    check_fold_options(context, options["folds"], options["repeats"])
    option = compared_option(options)
    group: Any = context.find_root().command
    classify_values = configured_values(context.obj, group.commands["classify"], context)
    classify_settings = pick(ClassifySettings, {"seed": options["seed"], **classify_values})
    read = pick(ReadSettings, options)
    shared = shared_values(options, option)
    from pipeline.commands.compare import compare as compare_command
    from pipeline.report.comparison_text import comparison_text
    from pipeline.report.write import report_files

    arguments = {name: options[name] for name in ("folds", "out", "figures", "force")}
    comparison = compare_command(
        source,
        read,
        classify_settings,
        field=FIELDS[option],
        values=options[option],
        shared=shared,
        repeats=1 if options["repeats"] is None else options["repeats"],
        context=opt.run_context(options),
        **arguments,
    )
    files: list[Path] = report_files(options["out"], compared=True)
    terminal.print_text(comparison_text(comparison, files))


def compared_option(options: dict[str, Any]) -> str:
    """Return the only option that has several names.

    Raises:
        click.UsageError: If none of them or more than one has several names.
    """
    several = [name for name in FIELDS if len(options[name]) > 1]
    if len(several) == 1:
        return several[0]
    if several:
        flags = " and ".join(f"--{name}" for name in several)
        raise click.UsageError(f"{flags} have several names; give several to one of them only")
    raise click.UsageError(
        "nothing to compare; give two or more names with commas between them to --networks, "
        "--losses or --mining, such as --networks conv,conv-deep"
    )


def shared_values(options: dict[str, Any], compared: str) -> dict[str, Any]:
    """Return the settings of stage one that all have in common.

    Args:
        options: Values by option name.
        compared: Option whose names are compared.
    """
    values = vars(EmbedSettings()) | options
    names = [name for name in vars(EmbedSettings()) if name not in FIELDS.values()]
    shared = {name: values[name] for name in names}
    for option, field in FIELDS.items():
        if option != compared:
            (shared[field],) = options[option]
    return shared
