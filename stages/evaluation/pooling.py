"""Pool folds, repeats and seeds into one evaluation."""

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TypeVar

import numpy as np

from stages.evaluation.metric_definitions import define_metrics
from stages.evaluation.results import Evaluation, LabelEvidence, Predictions, Score
from stages.evaluation.scores import compute_scores, without_duplicates
from stages.evaluation.triplets_and_rankings import SplitMeasures
from stages.evaluation.unknown import define_unknown, rejection_scores

PerImage = TypeVar("PerImage", Predictions, LabelEvidence)


def pool_folds(
    folds: Sequence[Evaluation],
    test_indices: Sequence[np.ndarray],
    labels: np.ndarray,
    classes: Sequence[str],
    *,
    pretrained: bool = False,
) -> Evaluation:
    """Pool the test images of all folds into one evaluation of every image.

    A score is the mean over images of the mean over repeats. Its interval is over the N images,
    because predicting an image again adds no new image.

    Args:
        folds: Evaluations against the training images, all folds of one repeat after the other.
        test_indices: Indices of the test images of each fold among all N images, int64.
        labels: Class index of each prediction, fold after fold, int64, shape (R * N,) for R
            repeats.
        classes: Class names.
        pretrained: True if training started from a pretrained trunk.

    Returns:
        The pooled evaluation. ``correct`` and ``prediction`` list the predictions fold after fold;
        ``measures`` has one entry per image.
    """
    indices = np.concatenate(test_indices)
    count = int(indices.max()) + 1
    repeats = len(indices) // count
    order = np.argsort(indices, kind="stable").reshape(count, repeats)  # (N, R) predictions
    prediction = _concatenate(Predictions, [fold.prediction for fold in folds])
    evidence = _concatenate(LabelEvidence, [fold.evidence["test"] for fold in folds])
    correct = {
        metric: np.concatenate([fold.correct[metric] for fold in folds])
        for metric in folds[0].correct
    }
    # The majority class of all images: within a fold, the class that is most frequent in training
    # tends to be the least frequent in the test.
    majority_class = int(np.bincount(labels).argmax())
    correct["majority_accuracy"] = labels == majority_class
    mean_correct = {}
    for metric, values in correct.items():
        mean_correct[metric] = values[order[:, 0]] if repeats == 1 else values[order].mean(1)
    measures = _pool_measures([fold.measures for fold in folds], order)
    voters = "k nearest training images of the fold (k as in the fold)"
    definitions = define_metrics(
        within=False,
        majority_class=f"class, {classes[majority_class]}",
        voters=voters,
        pixel_voters=voters,
        untrained_voters=voters if "untrained_knn_accuracy" in correct else None,
        pretrained=pretrained,
        trunk_voters=voters if "trunk_knn_accuracy" in correct else None,
        trunk_penalty="C as in the fold" if "trunk_logistic_accuracy" in correct else None,
    )
    scores, tests = compute_scores(
        "test", mean_correct, measures, prediction, labels, definitions, images=indices
    )
    image_labels = labels[order[:, 0]]
    scores += rejection_scores(prediction, image_labels, order, define_unknown())
    scores = [_as_pooled(score, count, repeats) for score in scores]
    clean_scores, clean_tests = without_duplicates(scores, tests)
    return Evaluation(
        scores=(*scores, *clean_scores),
        paired_tests=(*tests, *clean_tests),
        prediction=prediction,
        correct=correct,
        measures=measures,
        spread=min(fold.spread for fold in folds),
        evidence={"test": evidence},
    )


def _concatenate(kind: type[PerImage], parts: Sequence[PerImage]) -> PerImage:
    """Concatenate each field of data classes whose fields have one value per image."""
    arrays = {}
    for field in fields(kind):
        arrays[field.name] = np.concatenate([getattr(part, field.name) for part in parts])
    return kind(**arrays)


def _pool_measures(measures: Sequence[SplitMeasures], order: np.ndarray) -> SplitMeasures:
    """Sum the counts and average the shares of each image over repeats; order is (N, R)."""
    arrays = {}
    for name in SplitMeasures._fields:
        values = np.concatenate([getattr(part, name) for part in measures])[order]  # (N, R)
        arrays[name] = values.mean(1) if values.dtype.kind == "f" else values.sum(1)
    return SplitMeasures(**arrays)


def _as_pooled(score: Score, images: int, repeats: int) -> Score:
    """Count images instead of predictions, and extend the definition."""
    definition = f"{score.definition}; each image is tested by models not trained on it"
    if repeats > 1:
        definition += f"; mean over {repeats} repeats, interval over images"
    count = score.count
    if score.metric != "triplet_accuracy":
        count = min(count, images)
    return replace(score, count=count, definition=definition)


def pool_runs(
    runs: Sequence[Evaluation], what: str = "runs"
) -> tuple[tuple[Score, ...], tuple[Score, ...]]:
    """Compute mean and standard deviation of each score over runs.

    Args:
        runs: Evaluations. Their scores are matched by metric and split.
        what: Plural noun for the runs in the definitions.

    Returns:
        Means and standard deviations (n - 1). ``count`` is the number of runs with a value; a
        standard deviation is undefined for fewer than two.
    """
    values_by_score: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        for score in run.scores:
            values = values_by_score.setdefault((score.metric, score.split), [])
            if score.value is not None:
                values.append(score.value)
    means, deviations = [], []
    for (metric, split), values in values_by_score.items():
        count = len(values)
        mean = min(1.0, math.fsum(values) / count) if values else None
        means.append(Score(metric, split, mean, None, None, count, f"mean over {count} {what}"))
        definition = f"standard deviation over {count} {what} (n - 1)"
        if count > 1:
            deviation = float(np.std(values, ddof=1))
            deviations.append(Score(metric, split, deviation, None, None, count, definition))
        else:
            deviations.append(Score.undefined(metric, split, definition))
    return tuple(means), tuple(deviations)
