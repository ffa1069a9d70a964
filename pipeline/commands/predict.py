"""`pipeline predict`: classify new images with a saved classifier."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from pipeline.checkpoint import load_classifier
from pipeline.commands.predicted_rows import Predicted, write_predictions
from pipeline.context import RunContext
from pipeline.data.dataset import Skipped
from pipeline.data.decode import decode_files
from pipeline.data.folder import IMAGE_SUFFIXES, find_image_files
from pipeline.device import restore_torch_settings
from pipeline.files import check_output_file, is_special
from pipeline.numbers import count_of
from pipeline.outputs import reserve_outputs
from stages.errors import DataError, SettingsError
from stages.evaluation.knn import knn
from stages.evaluation.typicality import smallest_typicality, typicality
from stages.network.embedding_net import to_device
from stages.network.head import probabilities
from stages.network.inference import embed_images
from stages.records import ClassifierCheckpoint
from stages.settings import REJECT

BLOCK = 512  # images in memory at once


@restore_torch_settings()
def predict(
    images: Sequence[Path],
    classifier: Path,
    *,
    out: Path | None,
    as_json: bool,
    context: RunContext,
    reject: float = REJECT,
) -> int:
    """Classify image files, and the image files in folders and their subfolders.

    Images that are probably of no known class are marked; their labels stay the same.

    Args:
        images: Files and folders.
        classifier: Checkpoint of stage two. No other file is needed.
        out: File to write. None: standard output.
        as_json: Write one JSON object per line instead of CSV.
        context: Device and output options.
        reject: Typicality below which an image is rejected; 0 rejects none.

    Returns:
        The number of images that were classified.

    Raises:
        DataError: If a file in ``images`` is missing or unreadable, or no image can be read. All
            rows are written before.
        PipelineError: If the output cannot be written.
        CheckpointError: If the checkpoint cannot be used.
        SettingsError: If ``reject`` is not a share.

    Example:
        >>> predict(
        ...     [Path("photos/new")], Path("classifier.safetensors"),
        ...     out=Path("labels.csv"), as_json=False, context=RunContext(),
        ... )  # doctest: +SKIP
        24
    """
    if not 0 <= reject <= 1:
        raise SettingsError("reject", reject, "out of range; use a share from 0 to 1")
    device = context.start()
    with _reserved(out, images, classifier):
        checkpoint = load_classifier(classifier)
        if note := _describe_resolution(checkpoint, reject):
            context.say(f"note: {note}")
        if not checkpoint.calibrated:
            context.say(
                f"note: the probabilities of {classifier} are uncalibrated: "
                "it had too few validation images"
            )
        to_device(checkpoint.network, device)
        blocks = predict_images(find_images(images), checkpoint, device=device, reject=reject)
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


def _describe_resolution(classifier: ClassifierCheckpoint, reject: float) -> str:
    """Say why no image can be rejected, if that is so."""
    count = len(classifier.validation_distances)
    if reject == 0 or smallest_typicality(count) < reject:
        return ""
    if count == 0:
        return "no image is rejected as unknown: the classifier has no validation images"
    return (
        f"no image is rejected as unknown: with {count_of(count, 'validation image')} typicality "
        f"is at least {smallest_typicality(count):.2g}, and --reject is {reject:g}"
    )


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
    files: Iterable[Path],
    classifier: ClassifierCheckpoint,
    *,
    device: torch.device,
    reject: float = REJECT,
) -> Iterator[list[Predicted | Skipped]]:
    """Classify images in their order, in blocks, so that folders of any size fit into memory.

    Args:
        files: Image files.
        classifier: Classifier whose network is on ``device``.
        device: Device to compute on.
        reject: Typicality below which an image is rejected; 0 rejects none.

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
        predictions = iter(_classify(readable, images, classifier, device, reject))
        for path, outcome in zip(paths, outcomes, strict=True):
            block.append(Skipped(path, outcome) if isinstance(outcome, str) else next(predictions))
        yield block


def _classify(
    paths: Sequence[str],
    images: Sequence[np.ndarray],
    classifier: ClassifierCheckpoint,
    device: torch.device,
    reject: float,
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
    typical = typicality(neighbours.distance, classifier.validation_distances.numpy())
    return [
        Predicted(
            path=path,
            label=classifier.classes[label[row]],
            probability=probability[row].item(),
            knn_label=classifier.classes[neighbours.labels[row]],
            nearest_id=classifier.gallery_ids[neighbours.nearest[row]],
            nearest_distance=neighbours.distance[row].item(),
            typicality=None if np.isnan(typical[row]) else typical[row].item(),
            known=not typical[row] < reject,  # NaN is not below
        )
        for row, path in enumerate(paths)
    ]
