"""`pipeline predict`: classify new images with a saved classifier."""

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import torch

from pipeline.checkpoint import load_classifier
from pipeline.context import RunContext
from pipeline.data.dataset import Skipped
from pipeline.data.decode import decode_files
from pipeline.data.folder import IMAGE_SUFFIXES, find_image_files
from pipeline.device import restore_torch_settings
from pipeline.escape import escape_formula, printable
from pipeline.files import check_output_file, is_special
from pipeline.numbers import format_share
from pipeline.outputs import reserve_outputs
from stages.errors import DataError, PipelineError
from stages.evaluation.knn import knn
from stages.network.embedding_net import to_device
from stages.network.head import probabilities
from stages.network.inference import embed_images
from stages.records import ClassifierCheckpoint

BLOCK = 512  # images in memory at once


class Predicted(NamedTuple):
    """Prediction for one image.

    Attributes:
        path: Path of the image.
        label: Class predicted by the classifier.
        probability: Probability of that class; calibrated if the classifier is.
        knn_label: Class predicted by kNN.
        nearest_id: Id of the nearest training image.
        nearest_distance: Euclidean distance to it, in [0, 2].
    """

    path: str
    label: str
    probability: float
    knn_label: str
    nearest_id: str
    nearest_distance: float


@restore_torch_settings()
def predict(
    images: Sequence[Path],
    classifier: Path,
    *,
    out: Path | None,
    as_json: bool,
    context: RunContext,
) -> int:
    """Classify image files, and the image files in folders and their subfolders.

    Args:
        images: Files and folders.
        classifier: Checkpoint of stage two. No other file is needed.
        out: File to write. None: standard output.
        as_json: Write one JSON object per line instead of CSV.
        context: Device and output options.

    Returns:
        The number of images that were classified.

    Raises:
        DataError: If a file in ``images`` is missing or unreadable, or no image can be read. All
            rows are written before.
        PipelineError: If the output cannot be written.
        CheckpointError: If the checkpoint cannot be used.

    Example:
        >>> predict(
        ...     [Path("photos/new")], Path("classifier.safetensors"),
        ...     out=Path("labels.csv"), as_json=False, context=RunContext(),
        ... )  # doctest: +SKIP
        24
    """
    device = context.start()
    with _reserved(out, images, classifier):
        checkpoint = load_classifier(classifier)
        if not checkpoint.calibrated:
            context.say(
                f"note: the probabilities of {classifier} are uncalibrated: "
                "it had too few validation images"
            )
        to_device(checkpoint.network, device)
        blocks = predict_images(find_images(images), checkpoint, device=device)
        count, skipped = write_predictions(blocks, out, as_json=as_json)
    for path, reason in skipped:
        context.say(f"skipped: {path}: {reason}")
    if not count and not skipped:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{images[0]}: contains no image; give images ({suffixes})")
    named = {str(path) for path in images}
    missed = [row for row in skipped if row.path in named]
    if missed or not count:
        path, reason = (missed or skipped)[0]
        number = f"{len(missed or skipped)} of {count + len(skipped)} images"
        raise DataError(f"{path}: {reason}; {number} could not be read, their rows are empty")
    return count


@contextmanager
def _reserved(out: Path | None, images: Sequence[Path], classifier: Path) -> Iterator[None]:
    """Check the output before the first image, and reserve it unless it is a device or a pipe."""
    if out is not None and is_special(out):
        check_output_file(out, allow_special=True)
    if out is None or is_special(out):
        yield
        return
    inputs = [classifier, *images]
    folders = {Path(os.path.realpath(image)) for image in images if os.path.isdir(image)}
    in_folder = not folders.isdisjoint(Path(os.path.realpath(out)).parents)
    if in_folder and out.suffix.lower() in IMAGE_SUFFIXES:
        inputs.append(out)  # one of the images, or it would be taken for one
    with reserve_outputs([out], inputs=inputs):
        yield


def find_images(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the given files, and the image files in the given folders and their subfolders.

    The order is stable. Hidden files in folders are ignored.

    Args:
        paths: Files and folders. A missing file is yielded too.

    Yields:
        Paths of files.
    """
    for path in paths:
        yield from find_image_files(path)


def paths_from_stdin(images: Sequence[Path]) -> list[Path]:
    """Replace the argument ``-`` by the paths on standard input, one per line.

    Args:
        images: Arguments of the command.
    """
    paths: list[Path] = []
    for image in images:
        if str(image) == "-":
            lines = sys.stdin.buffer.read().splitlines() if sys.stdin else []
            paths += [Path(os.fsdecode(line)) for line in lines if line]
        else:
            paths.append(image)
    return paths


def predict_images(
    files: Iterable[Path], classifier: ClassifierCheckpoint, *, device: torch.device
) -> Iterator[list[Predicted | Skipped]]:
    """Classify images in their order, in blocks, so that folders of any size fit into memory.

    Args:
        files: Image files.
        classifier: Classifier whose network is on ``device``.
        device: Device to compute on.

    Yields:
        Predictions of up to 512 images; ``Skipped`` for an image that cannot be read.
    """
    read = classifier.record["read"]
    queue = iter(files)
    while paths := [str(path) for path in islice(queue, BLOCK)]:
        outcomes = decode_files(
            paths, size=read["size"], channels=read["channels"], resize=read["resize"]
        )
        block: list[Predicted | Skipped] = []
        readable, images = [], []
        for path, outcome in zip(paths, outcomes, strict=True):
            if not isinstance(outcome, str):
                readable.append(path)
                images.append(np.frombuffer(outcome.pixels, np.uint8).reshape(outcome.shape))
        predictions = iter(_classify(readable, images, classifier, device))
        for path, outcome in zip(paths, outcomes, strict=True):
            block.append(Skipped(path, outcome) if isinstance(outcome, str) else next(predictions))
        yield block


def _classify(
    paths: Sequence[str],
    images: Sequence[np.ndarray],
    classifier: ClassifierCheckpoint,
    device: torch.device,
) -> list[Predicted]:
    """Classify decoded images, uint8, each of shape (C, S, S)."""
    if not images:
        return []
    batch = torch.from_numpy(np.stack(images))  # (B, C, S, S)
    vectors = embed_images(classifier.network, [batch], device=device)  # (B, D)
    probability, label = probabilities(
        classifier.head, vectors, temperature=classifier.temperature
    ).max(dim=1)
    gallery = classifier.gallery
    neighbours = knn(vectors, gallery.vectors, gallery.labels, k=classifier.k)
    return [
        Predicted(
            path=path,
            label=classifier.classes[label[row]],
            probability=probability[row].item(),
            knn_label=classifier.classes[neighbours.labels[row]],
            nearest_id=classifier.gallery_ids[neighbours.nearest[row]],
            nearest_distance=neighbours.distance[row].item(),
        )
        for row, path in enumerate(paths)
    ]


def write_predictions(
    blocks: Iterable[list[Predicted | Skipped]], out: Path | None, *, as_json: bool
) -> tuple[int, list[Skipped]]:
    """Write predictions as they arrive.

    Numbers have 6 decimals. In CSV, text that a spreadsheet would run as a formula is escaped by
    an apostrophe; in JSON it is unchanged. For an image that cannot be read all columns but the
    path are empty.

    Args:
        blocks: Blocks of predictions.
        out: File to write, replaced only when it is complete. None: standard output.
        as_json: Write one JSON object per line instead of CSV.

    Returns:
        The number of predictions and the skipped images.

    Raises:
        PipelineError: If the file cannot be written. The rows so far are kept next to it.
    """
    count, skipped = 0, []
    # A file name with an escape code must not control the terminal; in a file it is data.
    shown = printable if out is None and sys.stdout.isatty() else str
    with _destination(out) as file:
        table = csv.writer(file, lineterminator="\n")
        if not as_json:
            table.writerow(Predicted._fields)
        for block in blocks:
            for row in block:
                if isinstance(row, Skipped):
                    skipped.append(row)
                else:
                    count += 1
                if as_json:
                    file.write(_json_line(row))
                else:
                    table.writerow([shown(cell) for cell in _csv_cells(row)])
            file.flush()
    return count, skipped


def _json_line(row: Predicted | Skipped) -> str:
    values: dict[str, object] = dict.fromkeys(Predicted._fields)
    values["path"] = row.path
    if isinstance(row, Predicted):
        values |= row._asdict()
        values["probability"] = float(format_share(row.probability, 6))
        values["nearest_distance"] = round(row.nearest_distance, 6)
    return json.dumps(values) + "\n"


def _csv_cells(row: Predicted | Skipped) -> list[str]:
    path = escape_formula(row.path)
    if isinstance(row, Skipped):
        return [path] + [""] * (len(Predicted._fields) - 1)
    return [
        *(path, escape_formula(row.label), format_share(row.probability, 6)),
        *(escape_formula(row.knn_label), escape_formula(row.nearest_id)),
        f"{row.nearest_distance:.6f}",
    ]


@contextmanager
def _destination(out: Path | None) -> Iterator[TextIO]:
    """Open the output for text. File names need not be valid text, hence surrogateescape."""
    if out is None:
        yield sys.stdout
        return
    target = Path(os.path.realpath(out))
    partial = target if is_special(target) else target.with_name(f"{target.name}.partial")
    try:
        with partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file
    except OSError as error:
        reason = error.strerror or error
        advice = f"free some space or use another path{_describe_kept(partial)}"
        raise PipelineError(f"{out}: cannot be written to ({reason}); {advice}") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted{_describe_kept(partial)}") from None
    if partial != target:
        os.replace(partial, target)


def _describe_kept(partial: Path) -> str:
    """Say where the rows so far are; an empty file is removed."""
    if not partial.is_file():
        return ""
    if partial.stat().st_size == 0:
        partial.unlink()
        return ""
    return f"; the rows so far are in {partial}"
