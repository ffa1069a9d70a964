"""Stage three: measure an embedding and its classifier on images that neither has seen."""

import math

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from stages.metrics import knn, measure_split, triplet_accuracy
from stages.records import Embeddings, Prediction, Score, Scored

NEIGHBOURS = 5  # k of every kNN in the report
RESAMPLES = 1000


def score_split(
    test: Embeddings,
    gallery: Embeddings,
    head: nn.Module,
    *,
    pixels: tuple[Tensor, Tensor],
    untrained: tuple[Tensor, Tensor],
    split: str = "test",
) -> Scored:
    """The comparison: kNN, triplet and classification accuracy, retrieval, and three baselines, on the same images.

    test, gallery: embeddings of the images to judge and of the training part. head: on the CPU.
    pixels, untrained: (test, gallery) pairs of (N, D) and (G, D): raw pixels, and the vectors of the network before
    training. Every interval is a 95 % one.
    """
    labels = test.labels.numpy()
    with torch.inference_mode():
        probabilities = head(test.vectors).exp()
    classifier = probabilities.argmax(1).numpy()
    neighbours = knn(test.vectors, gallery.vectors, gallery.labels, k=NEIGHBOURS)
    raw, fresh = (knn(queries, known, gallery.labels, k=NEIGHBOURS).labels for queries, known in (pixels, untrained))
    common = int(np.bincount(gallery.labels.numpy()).argmax())
    measures = measure_split(test.vectors, test.labels)

    k = min(NEIGHBOURS, len(gallery))
    vote = f"majority of the {k} nearest training images (ties at the edge all vote; equal votes go to the nearest voter)"

    def share(metric: str, right: np.ndarray, definition: str) -> Score:
        return _share(metric, split, right.astype(float), definition)

    def mean(metric: str, values: np.ndarray, definition: str) -> Score:
        return _mean(metric, split, values, definition)

    value, low, high = triplet_accuracy(measures)
    triplets = int(measures.total.sum())
    pooled = "share of all triplets of the split with d(anchor, positive) < d(anchor, negative), ties lost; interval: jackknife over images"
    ranking = "each image queries the others of the split, itself left out"
    scores = (
        share("knn_accuracy", neighbours.labels == labels, f"share of images that the {vote} names rightly"),
        Score("triplet_accuracy", split, value, low, high, triplets, pooled)
        if triplets
        else Score("triplet_accuracy", split, None, None, None, 0, pooled),
        share(
            "classification_accuracy",
            classifier == labels,
            "share of images that dropout + linear + log-softmax on the frozen embedding names rightly",
        ),
        share("precision_at_1", measures.precision_at_1, f"share of queries whose nearest image has their class; {ranking}"),
        mean("r_precision", measures.r_precision, f"share of a query's class among its R nearest, R = others of its class; {ranking}"),
        mean("map_at_r", measures.map_at_r, f"mean of precision at the hits among the R nearest, divided by R; {ranking}"),
        mean(
            "mean_average_precision",
            measures.average_precision,
            f"mean over queries of the average precision of the whole ranking; {ranking}",
        ),
        share("majority_accuracy", labels == common, f"share of images of the most frequent training class, {test.classes[common]}"),
        share("pixel_knn_accuracy", raw == labels, f"share of images that the {vote} names rightly, Euclidean distance of raw pixels"),
        share(
            "untrained_knn_accuracy", fresh == labels, f"share of images that the {vote} names rightly, the same network before training"
        ),
    )
    with np.errstate(invalid="ignore"):
        by_anchor = measures.won / measures.total
    confidence = probabilities.numpy()[np.arange(len(labels)), classifier]
    return Scored(scores, Prediction(neighbours.labels, classifier, confidence, by_anchor, neighbours.nearest, neighbours.distance))


def _share(metric: str, split: str, right: np.ndarray, definition: str) -> Score:
    """A share of images (1 right, 0 wrong, NaN dropped) with Wilson's interval."""
    kept, definition = _defined(right, definition)
    if len(kept) == 0:
        return Score(metric, split, None, None, None, 0, definition)
    interval = stats.binomtest(int(kept.sum()), len(kept)).proportion_ci(method="wilson")
    return Score(metric, split, float(kept.mean()), interval.low, interval.high, len(kept), f"{definition}; interval: Wilson")


def _mean(metric: str, split: str, values: np.ndarray, definition: str) -> Score:
    """A mean over queries (NaN dropped) with a percentile bootstrap over queries."""
    kept, definition = _defined(values, definition)
    if len(kept) == 0:
        return Score(metric, split, None, None, None, 0, definition)
    value = min(1.0, math.fsum(kept) / len(kept))
    if len(kept) == 1:
        return Score(metric, split, value, None, None, 1, definition)
    draws = np.random.default_rng(0).multinomial(len(kept), np.full(len(kept), 1 / len(kept)), size=RESAMPLES)
    low, high = (float(bound) for bound in np.quantile(draws @ kept / len(kept), (0.025, 0.975)))
    return Score(metric, split, value, low, high, len(kept), f"{definition}; interval: bootstrap over queries")


def _defined(values: np.ndarray, definition: str) -> tuple[np.ndarray, str]:
    """The values that exist, and the definition with how many don't."""
    kept = values[~np.isnan(values)]
    dropped = len(values) - len(kept)
    return kept, f"{definition}; {dropped} queries without another image of their class dropped" if dropped else definition
