"""New images -> labels, from the classifier's checkpoint alone."""

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import torch
from PIL import Image

from pipeline.data import SUFFIXES, Pixels, Skipped, decode, to_square
from pipeline.table import safe_cell
from stages.errors import DataError
from stages.metrics import knn
from stages.network import embed_images
from stages.records import ClassifierCheckpoint
from stages.score import probabilities

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
        if not path.is_dir():
            if not path.exists():
                raise DataError(f"{path}: no such file or folder; give images, or folders with images below them")
            yield path
            continue
        for parent, names, files in os.walk(path):
            names[:] = sorted(name for name in names if not name.startswith("."))
            for name in sorted(files):
                if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                    yield Path(parent, name)


def predict_images(files: Iterable[Path], classifier: ClassifierCheckpoint, *, device: torch.device) -> Iterator[list[Predicted | Skipped]]:
    """Label images in their order, up to 512 at a time, so that folders of any size fit; one that can't be read is `Skipped`.

    classifier: its network on the device.
    """
    read, names = classifier.record["read"], classifier.classes

    def load(path: Path) -> Pixels | Skipped:
        try:
            pixels = to_square(decode(path.read_bytes()), read["size"], read["resize"])
        except Exception as error:  # a decoder may raise anything on a broken file; the reason is shown
            reason = "not an image that can be read" if "cannot identify" in str(error) else str(error) or type(error).__name__
            return Skipped(str(path), reason)
        if read["channels"] == 1:
            return pixels[None] if pixels.ndim == 2 else np.asarray(Image.fromarray(pixels).convert("L"))[None]
        return np.broadcast_to(pixels, (3, *pixels.shape)) if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

    queue = iter(files)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while paths := list(islice(queue, BLOCK)):
            loaded = list(pool.map(load, paths))
            images = [pixels for pixels in loaded if not isinstance(pixels, Skipped)]
            rows = _label(torch.from_numpy(np.stack(images)), classifier, device) if images else iter(())
            yield [
                one if isinstance(one, Skipped) else Predicted(str(path), *_named(next(rows), names, classifier.gallery_ids))
                for path, one in zip(paths, loaded, strict=True)
            ]


def _label(images: torch.Tensor, classifier: ClassifierCheckpoint, device: torch.device) -> Iterator[tuple[Any, ...]]:
    """Label, probability, kNN label, nearest row and its distance of each of uint8 (b, C, S, S)."""
    vectors = embed_images(classifier.network, [images], device=device)
    sure, label = probabilities(classifier.head, vectors, temperature=classifier.temperature).max(dim=1)
    found = knn(vectors, classifier.gallery.vectors, classifier.gallery.labels, k=classifier.k)
    return zip(label.tolist(), sure.tolist(), *(part.tolist() for part in found), strict=True)


def _named(row: tuple[Any, ...], classes: tuple[str, ...], ids: tuple[str, ...]) -> tuple[str, float, str, str, float]:
    label, sure, voted, nearest, distance = row
    return classes[label], sure, classes[voted], ids[nearest], distance


def write_predictions(blocks: Iterable[list[Predicted | Skipped]], out: Path | None, *, as_json: bool) -> tuple[int, list[Skipped]]:
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
                values = {key: round(value, 6) if isinstance(value, float) else value for key, value in row._asdict().items()}
                if as_json:
                    file.write(json.dumps(values) + "\n")
                else:
                    table.writerow([f"{value:.6f}" if isinstance(value, float) else safe_cell(value) for value in row])
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
