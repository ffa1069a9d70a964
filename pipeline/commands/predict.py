"""`pipeline predict`: classify new images with a saved classifier."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from pipeline.checkpoint import load_classifier
from pipeline.commands.predicted_rows import Predicted, write_predictions
from pipeline.commands.row_writer import reserved_output
from pipeline.context import RunContext
from pipeline.data.entries import Skipped
from pipeline.data.image_paths import GivenImages
from pipeline.device import restore_torch_settings
from pipeline.image_vectors import ImageBlock, embed_given
from pipeline.numbers import count_of
from stages.checkpoints import ClassifierCheckpoint
from stages.errors import SettingsError
from stages.evaluation.knn import knn
from stages.evaluation.typicality import classifier_typicality, smallest_typicality
from stages.network.embedding_net import to_device
from stages.network.head import probabilities
from stages.settings import REJECT


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

    Images that are probably of no known class are marked; their labels stay the same. Rows are
    written as images arrive: at most 128 images are in memory.

    Args:
        images: Files and folders; ``-`` stands for paths on standard input, one per line.
        classifier: Checkpoint of stage two. No other file is needed.
        out: File to write. None: standard output.
        as_json: Write one JSON object per line instead of CSV.
        context: Device and output options.
        reject: Typicality below which an image is rejected; 0 rejects none.

    Returns:
        The number of images that were classified.

    Raises:
        DataError: If a file in ``images`` or on standard input is missing or unreadable, or no
            image can be read. All rows are written before.
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
    with reserved_output(out, images, [classifier]):
        checkpoint = load_classifier(classifier)
        if note := describe_resolution(checkpoint, reject):
            context.say(f"note: {note}")
        if not checkpoint.calibrated:
            context.say(
                f"note: the probabilities of {classifier} are uncalibrated: "
                "it had too few validation images"
            )
        to_device(checkpoint.network, device)
        given = GivenImages(images, context.say)
        blocks = embed_given(given, checkpoint, device=device)
        predictions = predict_images(blocks, checkpoint, reject=reject)
        write_predictions(predictions, out, as_json=as_json)
    given.require_readable("their rows are empty")
    return given.readable


def describe_resolution(classifier: ClassifierCheckpoint, reject: float) -> str:
    """Say which images cannot be rejected, and why, if there are any.

    Args:
        classifier: The classifier.
        reject: Typicality below which an image is rejected.

    Returns:
        A sentence, empty if all images can be rejected, or if none should be.
    """
    count = len(classifier.validation_distances)
    if reject == 0:
        return ""
    if count == 0:
        return "no image is rejected as unknown: the classifier has no validation images"
    # One item per group of images: their nearest class, and the images they are compared with.
    groups = [("an old class", count, count_of(count, "validation image"))]
    if classifier.new_classes:
        enrolled = len(classifier.enrolled_distances)
        images = f"{count_of(enrolled, 'enrolled image')} of new classes"
        groups.append(("a new class", enrolled, images))
    few = [group for group in groups if smallest_typicality(group[1]) >= reject]
    if not few:
        return ""
    who = "no image is rejected as unknown"
    if len(few) < len(groups):
        who = f"images whose nearest training image is of {few[0][0]} are not rejected as unknown"
    smallest = min(smallest_typicality(size) for _, size, _ in few)
    return (
        f"{who}: with {' and '.join(images for *_, images in few)} typicality "
        f"is at least {smallest:.2g}, and --reject is {reject:g}"
    )


def predict_images(
    blocks: Iterable[ImageBlock], classifier: ClassifierCheckpoint, *, reject: float = REJECT
) -> Iterator[list[Predicted | Skipped]]:
    """Classify images by their vectors.

    Args:
        blocks: Blocks of images that the classifier's network has embedded.
        classifier: The classifier.
        reject: Typicality below which an image is rejected; 0 rejects none.

    Yields:
        Predictions of a block in its order; ``Skipped`` for an image that cannot be read.
    """
    for block in blocks:
        predictions = iter(_classify(block.readable, block.vectors, classifier, reject))
        rows: list[Predicted | Skipped] = []
        for path, reason in zip(block.paths, block.reasons, strict=True):
            rows.append(Skipped(path, reason) if reason else next(predictions))
        yield rows


def _classify(
    paths: Sequence[str], vectors: Tensor, classifier: ClassifierCheckpoint, reject: float
) -> list[Predicted]:
    """Classify images by their vectors, float32 (R, D)."""
    if not paths:
        return []
    probability, label = probabilities(
        classifier.head, vectors, temperature=classifier.temperature
    ).max(dim=1)
    gallery = classifier.gallery
    neighbours = knn(vectors, gallery.vectors, gallery.labels, k=classifier.k)
    typical = classifier_typicality(neighbours.distance, neighbours.nearest, classifier)
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
