"""The commands: parse options, make one call, print the result. Importing it imports no torch."""

import atexit
import gc
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from pipeline import checkpoint_commands, terminal
from pipeline import options as opt
from pipeline.compare_command import compare
from pipeline.config import (
    add_compare_defaults,
    add_run_defaults,
    configured_values,
    read_config,
)
from pipeline.data.decode_ahead import decoding_ahead
from pipeline.error_messages import describe_error
from pipeline.failures import LOST_PROCESS, report_failure
from pipeline.fold_options import check_fold_options, repeated_run_options
from pipeline.options import CLASSIFIER, EMBEDDING, REPORTS, pick, predict_hint, spell
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings

# Rounds for which an OpenMP thread (GNU) that waits for others keeps its core busy: about 50
# microseconds instead of several milliseconds, so that another program can use the core.
SPIN_COUNT = "1000"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@opt.path_option("--config", None, "TOML file with option values, one table per command.")
@click.version_option(package_name="embedding-pipeline", prog_name="pipeline")
@click.pass_context
def commands(context: click.Context, config: Path | None) -> None:
    """Train an image embedding and a classifier on top of it, and report how accurate both are.

    \b
    pipeline embed --data photos/     stage one: train the embedding with triplet loss
    pipeline classify                 stage two: train the classifier on the frozen embedding
    pipeline report                   evaluate both, and baselines, on held-out images
    pipeline predict photos/new/      classify new images

    \b
    pipeline compare --networks A,B   find out which network is the best for your images
    pipeline vectors, search, enroll, export     more uses of what was trained
    """  # noqa: D301  # click needs the control character
    tables = read_config(config, commands) if config else {}
    tables = add_compare_defaults(add_run_defaults(tables, run), compare)
    context.obj = context.default_map = tables


@commands.command()
@opt.data_option("digits", opt.SOURCE)
@opt.path_option("--out", EMBEDDING, "Checkpoint to write.")
@opt.force_option("Replace a checkpoint of another source or other settings.")
@opt.resume_option
@opt.path_option("--tensorboard", None, "Folder for TensorBoard files (extra `tensorboard`).")
@opt.settings_options(EmbedSettings)
@opt.settings_options(ReadSettings)
@opt.cache_options
@opt.precision_option
@opt.device_options
def embed(
    source: str, out: Path, force: bool, resume: bool, tensorboard: Path | None, **options: Any
) -> None:
    """Stage one: train the embedding with triplet loss.

    \b
    pipeline embed --data photos/ --epochs 40
    torchrun --nproc-per-node=2 -m pipeline embed --data photos/
    """  # noqa: D301  # click needs the control character
    settings, read = pick(EmbedSettings, options), pick(ReadSettings, options)
    with decoding_ahead(source, read, settings, options["cache"]):
        from pipeline.commands.embed import embed as embed_command
    path = embed_command(
        source,
        read,
        settings,
        out=out,
        context=opt.run_context(options),
        force=force,
        resume=resume,
        tensorboard=tensorboard,
    )
    hint = spell(("--embedding", out, EMBEDDING), ("--cache", options["cache"], None))
    terminal.print_text(f"{path} written; next: pipeline classify{hint}")


@commands.command()
@opt.path_option("--embedding", EMBEDDING, "Checkpoint of stage one.")
@opt.path_option("--out", CLASSIFIER, "Checkpoint to write.")
@opt.data_option(None, opt.MOVED)
@opt.force_option("Replace a checkpoint of another source or other settings.")
@opt.settings_options(ClassifySettings)
@opt.cache_options
@opt.device_options
def classify(embedding: Path, out: Path, source: str | None, force: bool, **options: Any) -> None:
    """Stage two: train the classifier on the frozen embedding.

    \b
    pipeline classify --dropout 0.3 --force
    """  # noqa: D301  # click needs the control character
    settings = pick(ClassifySettings, options)
    from pipeline.commands.classify import classify as classify_command
    from pipeline.tensor_files import read_header

    path = classify_command(
        embedding, settings, out=out, context=opt.run_context(options), source=source, force=force
    )
    record = read_header(path).record
    if record["counts"]["test"] or record["unseen"]:
        hint = "report" + spell(
            ("--embedding", embedding, EMBEDDING),
            ("--classifier", out, CLASSIFIER),
            ("--data", source, None),
            ("--root", options["root"], None),
            ("--cache", options["cache"], None),
        )
    else:
        hint = f"{predict_hint(out)} (no test images to report on)"
    terminal.print_text(f"{path} written; next: pipeline {hint}")


@commands.command()
@opt.paths_option(
    "--embedding", EMBEDDING, "Checkpoint of stage one. Repeat the option to compare several runs."
)
@opt.paths_option("--classifier", CLASSIFIER, "Checkpoint of stage two, one per embedding.")
@opt.path_option("--out", REPORTS, "Folder for the report.")
@opt.force_option("Replace a report on cross-validation.")
@opt.figures_option
@opt.queries_option
@opt.data_option(None, opt.MOVED)
@opt.cache_options
@opt.device_options
def report(
    embedding: list[Path],
    classifier: list[Path],
    out: Path,
    figures: Path | None,
    queries: int | None,
    source: str | None,
    force: bool,
    **options: Any,
) -> None:
    """Evaluate kNN, triplet and classification accuracy on the same held-out images.

    \b
    pipeline report --out reports/photos
    """  # noqa: D301  # click needs the control character
    from pipeline.commands.report import report as report_command

    runs = report_command(
        embedding,
        classifier,
        out=out,
        context=opt.run_context(options),
        source=source,
        figures=figures,
        force=force,
        queries=queries,
    )
    print_report(runs, out, figures, f"next: pipeline {predict_hint(classifier[0])}")


@commands.command()
@opt.data_option("digits", opt.SOURCE)
@opt.path_option("--embedding", EMBEDDING, "Checkpoint of stage one to write.")
@opt.path_option("--classifier", CLASSIFIER, "Checkpoint of stage two to write.")
@opt.path_option("--out", REPORTS, "Folder for the report.")
@opt.force_option(
    "Replace a checkpoint of another source or other settings, or a report on cross-validation."
)
@opt.resume_option
@opt.figures_option
@repeated_run_options
@opt.settings_options(EmbedSettings)
@opt.settings_options(ReadSettings)
@opt.cache_options
@opt.precision_option
@opt.device_options
@click.pass_context
def run(context: click.Context, /, source: str, **options: Any) -> None:
    """Run embed, classify and report in sequence.

    Options of `classify` alone come from the table [classify] of the --config file.

    \b
    pipeline run --data photos/
    """  # noqa: D301  # click needs the control character
    check_fold_options(context, options["folds"], options["repeats"])
    classify_values = configured_values(context.obj, classify, context)
    settings = (
        pick(ReadSettings, options),
        pick(EmbedSettings, options),
        pick(ClassifySettings, {"seed": options["seed"], **classify_values}),
    )
    if options["folds"] is None:
        run_stages(source, settings, options)
    else:
        run_cross_validation(source, settings, options)


def run_stages(source: str, settings: Sequence[Any], options: dict[str, Any]) -> None:
    """Run the three stages and print their report."""
    read, embed_settings, _ = settings
    with decoding_ahead(source, read, embed_settings, options["cache"]):
        from pipeline.commands.run import run as run_command
        from pipeline.commands.run import seed_path
    names = ("embedding", "classifier", "out", "force", "resume", "seeds", "figures")
    arguments = {name: options[name] for name in names}
    runs = run_command(source, *settings, context=opt.run_context(options), **arguments)
    classifier, seeds = options["classifier"], options["seeds"]
    if seeds:
        classifier = seed_path(classifier, seeds[0])
    hint = f"next: pipeline {predict_hint(classifier)}"
    if not runs:
        terminal.print_text(f"{classifier} written; no test images: no report; {hint}")
        return
    print_report(runs, options["out"], options["figures"], hint, pooled=bool(seeds))


def run_cross_validation(source: str, settings: Sequence[Any], options: dict[str, Any]) -> None:
    """Run cross-validation and print its report."""
    from pipeline.commands.folds import run_folds

    repeats = 1 if options["repeats"] is None else options["repeats"]
    arguments = {name: options[name] for name in ("folds", "out", "figures", "force")}
    runs = run_folds(
        source, *settings, repeats=repeats, context=opt.run_context(options), **arguments
    )
    hint = "next: the same command without --folds trains one model and keeps it"
    print_report(runs, options["out"], options["figures"], hint)


@commands.command()
@opt.data_option("digits", opt.SOURCE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@opt.settings_options(ReadSettings)
@opt.cache_options
@opt.quiet_option
def data(source: str, as_json: bool, **options: Any) -> None:
    """Check a data set without training.

    Lists classes, splits, unreadable files, duplicates, leaks, label conflicts and the batches.

    \b
    pipeline data photos/
    """  # noqa: D301  # click needs the control character
    read = pick(ReadSettings, options)
    from pipeline.commands.data import audit_data
    from pipeline.data.audit import as_json as audit_as_json
    from pipeline.data.audit import as_text

    audit = audit_data(source, read, context=opt.run_context(options))
    if as_json:
        click.echo(json.dumps(audit_as_json(audit)))
        return
    terminal.print_text(as_text(audit))
    if not audit.problems:
        hints: list[tuple[str, object, object]] = [("--data", source, "digits")]
        for name in ("root", "cache"):
            hints.append((f"--{name}", options[name], None))
        for name, value in vars(read).items():
            hints.append((f"--{name.replace('_', '-')}", value, getattr(ReadSettings, name)))
        terminal.print_text(f"next: pipeline run{spell(*hints)}")


for command in (compare, *checkpoint_commands.COMMANDS):
    commands.add_command(command)


def print_report(
    runs: Sequence[Any], out: Path, figures: Path | None, hint: str, pooled: bool = False
) -> None:
    """Print the report, and then the next command."""
    from pipeline.report.text import report_text

    terminal.print_text(f"{report_text(runs, out, figures, pooled=pooled)}\n{hint}")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit.

    The exit status is 0 if the command has finished, 1 for invalid input, 2 for wrong usage and
    130 after an interrupt. Any other exception is a bug and keeps its traceback.

    Args:
        arguments: Command line without the program's name. Default: that of the process.
    """
    terminal.prepare_streams()
    # What is imported lives until the process ends. Searching it for garbage would take 0.3 s while
    # torch is imported and 0.4 s at the end. `opt.run_context` turns the search on afterwards.
    gc.disable()
    atexit.register(gc.freeze)
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT  # OpenMP reads it when torch is imported
    # Of several processes that torchrun starts only the first one prints.
    rank = os.environ.get("RANK", "0")
    is_main = not rank.isdigit() or int(rank) == 0
    if not is_main:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # open until the process ends
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    stdout = sys.stdout
    try:
        status = commands.main(arguments, standalone_mode=False)
        terminal.flush_output()
    except (BrokenPipeError, SystemExit) as error:
        # The reader of the output has closed it, as `head` does. click then replaces sys.stdout
        # and raises SystemExit. Any other SystemExit keeps its status.
        if isinstance(error, SystemExit) and sys.stdout is stdout:
            raise
        terminal.discard_output()
        status = 0
    except Exception as error:
        status, message = describe_error(error)
        if status == 1:  # not after an interrupt, which reaches all processes
            report_failure(message.removeprefix("error: "))
        if is_main or LOST_PROCESS in message:
            terminal.print_error(message)
        terminal.discard_output()
    except KeyboardInterrupt as error:
        status = 130
        if is_main:
            terminal.print_error(str(error) or "interrupted")
    finally:
        gc.enable()
    sys.exit(status or 0)
