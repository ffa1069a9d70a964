"""The commands: options in, one call, one line out. Importing this loads neither torch nor anything else that is slow."""

import json
import os
import signal
import sys
import threading
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import click

from stages.errors import PipelineError, SettingsError
from stages.settings import (
    DISTANCES,
    MININGS,
    RESIZES,
    ClassifySettings,
    EmbedSettings,
    ReadSettings,
)

EMBEDDING = Path("checkpoints/embedding.safetensors")


CLASSIFIER = Path("checkpoints/classifier.safetensors")


REPORTS = Path("reports")


HELP = {
    "size": "Side of the square images in pixels.  [default: the weights'; else the images' own if they share one of at most 64; else 64]",
    "channels": "1 or 3.  [default: 1 if all images are grey]",
    "resize": "How an image fills the square.",
    "split_seed": "Which images are split off.",
    "val": "Share split off for validation, if the source doesn't.",
    "test": "Share split off for the test, if the source doesn't.",
    "max_unreadable": "Share of unreadable images above which to stop.",
    "network": "From pixels to features: conv, conv-deep, efficientnet-lite0, torchvision:NAME or timm:NAME.",
    "weights": "What the network starts from: none, default (the library's, for ImageNet) or a file.",
    "trunk": "What of the network is trained beside the new layers: tune (all), frozen (nothing) or last-N (its last N blocks).",
    "dim": "Length of the embedding vectors.",
    "mining": "Which triplets of a batch count.",
    "margin": "Of the triplet loss: a distance, or `soft`.",
    "distance": "Between two vectors: `squared` goes to 4, `euclidean` to 2.",
    "classes_per_batch": "P.  [default: as many as fill a batch of 160 images]",
    "images_per_class": "K.  [default: the median class size, from 2 to 16]",
    "epochs": "Passes over the training images.  [default: chosen from their number]",
    "lr": "Peak learning rate.",
    "augment": "Change training images a little at random.",
    "patience": "Stop after so many epochs without a better validation score.  [default: never]",
    "seed": "Of everything random in training.",
    "max_iter": "Maximum number of L-BFGS iterations, per weight decay.",
    "dropout": "Share of coordinates zeroed in training.",
    "balance": "Let every class weigh alike, however many images it has.",
}


CHOICES = {"resize": RESIZES, "mining": MININGS, "distance": DISTANCES}


def distance_or_soft(value: str | float) -> float | None:
    """`soft` is the margin that isn't a distance."""
    return None if value == "soft" else float(value)


TYPES = {
    float | None: distance_or_soft,
    int: int,
    float: float,
    str: str,
    int | None: int,
    bool: bool,
}


def settings_options(settings: type, *names: str) -> Callable[[Any], Any]:
    """One option a field of a settings class, with the field's own default."""

    def decorate(command: Any) -> Any:
        for field in reversed([field for field in fields(settings) if field.name in names]):
            flag = f"--{field.name.replace('_', '-')}"
            option = click.option(
                f"{flag}/--no-{field.name}" if field.type is bool else flag,
                type=click.Choice(CHOICES[field.name])
                if field.name in CHOICES
                else TYPES[field.type],
                default=field.default,
                show_default=field.default is not None,
                help=HELP[field.name]
                if field.default is None
                else HELP[field.name].split("  [default")[0],
            )
            command = option(command)
        return command

    return decorate


def machine_options(command: Any) -> Any:
    """Where and how loudly to run."""
    for option in (
        click.option("--quiet", is_flag=True, help="No progress, no notes."),
        click.option("--threads", type=int, help="Of the CPU.  [default: one a core]"),
        click.option(
            "--precision",
            type=click.Choice(("auto", "fp32", "bf16")),
            default="auto",
            show_default=True,
            help="Of training; evaluation is float32.",
        ),
        click.option(
            "--device",
            type=click.Choice(("auto", "cpu", "cuda", "mps")),
            default="auto",
            show_default=True,
            help="auto: CUDA where there is one.",
        ),
    ):
        command = option(command)
    return command


def path_option(flag: str, default: Path, help: str) -> Callable[[Any], Any]:
    return click.option(
        flag, type=click.Path(path_type=Path), default=default, show_default=True, help=help
    )


def paths_option(flag: str, default: Path, help: str) -> Callable[[Any], Any]:
    path = click.Path(path_type=Path)
    return click.option(
        flag, type=path, default=[default], multiple=True, show_default=str(default), help=help
    )


def data_option(default: str | None, help: str) -> Callable[[Any], Any]:
    return click.option(
        "--data", "source", metavar="SOURCE", default=default, show_default=True, help=help
    )


def place_options(command: Any) -> Any:
    """Where images are kept."""
    for option in (
        click.option("--download", is_flag=True, help="Fetch a torchvision set that is not there."),
        click.option(
            "--root",
            type=click.Path(path_type=Path),
            help="Where torchvision's sets lie.  [default: the user's cache folder]",
        ),
        click.option(
            "--cache",
            type=click.Path(path_type=Path),
            help="Where decoded images are kept.  [default: the user's cache folder]",
        ),
    ):
        command = option(command)
    return command


figures_option = click.option(
    "--figures", type=click.Path(path_type=Path), help="A folder for the figures, as PNG and SVG."
)


force_option = click.option(
    "--force", is_flag=True, help="Replace a checkpoint of another source or other settings."
)


resume_option = click.option(
    "--resume", is_flag=True, help="Go on with an interrupted stage one; start if there is none."
)


SOURCE = (
    "`digits`; a folder: one subfolder a class, or train/ (val/, test/) with one subfolder a class; "
    "a .csv with path,label (split, group); or torchvision:NAME."
)


NOT_IN_FOLDS = {
    "seeds": "--repeats shows a deviation too",
    "resume": "no model is kept",
    "embedding": "no model is kept",
    "classifier": "no model is kept",
    "test": "every image is tested",
}


MOVED = "Only if the images have moved since stage one."


READ = tuple(field.name for field in fields(ReadSettings))


EMBED = tuple(field.name for field in fields(EmbedSettings))


CLASSIFY = tuple(field.name for field in fields(ClassifySettings))


def _seeds(_: click.Context, option: click.Parameter, value: str | None) -> tuple[int, ...]:
    try:
        seeds = tuple(int(seed) for seed in value.split(",")) if value else ()
    except ValueError:
        raise click.BadParameter(
            f"{value}: give whole numbers with commas between, such as 0,1,2", param=option
        ) from None
    if len(set(seeds)) < len(seeds):
        raise click.BadParameter(
            f"{value}: a seed stands there twice; give each once", param=option
        )
    return seeds


def pick(settings: type, options: dict[str, Any]) -> Any:
    """Build a settings object from the options that bear its fields' names."""
    return settings(
        **{field.name: options[field.name] for field in fields(settings) if field.name in options}
    )


def run_context(options: dict[str, Any]) -> Any:
    from pipeline.context import RunContext

    return RunContext(
        **{field.name: options[field.name] for field in fields(RunContext) if field.name in options}
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Option values from a TOML file, one table a command; a flag wins.",
)
@click.version_option(package_name="embedding-pipeline", prog_name="pipeline")
@click.pass_context
def commands(context: click.Context, config: Path | None) -> None:
    """Train an image embedding with triplet loss, put a classifier on it, and learn how accurate both are.

    \b
    pipeline embed --data photos/     stage one: train the embedding
    pipeline classify                 stage two: train the classifier on it, frozen
    pipeline report                   compare both, and baselines, on held-out images
    pipeline predict photos/new/      classify new images
    """
    context.obj = read_config(config, context.command) if config else {}
    tables = context.obj
    # `run` is the three in a row, so it hears what is meant for them, where they share an option.
    shared = {option.name for option in run.params} - {"out"}
    tables["run"] = {
        **{k: v for k, v in tables.get("embed", {}).items() if k in shared},
        **tables.get("run", {}),
    }
    context.default_map = tables


def read_config(path: Path, group: Any) -> dict[str, dict[str, Any]]:
    """The file's tables, option names as parameters. Raises SettingsError for what no command knows."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(
            "config", path, f"can't be read ({error}); give a TOML file with one table a command"
        ) from error
    known: dict[str, dict[str, Any]] = {}
    for name, table in tables.items():
        if name not in group.commands or not isinstance(table, dict):
            raise SettingsError(
                "config", path, f"no command {name}; tables are {', '.join(group.commands)}"
            )
        options = {
            flag.lstrip("-"): option.name
            for option in group.commands[name].params
            for flag in option.opts
        }
        several = {
            option.name
            for option in group.commands[name].params
            if getattr(option, "multiple", False)
        }
        for key in table:
            if key.replace("_", "-") not in options:
                raise SettingsError(
                    "config",
                    path,
                    f"[{name}] has {key}, which `pipeline {name}` doesn't; it has {', '.join(options)}",
                )
        known[name] = {options[key.replace("_", "-")]: value for key, value in table.items()}
        known[name] |= {
            key: [value]
            for key, value in known[name].items()
            if key in several and isinstance(value, str)
        }
    return known


def configured(context: click.Context, command: click.Command) -> dict[str, Any]:
    """The values of a command's own table in the --config file, checked as its flags would be."""
    table = context.obj.get(command.name, {})
    return {
        option.name: option.type_cast_value(context, table[option.name])
        for option in command.params
        if option.name in table
    }


@commands.command()
@data_option("digits", SOURCE)
@path_option("--out", EMBEDDING, "Where the checkpoint goes.")
@force_option
@resume_option
@click.option(
    "--tensorboard",
    type=click.Path(path_type=Path),
    help="A folder for TensorBoard's files (an extra).",
)
@settings_options(EmbedSettings, *EMBED)
@settings_options(ReadSettings, *READ)
@place_options
@machine_options
def embed(
    source: str, out: Path, force: bool, resume: bool, tensorboard: Path | None, **options: Any
) -> None:
    """Stage one: train the embedding with triplet loss.

    \b
    pipeline embed --data photos/ --epochs 40
    torchrun --nproc-per-node=2 -m pipeline embed --data photos/
    """
    settings, read = pick(EmbedSettings, options), pick(ReadSettings, options)
    from pipeline.commands.embed import embed as embed_command

    rest: dict[str, Any] = {"force": force, "resume": resume, "tensorboard": tensorboard}
    path = embed_command(source, read, settings, out=out, context=run_context(options), **rest)
    click.echo(f"{path} written; next: pipeline classify{_unless(out, EMBEDDING, '--embedding')}")


@commands.command()
@path_option("--embedding", EMBEDDING, "Stage one's checkpoint.")
@path_option("--out", CLASSIFIER, "Where the checkpoint goes.")
@data_option(None, MOVED)
@force_option
@settings_options(ClassifySettings, *CLASSIFY)
@place_options
@machine_options
def classify(embedding: Path, out: Path, source: str | None, force: bool, **options: Any) -> None:
    """Stage two: train the classifier on the frozen embedding.

    \b
    pipeline classify --dropout 0.3 --force
    """
    settings = pick(ClassifySettings, options)
    from pipeline.commands.classify import classify as classify_command

    path = classify_command(
        embedding, settings, out=out, context=run_context(options), source=source, force=force
    )
    from pipeline.checkpoint import read_header

    tested = read_header(path).record["counts"]["test"]
    arguments = (_unless(embedding, EMBEDDING, "--embedding") if tested else "") + _unless(
        out, CLASSIFIER, "--classifier"
    )
    follows = "report" if tested else "predict IMAGE..."
    click.echo(
        f"{path} written; next: pipeline {follows}{arguments}"
        + ("" if tested else " (there is no test image to report on)")
    )


@commands.command()
@paths_option(
    "--embedding", EMBEDDING, "Stage one's checkpoint; several make one report of several runs."
)
@paths_option("--classifier", CLASSIFIER, "Stage two's checkpoint, one for each embedding.")
@path_option("--out", REPORTS, "The folder that the report goes to.")
@figures_option
@data_option(None, MOVED)
@place_options
@machine_options
def report(
    embedding: list[Path],
    classifier: list[Path],
    out: Path,
    figures: Path | None,
    source: str | None,
    **options: Any,
) -> None:
    """Compare kNN, triplet and classification accuracy on the same held-out images.

    \b
    pipeline report --out reports/photos
    """
    from pipeline.commands.report import report as report_command

    _show(
        report_command(
            embedding,
            classifier,
            out=out,
            context=run_context(options),
            source=source,
            figures=figures,
        ),
        out,
        figures,
    )


@commands.command()
@click.argument(
    "images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@path_option("--classifier", CLASSIFIER, "Stage two's checkpoint; nothing else is needed.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, allow_dash=True),
    default="-",
    show_default=True,
    help="A file, or - for stdout.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line instead of CSV.")
@machine_options
def predict(
    images: tuple[Path, ...], classifier: Path, out: Path, as_json: bool, **options: Any
) -> None:
    """Classify new images: files, and folders with images below them.

    \b
    pipeline predict photos/new/ --out labels.csv
    """
    from pipeline.commands.predict import predict as predict_command

    target = None if str(out) == "-" else out
    count = predict_command(
        images, classifier, out=target, as_json=as_json, context=run_context(options)
    )
    if target:
        click.echo(f"{target} written: {count:,} images")


@commands.command()
@data_option("digits", SOURCE)
@path_option("--embedding", EMBEDDING, "Where stage one's checkpoint goes.")
@path_option("--classifier", CLASSIFIER, "Where stage two's checkpoint goes.")
@path_option("--out", REPORTS, "The folder that the report goes to.")
@force_option
@resume_option
@figures_option
@click.option(
    "--seeds",
    metavar="N,N,...",
    callback=_seeds,
    help="Run all stages once a seed; the report adds mean and deviation.",
)
@click.option(
    "--folds",
    type=int,
    metavar="K",
    help="Test every image once, in K folds, for few images; no checkpoint is kept.",
)
@click.option("--repeats", type=int, metavar="R", help="Divide into folds R times.  [default: 1]")
@settings_options(EmbedSettings, *(name for name in EMBED if name not in ("epochs", "lr")))
@settings_options(ReadSettings, *READ)
@place_options
@machine_options
@click.pass_context
def run(
    context: click.Context,
    /,
    source: str,
    embedding: Path,
    classifier: Path,
    out: Path,
    force: bool,
    **options: Any,
) -> None:
    """All three in a row. Epochs and rates of the stages come from --config, tables [embed] and [classify].

    \b
    pipeline run --data photos/
    """
    folds, repeats = options.pop("folds"), options.pop("repeats")
    if repeats is not None and folds is None:
        raise click.UsageError("--repeats needs --folds")
    if folds is not None:
        for name, why in NOT_IN_FOLDS.items():
            if context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE:
                raise click.UsageError(f"--folds goes without --{name}: {why}")
    own = {
        name: value
        for name, value in configured(context, embed).items()
        if name in ("epochs", "lr")
    }
    embed_settings = pick(EmbedSettings, {**options, **own})
    classify_settings = pick(
        ClassifySettings, {"seed": options["seed"], **configured(context, classify)}
    )
    read = pick(ReadSettings, options)
    rest: dict[str, Any]
    if folds is not None:
        from pipeline.commands.folds import run_folds

        rest = {
            "folds": folds,
            "repeats": 1 if repeats is None else repeats,
            "out": out,
            "figures": options["figures"],
        }
        _show(
            run_folds(
                source,
                read,
                embed_settings,
                classify_settings,
                **rest,
                context=run_context(options),
            ),
            out,
            options["figures"],
        )
        return
    from pipeline.commands.run import run as run_command

    where: dict[str, Any] = {
        "embedding": embedding,
        "classifier": classifier,
        "out": out,
        "figures": options["figures"],
    }
    rest = {
        "context": run_context(options),
        "force": force,
        "resume": options["resume"],
        "seeds": options["seeds"],
    }
    _show(
        run_command(source, read, embed_settings, classify_settings, **where, **rest),
        out,
        options["figures"],
        bool(rest["seeds"]),
    )


@commands.command()
@click.argument("source", default="digits")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
@settings_options(ReadSettings, *READ)
@place_options
@click.option("--quiet", is_flag=True, help="No progress, no notes.")
def data(source: str, as_json: bool, **options: Any) -> None:
    """Audit a source, train nothing: classes, splits, unreadable files, duplicates, leaks, label conflicts, batches.

    \b
    pipeline data photos/
    """
    read = pick(ReadSettings, options)
    from pipeline.commands.data import audit_data as data_command
    from pipeline.data import audit

    found = data_command(source, read, context=run_context(options))
    click.echo(json.dumps(audit.as_json(found)) if as_json else audit.as_text(found))


def _unless(path: Path, default: Path, flag: str) -> str:
    return "" if path == default else f" {flag} {path}"


def _show(comparisons: Any, out: Path, figures: Path | None, pooled: bool = False) -> None:
    from pipeline.report.summary import verdicts
    from pipeline.report.tables import text_table

    told = "\n".join(verdicts(comparisons, pooled=pooled))
    click.echo(f"{text_table(comparisons, pooled=pooled)}\n\n{told}\n")
    click.echo(
        "\n".join(
            str(out / name)
            for name in ("accuracy.csv", "comparisons.csv", "predictions.csv", "report.html")
        )
    )
    if figures:
        click.echo(f"{figures}: the figures")


def error_message(error: PipelineError) -> str:
    """Return the message, with a settings field spelled as its option."""
    if not isinstance(error, SettingsError):
        return str(error)
    return f"--{error.field.replace('_', '-')}{str(error).removeprefix(error.field)}"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 done, 1 wrong input, 2 wrong usage, 130 interrupted. A bug keeps its traceback."""
    leads = os.environ.get("RANK", "0") == "0"
    if not leads:  # of several processes one speaks
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # until the end
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = commands.main(arguments, standalone_mode=False)
    except click.ClickException as error:
        if leads:
            error.show()
        status = error.exit_code
    except PipelineError as error:
        if leads:  # all find the same
            click.echo(f"error: {error_message(error)}", err=True)
        status = 1
    except BrokenPipeError:  # who reads our output has enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except (click.Abort, KeyboardInterrupt) as error:
        if leads:
            click.echo(
                str(error.__cause__ or error) or "interrupted", err=True
            )  # click wraps the interrupt
        status = 130
    except RuntimeError as error:
        from pipeline.processes import is_lost_process

        if not is_lost_process(error):
            raise
        click.echo(
            "error: another process of this run has died; start the run again, stage one with --resume",
            err=True,
        )
        status = 1
    sys.exit(status or 0)
