"""`pipeline predict`: classify new images with a saved classifier."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import torch

from pipeline.checkpoint import load_classifier
from pipeline.context import RunContext
from pipeline.data.dataset import Skipped
from pipeline.data.decode import decode_files
from pipeline.data.folder import IMAGE_SUFFIXES, find_image_files
from pipeline.escape import escape_formula
from stages.errors import DataError
from stages.evaluation.knn import knn
from stages.network.embedding_net import to_device
from stages.network.head import probabilities
from stages.network.inference import embed_images
from stages.records import ClassifierCheckpoint

BLOCK = 512  # images held at once


class Predicted(NamedTuple):
    """One image. probability: the classifier's for its label, calibrated. nearest_*: among the training images, in [0, 2]."""

    path: str
    label: str
    probability: float
    knn_label: str
    nearest_id: str
    nearest_distance: float


def find_images(paths: Sequence[Path]) -> Iterator[Path]:
    """Files as they are given; of folders every image file below, in a stable order, hidden ones passed over.

    Raises DataError for a path that isn't there.
    """
    for path in paths:
        if not path.exists():
            raise DataError(
                f"{path}: no such file or folder; give images, or folders with images below them"
            )
        yield from find_image_files(path)


def predict_images(
    files: Iterable[Path], classifier: ClassifierCheckpoint, *, device: torch.device
) -> Iterator[list[Predicted | Skipped]]:
    """Label images in their order, up to 512 at a time, so that folders of any size fit; one that can't be read is `Skipped`.

    classifier: its network on the device.
    """
    read, names = classifier.record["read"], classifier.classes
    queue = iter(files)
    while paths := [str(path) for path in islice(queue, BLOCK)]:
        outcomes = decode_files(
            paths, size=read["size"], channels=read["channels"], resize=read["resize"]
        )
        images = [
            np.frombuffer(one.pixels, np.uint8).reshape(one.shape)
            for one in outcomes
            if not isinstance(one, str)
        ]
        rows = (
            _label(torch.from_numpy(np.stack(images)), classifier, device) if images else iter(())
        )
        yield [
            Skipped(path, one)
            if isinstance(one, str)
            else Predicted(path, *_named(next(rows), names, classifier.gallery_ids))
            for path, one in zip(paths, outcomes, strict=True)
        ]


def _label(
    images: torch.Tensor, classifier: ClassifierCheckpoint, device: torch.device
) -> Iterator[tuple[Any, ...]]:
    """Label, probability, kNN label, nearest row and its distance of each of uint8 (b, C, S, S)."""
    vectors = embed_images(classifier.network, [images], device=device)
    sure, label = probabilities(classifier.head, vectors, temperature=classifier.temperature).max(
        dim=1
    )
    found = knn(vectors, classifier.gallery.vectors, classifier.gallery.labels, k=classifier.k)
    return zip(label.tolist(), sure.tolist(), *(part.tolist() for part in found), strict=True)


def _named(
    row: tuple[Any, ...], classes: tuple[str, ...], ids: tuple[str, ...]
) -> tuple[str, float, str, str, float]:
    label, sure, voted, nearest, distance = row
    return classes[label], sure, classes[voted], ids[nearest], distance


def write_predictions(
    blocks: Iterable[list[Predicted | Skipped]], out: Path | None, *, as_json: bool
) -> tuple[int, list[Skipped]]:
    """Write rows as they come, CSV or one JSON object a line, to a file or to stdout; returns how many, and what was skipped.

    A file gets its name only when it is whole. Numbers have 6 decimals. JSON keeps names as they are; in CSV, what a
    spreadsheet would run gets an apostrophe in front.
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
                values = {
                    key: round(value, 6) if isinstance(value, float) else value
                    for key, value in row._asdict().items()
                }
                if as_json:
                    file.write(json.dumps(values) + "\n")
                else:
                    table.writerow(
                        [
                            f"{value:.6f}" if isinstance(value, float) else escape_formula(value)
                            for value in row
                        ]
                    )
            file.flush()
    return count, skipped


@contextmanager
def _destination(out: Path | None) -> Iterator[TextIO]:
    if out is None:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="surrogateescape")  # file names need not be text
        yield sys.stdout
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    try:
        with part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def predict(
    images: Sequence[Path],
    classifier: Path,
    *,
    out: Path | None,
    as_json: bool,
    context: RunContext,
) -> int:
    """Label files and folders of images, from the classifier's checkpoint alone; returns how many could be read.

    out: a file, or None for stdout. Raises DataError if a path is missing or no image can be read.
    """
    device = context.start()
    classified = load_classifier(classifier)
    to_device(classified.network, device)
    count, skipped = write_predictions(
        predict_images(find_images(images), classified, device=device), out, as_json=as_json
    )
    for path, reason in skipped:
        context.say(f"skipped: {path}: {reason}")
    if not count:
        raise DataError(
            f"{images[0]}: none of {len(skipped)} images can be read; give images ({', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    return count
