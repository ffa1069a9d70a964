"""Stage three: measure an embedding and its classifier on images that neither has seen."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from stages.evaluation.baselines import PIXELS, Baseline
from stages.evaluation.calibration_error import calibration_score
from stages.evaluation.knn import knn
from stages.evaluation.paired_tests import mcnemar_test
from stages.evaluation.results import Evaluation, PairedTest, Predictions, Score
from stages.evaluation.retrieval import SplitMeasures, measure_gallery, measure_split
from stages.evaluation.statistics import mean_score, share_score, triplet_accuracy
from stages.network.head import probabilities
from stages.records import ClassifierCheckpoint, Embeddings

WITHOUT_DUPLICATES = "test-without-duplicates"


PAIRS = (  # within a run, a minus b
    ("classification_accuracy", "knn_accuracy"),
    ("knn_accuracy", "pixel_knn_accuracy"),
    ("classification_accuracy", "pixel_knn_accuracy"),
    ("knn_accuracy", "untrained_knn_accuracy"),
    ("knn_accuracy", "majority_accuracy"),
)


def evaluate_split(
    test: Embeddings,
    classifier: ClassifierCheckpoint,
    *,
    pixels: Baseline,
    untrained: Baseline | None,
    leaked: Sequence[int] = (),
    validated: bool = True,
    within: bool = True,
) -> Evaluation:
    """The comparison: kNN, triplet and classification accuracy, retrieval, calibration and three baselines, on the same images.

    pixels, untrained: raw pixels, and the vectors of the network before training; None where it can't be had, then its
    scores are undefined. leaked: positions of test images whose pixels stand in the training or validation part; every
    figure is given with them and without. validated: whether validation images chose each k. within: whether test images
    query each other; otherwise, where they are too few, they query the training images. Every interval is a 95 % one; nothing
    here is chosen on these images.
    """
    labels, rows = test.labels.numpy(), np.arange(len(test))
    gallery = classifier.gallery
    before, after = (
        probabilities(classifier.head, test.vectors, temperature=t).numpy()
        for t in (1.0, classifier.temperature)
    )
    named = after.argmax(1)
    found = knn(test.vectors, gallery.vectors, gallery.labels, k=classifier.k)

    def named_by(space: Baseline) -> np.ndarray:
        return np.asarray(
            knn(space.queries, space.gallery, gallery.labels, k=space.k).labels == labels
        )

    common = int(np.bincount(gallery.labels.numpy()).argmax())
    right = {
        "knn_accuracy": found.labels == labels,
        "classification_accuracy": named == labels,
        "majority_accuracy": labels == common,
        "pixel_knn_accuracy": named_by(pixels),
    }
    if untrained:
        right["untrained_knn_accuracy"] = named_by(untrained)
    how = "chosen on validation" if validated else "from the class sizes"
    votes = [
        f"{min(one.k, len(gallery))} nearest training images (k {how}" if one else None
        for one in (classifier, pixels, untrained)
    ]
    definitions = define_metrics(f"training class, {test.classes[common]}", *votes)

    def measure(keep: np.ndarray) -> SplitMeasures:
        queries = test.vectors[keep], test.labels[keep]
        return (
            measure_split(*queries)
            if within
            else measure_gallery(*queries, gallery.vectors, gallery.labels)
        )

    measures = measure(rows)
    with np.errstate(invalid="ignore"):
        by_anchor = measures.won / measures.total
    prediction = Predictions(
        found.labels,
        named,
        after[rows, named],
        before[rows, named],
        by_anchor,
        found.nearest,
        found.distance,
    )
    figures = compute_scores("test", right, right, prediction, measures, definitions, within)
    if len(leaked):
        keep = np.setdiff1d(rows, np.asarray(leaked))
        part, hits = (
            Predictions(*(values[keep] for values in vars(prediction).values())),
            {m: r[keep] for m, r in right.items()},
        )
        clean = compute_scores(
            WITHOUT_DUPLICATES, hits, hits, part, measure(keep), definitions, within
        )
    else:
        clean = without_duplicates(figures)
    centre, other = (
        vectors.double().mean(0)
        for vectors in (test.vectors, test.vectors if within else gallery.vectors)
    )
    spread = math.sqrt(max(0.0, 2 - 2 * float(centre @ other)))  # of unit vectors
    return Evaluation(
        (*figures[0], *clean[0]),
        (*figures[1], *clean[1]),
        prediction,
        right,
        measures,
        spread,
        tuple(leaked),
    )


def define_metrics(
    common: str, known: str | None, raw: str | None, fresh: str | None
) -> dict[str, str]:
    """What each share is; the last three say who votes, or None."""
    vote = "share of images that the majority of the {}; all ties at the edge vote, equal votes go to the nearest) names rightly"
    return {
        "knn_accuracy": vote.format(known),
        "classification_accuracy": "share of images that dropout + linear + log-softmax on the frozen embedding names rightly",
        "majority_accuracy": f"share of images of the most frequent {common}",
        "pixel_knn_accuracy": vote.format(raw)
        + f", Euclidean distance of raw pixels (images above {PIXELS} pixels averaged down to it)",
        "untrained_knn_accuracy": (
            vote.format(fresh) if fresh else "left out: its weights are gone"
        )
        + ", the same network before training",
    }


def compute_scores(
    split: str,
    shares: Mapping[str, np.ndarray],
    right: Mapping[str, np.ndarray],
    prediction: Predictions,
    measures: SplitMeasures,
    definitions: Mapping[str, str],
    within: bool,
) -> tuple[tuple[Score, ...], tuple[PairedTest, ...]]:
    """Every score and paired test. shares, measures: an entry an image; right, prediction: an entry a prediction."""
    each = {
        metric: shares[metric] if metric in shares else np.zeros(0, bool) for metric in definitions
    }
    named = {
        metric: share_score(metric, split, each[metric].astype(float), definitions[metric])
        for metric in definitions
    }
    hits = right["classification_accuracy"]
    scores = (
        named.pop("knn_accuracy"),
        _triplets(split, measures, within),
        named.pop("classification_accuracy"),
        *_retrieval(split, measures, within),
        *named.values(),
        calibration_score(
            "calibration_error", split, prediction.probability, hits, "after temperature"
        ),
        calibration_score(
            "calibration_error_uncalibrated",
            split,
            prediction.uncalibrated,
            hits,
            "before temperature",
        ),
    )
    return scores, tuple(
        mcnemar_test(a, b, split, each[a][: len(each[b])], each[b]) for a, b in PAIRS
    )


def without_duplicates(
    figures: tuple[tuple[Score, ...], tuple[PairedTest, ...]],
) -> tuple[tuple[Score, ...], tuple[PairedTest, ...]]:
    """The figures without duplicates, where there are none."""
    return tuple(replace(one, split=WITHOUT_DUPLICATES) for one in figures[0]), tuple(
        replace(one, split=WITHOUT_DUPLICATES) for one in figures[1]
    )


def _triplets(split: str, measures: SplitMeasures, within: bool) -> Score:
    which = (
        "of the split"
        if within
        else "of a test image and two training images, of its class and of another,"
    )
    pooled = f"share of all triplets {which} with d(anchor, positive) < d(anchor, negative), ties lost; interval: jackknife over images"
    if not (count := int(measures.total.sum())):
        return Score("triplet_accuracy", split, None, None, None, 0, pooled)
    return Score("triplet_accuracy", split, *triplet_accuracy(measures), count, pooled)


def _retrieval(split: str, measures: SplitMeasures, within: bool) -> tuple[Score, ...]:
    ranking = (
        "each image queries the others of the split, itself left out"
        if within
        else "each test image queries the training images"
    )
    return (
        share_score(
            "precision_at_1",
            split,
            measures.precision_at_1,
            f"share of queries whose nearest image has their class; {ranking}",
        ),
        mean_score(
            "r_precision",
            split,
            measures.r_precision,
            f"share of a query's class among its R nearest, R = others of its class; {ranking}",
        ),
        mean_score(
            "map_at_r",
            split,
            measures.map_at_r,
            f"mean of precision at the hits among the R nearest, divided by R; {ranking}",
        ),
        mean_score(
            "mean_average_precision",
            split,
            measures.average_precision,
            f"mean over queries of the average precision of the whole ranking; {ranking}",
        ),
    )
