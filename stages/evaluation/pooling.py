"""Pool folds, repeats and seeds into one evaluation."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stages.evaluation.results import Evaluation, Predictions, Score
from stages.evaluation.retrieval import SplitMeasures
from stages.evaluation.scores import compute_scores, define_metrics, without_duplicates


def pool_folds(
    folds: Sequence[Evaluation],
    places: Sequence[np.ndarray],
    labels: np.ndarray,
    classes: Sequence[str],
) -> Evaluation:
    """The test images of all folds as one test of every image.

    folds: all of one repeat, then all of the next; scored against their training images. places: int64 (n,) for each,
    where its test images stand among all N. labels: int64 (R * N,), fold after fold as `right` and `prediction` of the result.
    A figure is the mean over images of the mean over repeats; its interval is over the N images, since predicting an image
    again makes no new one.
    """
    where = np.concatenate(places)
    count = int(where.max()) + 1
    repeats = len(where) // count
    order = np.argsort(where, kind="stable").reshape(count, repeats)  # of each image its repeats
    prediction = Predictions(
        *(
            np.concatenate(parts)
            for parts in zip(*(vars(one.prediction).values() for one in folds), strict=True)
        )
    )
    right = {
        metric: np.concatenate([one.correct[metric] for one in folds])
        for metric in folds[0].correct
    }
    common = int(np.bincount(labels).argmax())
    right["majority_accuracy"] = (
        labels == common
    )  # of all: the class most frequent in training is the rarest in the test
    shares = {
        metric: hits[order[:, 0]] if repeats == 1 else hits[order].mean(1)
        for metric, hits in right.items()
    }
    each = [
        np.concatenate(parts)[order] for parts in zip(*(one.measures for one in folds), strict=True)
    ]
    measures = SplitMeasures(
        *(part.mean(1) if part.dtype.kind == "f" else part.sum(1) for part in each)
    )
    vote = "k nearest training images (k and these as in each fold"
    definitions = define_metrics(
        f"class, {classes[common]}", vote, vote, vote if "untrained_knn_accuracy" in right else None
    )
    scores, paired = compute_scores(
        "test", shares, right, prediction, measures, definitions, within=False
    )
    told = (
        "; each image tested by models that never saw it"
        + f"; mean of {repeats} repeats, interval over images" * (repeats > 1)
    )
    scores = tuple(
        replace(
            one,
            definition=one.definition + told,
            count=one.count if one.metric == "triplet_accuracy" else min(one.count, count),
        )
        for one in scores
    )
    clean = without_duplicates((scores, paired))
    return Evaluation(
        (*scores, *clean[0]),
        (*paired, *clean[1]),
        prediction,
        right,
        measures,
        min(one.spread for one in folds),
    )


def pool_runs(
    runs: Sequence[Evaluation], what: str = "runs"
) -> tuple[tuple[Score, ...], tuple[Score, ...]]:
    """Mean and standard deviation (n - 1) over runs, figure by figure; `count` is how many of them had a value."""
    means, deviations = [], []
    for same in zip(*(run.scores for run in runs), strict=True):
        values = [score.value for score in same if score.value is not None]
        metric, split, count = same[0].metric, same[0].split, len(values)
        mean = min(1.0, math.fsum(values) / count) if values else None
        means.append(Score(metric, split, mean, None, None, count, f"mean over {count} {what}"))
        deviation = float(np.std(values, ddof=1)) if count > 1 else None
        deviations.append(
            Score(
                metric,
                split,
                deviation,
                None,
                None,
                count if count > 1 else 0,
                f"standard deviation over {count} {what} (n - 1)",
            )
        )
    return tuple(means), tuple(deviations)
