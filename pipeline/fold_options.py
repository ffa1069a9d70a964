"""Options of repeated runs: seeds, folds and repeats. Importing this module imports no torch."""

import click

from pipeline.options import combine

NOT_WITH_FOLDS = {
    "seeds": "use --repeats to see how much the scores vary",
    "resume": "no model is kept",
    "embedding": "no model is kept",
    "classifier": "no model is kept",
    "test": "every image is tested",
    "unseen_classes": "every class is trained on in some fold",
}


def parse_seeds(_: click.Context, option: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Return the seeds of ``--seeds 0,1,2``; none if the option is not given.

    Raises:
        click.BadParameter: For anything but distinct whole numbers with commas between them.
    """
    try:
        seeds = () if value is None else tuple(int(seed) for seed in value.split(","))
    except ValueError:
        message = f"{value}: use whole numbers with commas between them, such as 0,1,2"
        raise click.BadParameter(message, param=option) from None
    if len(set(seeds)) < len(seeds):
        raise click.BadParameter(f"{value}: duplicate seed; use each seed once", param=option)
    return seeds


folds_options = combine(
    click.option(
        "--folds",
        type=int,
        metavar="K",
        help="K-fold cross-validation, for small data sets; no checkpoint is kept.",
    ),
    click.option(
        "--repeats",
        type=int,
        metavar="R",
        show_default="1",
        help="Number of times that cross-validation is repeated with other folds.",
    ),
)
repeated_run_options = combine(
    click.option(
        "--seeds",
        metavar="N,N,...",
        callback=parse_seeds,
        help="Run all stages once per seed; the report adds mean and standard deviation.",
    ),
    folds_options,
)


def check_fold_options(context: click.Context, folds: int | None, repeats: int | None) -> None:
    """Raise a usage error for options that cannot be combined."""
    if folds is None:
        if repeats is not None:
            raise click.UsageError("--repeats needs --folds")
        return
    for name, reason in NOT_WITH_FOLDS.items():
        if context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE:
            flag = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"--folds cannot be combined with {flag}: {reason}")
