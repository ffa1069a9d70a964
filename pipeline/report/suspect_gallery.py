"""Gallery of the images with the most doubtful labels."""

from typing import Any

import torch

from pipeline.report.evaluated_run import EvaluatedRun
from pipeline.report.formats import format_percent
from pipeline.report.galleries import GALLERY_SIZE, find_fold, image_view
from pipeline.report.suspects import Suspect, checked_splits, list_suspects
from stages.evaluation.knn import nearest_rows

NEIGHBOURS = 2  # nearest images of each of the two classes


def build_suspect_gallery(run: EvaluatedRun) -> dict[str, Any]:
    """Return the images with the most doubtful labels, at most 24, and their nearest images.

    Args:
        run: Evaluated run.

    Returns:
        ``images``; ``total``, the number of suspects; ``checked``, the number of images whose
        label was checked.
    """
    suspects = list_suspects(run)
    checked = sum(len(split.rows.unique()) for split in checked_splits(run).values())
    return {
        "images": [_suspect_image(run, suspect) for suspect in suspects[:GALLERY_SIZE]],
        "total": len(suspects),
        "checked": checked,
    }


def _suspect_image(run: EvaluatedRun, suspect: Suspect) -> dict[str, Any]:
    split = checked_splits(run)[suspect.split]
    return {
        **image_view(split, suspect.row, run.data.origin),
        "suggested": suspect.suggested_label,
        "self_confidence": format_percent(suspect.self_confidence),
        "nearest": [
            image
            for label in (suspect.label, suspect.suggested_label)
            for image in _nearest_of_class(run, suspect, label)
        ],
    }


def _nearest_of_class(run: EvaluatedRun, suspect: Suspect, label: str) -> list[dict[str, Any]]:
    """Return the nearest training images of a class, in the fold that tested the image."""
    if suspect.split == "test":
        fold, row = find_fold(run, suspect.row)
        query = fold.test.vectors[row]
    else:
        assert run.validation is not None  # where the suspect comes from
        fold, query = run, run.validation.vectors[suspect.row]
    gallery = fold.training
    members = torch.nonzero(gallery.labels == gallery.classes.index(label))[:, 0]
    nearest = nearest_rows(query[None], gallery.vectors[members], count=NEIGHBOURS)[0]
    rows = members[torch.from_numpy(nearest)].tolist()
    return [image_view(fold.data.train, row, fold.data.origin) for row in rows]
