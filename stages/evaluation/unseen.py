"""Evaluate an embedding on test images of classes that were not trained on."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.distance import exact_distances
from stages.evaluation import left_out_rankings, verification
from stages.evaluation.baselines import PIXELS
from stages.evaluation.class_jackknife import (
    ClassSample,
    Estimate,
    class_sample,
    compare_estimates,
    jackknife_score,
)
from stages.evaluation.metric_definitions import METRICS, initial_network
from stages.evaluation.query_blocks import BLOCK
from stages.evaluation.results import UNSEEN, PairedTest, RocCurve, Score, UnseenEvaluation
from stages.records import Embeddings

NEIGHBOURS = 5  # nearest images per image, for the page
COMPARED = ("precision_at_1", "map_at_r", "verification_auc")  # also computed for baselines
MEASURES = ("triplet_accuracy", *left_out_rankings.MEASURES, *verification.MEASURES)
UNDEFINED = ("knn_accuracy", "classification_accuracy")
DROPPED = (
    "; at equal distances, images of other classes rank first; queries without another image of "
    "their class, or without one of another class, are dropped"
)
NOT_TRAINED_ON = "Undefined: no image of these classes was in the training split"


class _Measures(NamedTuple):
    estimates: dict[str, Estimate]
    curve: RocCurve
    triplet_accuracy: np.ndarray


def evaluate_unseen(
    test: Embeddings,
    baselines: Mapping[str, Tensor | None],
    *,
    queries: Tensor | None = None,
    pretrained: bool = False,
) -> UnseenEvaluation:
    """Compute retrieval and verification scores of classes that were not trained on.

    Every score is exact, with a 95% interval over classes from the leave-one-class-out jackknife:
    it says how the score varies with the choice of classes.

    Args:
        test: Embeddings of N > 0 test images of C classes without a training image.
        baselines: Other vectors of the images by name, floating point, shape (N, D) each: ``pixel``
            (raw pixels), ``untrained`` (the network before training) and ``trunk`` (features of the
            pretrained trunk). The scores of a baseline that is None are undefined.
        queries: True for queries and False for gallery images, bool, shape (N,). Queries then
            search the gallery images only. None if every image queries all others.
        pretrained: True if training started from a pretrained trunk. It only changes a definition.

    Returns:
        The evaluation. Its paired tests are the embedding minus each baseline.

    Example:
        >>> vectors = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
        >>> test = Embeddings(vectors, torch.tensor([0, 0, 1, 1]), ("cat", "dog"))
        >>> evaluation = evaluate_unseen(test, {"pixel": torch.rand(4, 64)})
        >>> score = evaluation.score("precision_at_1")
        >>> score.value, score.count, score.low
        (1.0, 4, None)
    """
    sample = class_sample(test.labels, queries=queries)
    groups = sample.groups
    measures = {"embedding": _measure(test.vectors, test.labels, groups, queries)}
    for name, vectors in baselines.items():
        if vectors is not None:
            measures[name] = _measure(vectors, test.labels, groups, queries)
    estimates = dict(measures["embedding"].estimates)
    tests = []
    for name in baselines:
        for metric in COMPARED:
            if name in measures:
                estimates[f"{name}_{metric}"] = measures[name].estimates[metric]
            tests.append(_compare(metric, f"{name}_{metric}", estimates, sample))
    scores = [Score.undefined(metric, UNSEEN, NOT_TRAINED_ON) for metric in UNDEFINED]
    fields = _definition_fields(queries is not None, pretrained)
    for metric in (*MEASURES, *(test.metric_b for test in tests)):
        definition = METRICS[metric].definition.format(**fields)
        if metric in estimates:
            scores.append(jackknife_score(metric, UNSEEN, estimates[metric], sample, definition))
        else:
            scores.append(Score.undefined(metric, UNSEEN, f"{definition}; not available"))
    neighbours, distances = _nearest_images(test.vectors, queries)
    return UnseenEvaluation(
        scores=tuple(scores),
        paired_tests=tuple(tests),
        triplet_accuracy=measures["embedding"].triplet_accuracy,
        neighbours=neighbours,
        distances=distances,
        curves={name: measure.curve for name, measure in measures.items()},
    )


def _measure(vectors: Tensor, labels: Tensor, groups: Tensor, queries: Tensor | None) -> _Measures:
    rankings, triplet_accuracy = left_out_rankings.rank_without_each_class(
        vectors, labels, groups, queries=queries
    )
    verified, curve = verification.verify_without_each_class(
        vectors, labels, groups, queries=queries
    )
    return _Measures({**rankings, **verified}, curve, triplet_accuracy)


def _compare(
    metric_a: str, metric_b: str, estimates: dict[str, Estimate], sample: ClassSample
) -> PairedTest:
    if metric_b not in estimates:
        test = "not available: a metric is undefined"
        return PairedTest.undefined(metric_a, metric_b, UNSEEN, test)
    names = (metric_a, metric_b, UNSEEN)
    return compare_estimates(names, estimates[metric_a], estimates[metric_b], sample)


def _definition_fields(with_queries: bool, pretrained: bool) -> dict[str, object]:
    """Return the fields of the definitions in ``METRICS``."""
    if with_queries:
        triplets = "of a query (the anchor) and two gallery images of the unseen classes"
        ranking = "each query image queries the gallery images of the unseen classes" + DROPPED
        pairs = "all pairs of a query and a gallery image of the unseen classes"
    else:
        triplets = "of the unseen classes"
        ranking = "each image queries all other images of the unseen classes" + DROPPED
        pairs = "all pairs of images of the unseen classes"
    return {
        "triplets": triplets,
        "ranking": ranking,
        "pairs": pairs,
        "pixels": PIXELS,
        "initial_network": initial_network(pretrained=pretrained),
    }


def _nearest_images(vectors: Tensor, queries: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and distances of the nearest other images, (N, up to 5) each."""
    images = torch.arange(len(vectors))
    rows = images if queries is None else images[queries]
    columns = images if queries is None else images[~queries]
    count = max(0, min(NEIGHBOURS, len(columns) - (queries is None)))
    neighbours = torch.full((len(vectors), count), -1)
    distances = torch.full((len(vectors), count), math.nan)
    for block in rows.split(max(1, BLOCK // max(1, len(columns)))):
        block_distances = exact_distances(vectors[block], vectors[columns])
        if queries is None:
            block_distances[torch.arange(len(block)), block] = math.inf
        nearest = block_distances.topk(count, largest=False)
        neighbours[block], distances[block] = columns[nearest.indices], nearest.values
    return neighbours.numpy(), distances.numpy()
