"""The commands that use a trained checkpoint: predict, vectors, search, enroll and export.

Importing this module imports no torch.
"""

from pathlib import Path
from typing import Any

import click

from pipeline import options as opt
from pipeline import terminal
from pipeline.options import CLASSIFIER, EMBEDDING, predict_hint, spell

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Write one JSON object per line, not CSV."
)
rows_option = click.option(
    "--out",
    type=opt.PATH,
    default="-",
    show_default=True,
    help="File to write, or - for standard output.",
)
classifier_option = opt.path_option(
    "--classifier", CLASSIFIER, "Checkpoint of stage two; no other file is needed."
)


def images_argument(metavar: str, *, required: bool = True) -> Any:
    """Return the argument for image files and folders."""
    return click.argument("images", metavar=metavar, nargs=-1, required=required, type=opt.PATH)


def new_file_option(text: str) -> Any:
    """Return the option ``--out`` for a file that is replaced only with ``--force``."""
    return click.option("--out", type=opt.PATH, required=True, help=text)


@click.command()
@images_argument("IMAGE...")
@classifier_option
@rows_option
@json_option
@opt.reject_option
@opt.device_options
def predict(images: tuple[Path, ...], out: Path, **options: Any) -> None:
    """Classify new images: files, and folders with images in them or in their subfolders.

    Give - as IMAGE to read paths from standard input, one per line.

    \b
    pipeline predict photos/new/ --out labels.csv
    """  # noqa: D301  # click needs the control character
    from pipeline.commands.predict import predict as predict_command

    target = None if str(out) == "-" else out
    arguments = {name: options[name] for name in ("classifier", "as_json", "reject")}
    count = predict_command(images, out=target, context=opt.run_context(options), **arguments)
    if target:
        terminal.print_text(f"{target} written: {count:,} images")


@click.command()
@images_argument("IMAGE...")
@click.option(
    "--embedding",
    type=opt.PATH,
    show_default=str(EMBEDDING),
    help="Checkpoint of stage one.",
)
@opt.path_option("--classifier", None, "Checkpoint of stage two, instead of --embedding.")
@new_file_option(
    "File to write: .safetensors (a gallery for `pipeline search`), .npz, .csv or .parquet."
)
@opt.force_option("Replace an existing file.")
@opt.device_options
def vectors(
    images: tuple[Path, ...],
    embedding: Path | None,
    classifier: Path | None,
    out: Path,
    force: bool,
    **options: Any,
) -> None:
    """Write the embedding vectors of images to a file.

    IMAGE is a file, or a folder with images in it or in its subfolders. The first subfolder in the
    path of an image is its label. Give - as IMAGE to read paths from standard input, one per line.

    \b
    pipeline vectors photos/ --out photos.safetensors
    torchrun --nproc-per-node=2 -m pipeline vectors photos/ --out photos.npz
    """  # noqa: D301  # click needs the control character
    if embedding and classifier:
        raise click.UsageError("--embedding and --classifier: give one of them")
    from pipeline.commands.vectors import vectors as vectors_command

    checkpoint = classifier or embedding or EMBEDDING
    count = vectors_command(
        images, checkpoint, out=out, context=opt.run_context(options), force=force
    )
    hint = ""
    if out.suffix == ".safetensors":
        hint = f"; next: pipeline search IMAGE...{spell(('--within', out, None))}"
    terminal.print_text(f"{out} written: {count:,} vectors{hint}")


@click.command()
@images_argument("QUERY...")
@click.option(
    "--within",
    type=opt.PATH,
    required=True,
    help="File to search: a .safetensors file of `pipeline vectors`, a classifier, or, with "
    "--embedding, an .npz, .csv or .parquet file of `pipeline vectors`.",
)
@opt.path_option("--embedding", None, "Checkpoint of stage one, for a file that has none.")
@click.option("--k", type=int, default=10, show_default=True, help="Number of results per query.")
@rows_option
@json_option
@opt.device_options
def search(images: tuple[Path, ...], within: Path, out: Path, **options: Any) -> None:
    """Find the most similar images of a file of vectors, or of a classifier's training images.

    QUERY is an image, or a folder with images in it or in its subfolders. Give - as QUERY to read
    paths from standard input, one per line.

    \b
    pipeline search new.jpg --within photos.safetensors --k 5
    """  # noqa: D301  # click needs the control character
    from pipeline.commands.search import search as search_command

    target = None if str(out) == "-" else out
    arguments = {name: options[name] for name in ("embedding", "k", "as_json")}
    count = search_command(
        images, within, out=target, context=opt.run_context(options), **arguments
    )
    if target:
        terminal.print_text(f"{target} written: {count:,} queries")


@click.command()
@opt.data_option(
    None,
    "New images: a folder with one subfolder per class, or a .csv file with the columns path and "
    "label.",
)
@classifier_option
@new_file_option("Classifier to write.")
@opt.force_option("Replace an existing file.")
@opt.device_options
def enroll(source: str | None, classifier: Path, out: Path, force: bool, **options: Any) -> None:
    """Add classes, or images of known classes, to a classifier without training the embedding.

    \b
    pipeline enroll new-species/ --out checkpoints/enrolled.safetensors
    """  # noqa: D301  # click needs the control character
    if source is None:
        raise click.UsageError("give the SOURCE of the new images")
    from pipeline.commands.enroll import enroll as enroll_command

    text = enroll_command(
        source, classifier, out=out, context=opt.run_context(options), force=force
    )
    terminal.print_text(f"{text}\n{out} written; next: pipeline {predict_hint(out)}")


@click.command()
@images_argument("[IMAGE]...", required=False)
@classifier_option
@opt.path_option("--out", Path("model.onnx"), "ONNX file to write, for batches of squares.")
@opt.path_option("--any-size", None, "Second ONNX file to write, for one image of any size.")
@opt.force_option("Replace existing files.")
@opt.quiet_option
def export(
    images: tuple[Path, ...],
    classifier: Path,
    out: Path,
    any_size: Path | None,
    force: bool,
    **options: Any,
) -> None:
    """Write a classifier with its embedding network as an ONNX file (extra `onnx`).

    The file is compared with `pipeline predict` on the images that you give, by default on parts
    of two photographs.

    \b
    pipeline export --out model.onnx
    """  # noqa: D301  # click needs the control character
    from pipeline.commands.export import export as export_command

    text = export_command(
        classifier,
        images,
        out=out,
        context=opt.run_context(options),
        force=force,
        any_size=any_size,
    )
    terminal.print_text(text)
    terminal.print_text(" and ".join(str(file) for file in (out, any_size) if file) + " written")


COMMANDS = (predict, vectors, search, enroll, export)
