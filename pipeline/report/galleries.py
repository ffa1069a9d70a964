"""Galleries of the page: misclassified images, disagreements and hard triplets."""

from typing import Any

import numpy as np

from pipeline.data.dataset import Source
from pipeline.report.evaluated_run import EvaluatedRun
from pipeline.report.formats import format_percent
from pipeline.report.thumbnails import thumbnail, unpadded_image
from stages.evaluation.explore import Exploration
from stages.evaluation.knn import nearest_rows
from stages.records import Split

GALLERY_SIZE = 24  # images


def build_galleries(run: EvaluatedRun, exploration: Exploration | None) -> dict[str, Any]:
    """Return the images of each gallery.

    Args:
        run: Evaluated run. Only its first repeat is shown.
        exploration: The run's hardest triplets. Without it there are none.

    Returns:
        ``errors`` and ``disagreements`` with at most 24 images each, ``wrong`` and
        ``disagree`` with the number of images in all, and ``triplets``.
    """
    prediction = run.evaluation.prediction
    count = len(run.images) // run.repeats
    labels = run.images.labels.numpy()[:count]
    wrong = np.flatnonzero(prediction.classifier[:count] != labels)
    by_confidence = np.argsort(-prediction.probability[wrong], kind="stable")
    disagreeing = np.flatnonzero(prediction.classifier[:count] != prediction.knn[:count])
    return {
        "wrong": len(wrong),
        "errors": [
            {**_predicted_image(run, row), "nearest": _nearest_images(run, row)}
            for row in wrong[by_confidence][:GALLERY_SIZE].tolist()
        ],
        "disagree": len(disagreeing),
        "disagreements": [
            _predicted_image(run, row) for row in disagreeing[:GALLERY_SIZE].tolist()
        ],
        "triplets": _triplets(run, exploration) if exploration else [],
    }


def image_view(split: Split, row: int, source: Source) -> dict[str, Any]:
    """Return the thumbnail, the id and the class of an image.

    Args:
        split: Split of the image.
        row: Position in the split.
        source: Source that all images of the split belong to.
    """
    return {
        "image": thumbnail(unpadded_image(split, row, source)),
        "id": split.ids[row],
        "label": split.classes[int(split.labels[row])],
    }


def _predicted_image(run: EvaluatedRun, row: int) -> dict[str, Any]:
    prediction, classes = run.evaluation.prediction, run.images.classes
    return {
        **image_view(run.images, row, run.data.origin),
        "classifier": classes[prediction.classifier[row]],
        "probability": format_percent(float(prediction.probability[row])),
        "knn": classes[prediction.knn[row]],
    }


def _nearest_images(run: EvaluatedRun, row: int) -> list[dict[str, Any]]:
    """Return the training images nearest to a test image, in the fold that tested it."""
    fold, row = find_fold(run, row)
    nearest = nearest_rows(fold.test.vectors[[row]], fold.training.vectors, count=4)[0]
    return [image_view(fold.data.train, index, fold.data.origin) for index in nearest.tolist()]


def find_fold(run: EvaluatedRun, row: int) -> tuple[EvaluatedRun, int]:
    """Return the fold that tested an image, and the image's position among its test images.

    Args:
        run: Evaluated run. A run without folds is returned itself.
        row: Position of the image among the run's test images.
    """
    folds = iter(run.folds or (run,))
    fold = next(folds)
    while row >= len(fold.images):
        row -= len(fold.images)
        fold = next(folds)
    return fold, row


def _triplets(run: EvaluatedRun, exploration: Exploration) -> list[dict[str, Any]]:
    return [
        {
            "images": [image_view(run.images, row, run.data.origin) for row in rows],
            "positive": positive,
            "negative": negative,
        }
        for rows, (positive, negative) in zip(
            exploration.triplets.tolist(), exploration.sides.tolist(), strict=True
        )
    ]
