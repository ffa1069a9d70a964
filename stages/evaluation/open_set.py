"""Evaluate images of classes that were not trained on next to those of known classes."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from torch import Tensor

from stages.checkpoints import ClassifierCheckpoint
from stages.evaluation.predictions import predict
from stages.evaluation.results import ENROLLED, Evaluation, PairedTest, Predictions, Score
from stages.evaluation.statistics import share_score
from stages.evaluation.unknown import define_unknown, rejected, unknown_scores
from stages.evaluation.unseen import evaluate_unseen
from stages.records import Embeddings


def add_unseen(
    evaluation: Evaluation,
    unseen: Embeddings,
    classifier: ClassifierCheckpoint,
    *,
    baselines: Mapping[str, Tensor | None],
    queries: Tensor | None = None,
    pretrained: bool = False,
    enrolled: Tensor | None = None,
    enrolled_copies: int = 0,
) -> Evaluation:
    """Add the test images of unseen classes to the evaluation of the known ones.

    They are evaluated as a gallery of their own (retrieval and verification), and as images that
    the classifier should reject. Classes that were enrolled are known to the classifier: their
    images should be classified correctly instead.

    Args:
        evaluation: Evaluation of the test images of known classes; there may be none.
        unseen: Embeddings of N > 0 test images of classes without a training image.
        classifier: Classifier of the run.
        baselines: Other vectors of these images by name, as for
            :func:`stages.evaluation.unseen.evaluate_unseen`.
        queries: True for queries and False for gallery images, bool, shape (N,), or None.
        pretrained: True if training started from a pretrained trunk.
        enrolled: Class of each image for the classifier, int64, shape (N,), -1 where it has no such
            class. None: it has none of them.
        enrolled_copies: Number of these images that are copies of enrolled images.

    Returns:
        The evaluation with all scores, paired tests and predictions.
    """
    result = evaluate_unseen(unseen, baselines, queries=queries, pretrained=pretrained)
    prediction = predict(unseen, classifier, result.triplet_accuracy, known=False)
    known_labels = np.full(len(unseen), -1) if enrolled is None else enrolled.numpy()
    unknown = known_labels < 0
    scores: list[Score] = []
    tests: list[PairedTest] = []
    if unknown.any():
        scores, tests = unknown_scores(
            evaluation.prediction,
            prediction.select(unknown),
            unseen.labels.numpy()[unknown],
            define_unknown(classifier),
        )
    if not unknown.all():
        scores += _enrolled_scores(
            prediction.select(~unknown), known_labels[~unknown], define_unknown(classifier)
        )
    return replace(
        evaluation,
        scores=(*evaluation.scores, *scores, *result.scores),
        paired_tests=(*evaluation.paired_tests, *tests, *result.paired_tests),
        unseen=result,
        unseen_prediction=prediction,
        enrolled=None if unknown.all() else ~unknown,
        enrolled_copies=enrolled_copies,
    )


def _enrolled_scores(
    prediction: Predictions, labels: np.ndarray, definitions: Mapping[str, str]
) -> list[Score]:
    """Return the scores of images of enrolled classes.

    Args:
        prediction: Predictions of N images.
        labels: Their classes, int64, shape (N,).
        definitions: Metric -> definition, from :func:`stages.evaluation.unknown.define_unknown`.

    Returns:
        The accuracy of both methods, and the share of images that are rejected as unknown.
    """
    images = "test images of classes that were not trained on and were enrolled later"
    scores = []
    for metric, predicted, method in (
        ("knn_accuracy", prediction.knn, "kNN"),
        ("classification_accuracy", prediction.classifier, "the classifier"),
    ):
        correct = (predicted == labels).astype(float)
        definition = f"Share of images classified correctly by {method} among all classes; {images}"
        scores.append(share_score(metric, ENROLLED, correct, definition))
    metric = "rejection_rate_known"
    definition = f"{definitions[metric]}; {images}"
    scores.append(share_score(metric, ENROLLED, rejected(prediction.typicality), definition))
    return scores
