"""`pipeline predict`: classify new images with a saved classifier."""

import codecs
import csv
import json
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
from pipeline.escape import escape_formula
from pipeline.files import atomic_file
from stages.errors import DataError
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
        probability: Calibrated probability of that class.
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
        DataError: If a path does not exist, or no image can be read.
        CheckpointError: If the checkpoint cannot be used.

    Example:
        >>> predict(
        ...     [Path("photos/new")], Path("classifier.safetensors"),
        ...     out=Path("labels.csv"), as_json=False, context=RunContext(),
        ... )  # doctest: +SKIP
        24
    """
    device = context.start()
    checkpoint = load_classifier(classifier)
    to_device(checkpoint.network, device)
    blocks = predict_images(find_images(images), checkpoint, device=device)
    count, skipped = write_predictions(blocks, out, as_json=as_json)
    for path, reason in skipped:
        context.say(f"skipped: {path}: {reason}")
    if not count:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(
            f"{images[0]}: none of {len(skipped)} images can be read; give images ({suffixes})"
        )
    return count


def find_images(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the given files, and the image files in the given folders and their subfolders.

    The order is stable. Hidden files in folders are ignored.

    Args:
        paths: Files and folders.

    Yields:
        Paths of files.

    Raises:
        DataError: If a path does not exist.
    """
    for path in paths:
        if not path.exists():
            raise DataError(
                f"{path}: no such file or folder; give images, or folders that contain images"
            )
        yield from find_image_files(path)


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
    an apostrophe; in JSON it is unchanged.

    Args:
        blocks: Blocks of predictions.
        out: File to write, replaced only when it is complete. None: standard output.
        as_json: Write one JSON object per line instead of CSV.

    Returns:
        The number of predictions and the skipped images.
    """
    count, skipped = 0, []
    with _destination(out) as file:
        table = csv.writer(file, lineterminator="\n")
        if not as_json:
            table.writerow(Predicted._fields)
        for block in blocks:
            for row in block:
                if isinstance(row, Skipped):
                    skipped.append(row)
                    continue
                count += 1
                if as_json:
                    file.write(_json_line(row))
                else:
                    table.writerow(_csv_cells(row))
            file.flush()
    return count, skipped


def _json_line(row: Predicted) -> str:
    values = {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in row._asdict().items()
    }
    return json.dumps(values) + "\n"


def _csv_cells(row: Predicted) -> list[str]:
    return [f"{value:.6f}" if isinstance(value, float) else escape_formula(value) for value in row]


@contextmanager
def _destination(out: Path | None) -> Iterator[TextIO | codecs.StreamWriter]:
    """Open the output for text. File names need not be valid text, hence surrogateescape."""
    if out is None:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="surrogateescape")
        yield sys.stdout
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(out) as file:
        yield codecs.getwriter("utf-8")(file, "surrogateescape")
