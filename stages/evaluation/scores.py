"""Evaluate an embedding and its classifier on test images."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from stages.checkpoints import ClassifierCheckpoint
from stages.distance import CPU
from stages.evaluation.baselines import Baseline
from stages.evaluation.calibration_error import calibration_score
from stages.evaluation.class_scores import CLASS_MEANS, class_mean_scores
from stages.evaluation.knn import knn
from stages.evaluation.metric_definitions import METRICS, define_metrics
from stages.evaluation.paired_tests import mcnemar_test
from stages.evaluation.predictions import predict
from stages.evaluation.query_sample import QuerySample
from stages.evaluation.results import Evaluation, PairedTest, Predictions, Score
from stages.evaluation.statistics import mean_score, share_score, triplet_score
from stages.evaluation.suspects import label_evidence
from stages.evaluation.triplets_and_rankings import SplitMeasures, measure_gallery, measure_split
from stages.evaluation.trunk_baselines import TrunkBaselines
from stages.evaluation.unknown import define_unknown, rejection_scores
from stages.records import Embeddings

WITHOUT_DUPLICATES = "test-without-duplicates"

# Metrics compared within a run, first minus second.
PAIRS = (
    ("classification_accuracy", "knn_accuracy"),
    ("knn_accuracy", "pixel_knn_accuracy"),
    ("classification_accuracy", "pixel_knn_accuracy"),
    ("knn_accuracy", "untrained_knn_accuracy"),
    ("knn_accuracy", "majority_accuracy"),
    ("knn_accuracy", "trunk_knn_accuracy"),
    ("classification_accuracy", "trunk_logistic_accuracy"),
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
    pretrained: bool = False,
    queries: Tensor | None = None,
    sample: QuerySample | None = None,
    trunk: TrunkBaselines | None = None,
    device: torch.device = CPU,
) -> Evaluation:
    """Compute all scores, paired tests and predictions of a run on the test split.

    All intervals are 95% confidence intervals. Nothing is chosen on these images.

    Args:
        test: Embeddings of N > 0 test images.
        classifier: Classifier with its gallery of training images.
        pixels: Raw pixels.
        untrained: Embeddings of the network before training, or None if it is not available; its
            scores are then undefined.
        leaked: Indices of test images that also occur in the training or validation split. Scores
            except class means are repeated without them as split ``test-without-duplicates``.
        validated: True if each k was chosen on validation images.
        within: True if test images query each other. If False, they query the training images,
            which suits small test splits.
        pretrained: True if training started from a pretrained trunk; adds its baselines.
        queries: True for queries and False for gallery images of the test split, bool, shape (N,).
            If ``within``, triplets and rankings are those of queries against gallery images. None
            if every image is both.
        sample: All test images, if the N images are a random sample of them. Triplets and rankings
            are then those of the N images against all test images. It replaces ``queries``.
        trunk: Baselines on the pretrained trunk, or None if they are not available.
        device: Device that computes triplets and rankings.

    Returns:
        The evaluation.
    """
    gallery = classifier.gallery
    training = _first_rows(gallery, len(pixels.gallery))  # without enrolled images
    queries = queries if within else None
    measures = _measure(test, gallery, within, queries, sample, device)
    image_measures = _measures_per_image(measures, queries)
    prediction = predict(test, classifier, _won_shares(image_measures))
    labels, images = test.labels.numpy(), np.arange(len(test))
    correct = _correct_images(prediction, labels, training, pixels, untrained, trunk)
    definitions = define_metrics(
        within=within,
        with_queries=(sample.queries if sample else queries) is not None,
        majority_class=f"training class, {test.classes[_majority_class(training)]}",
        voters=_describe_voters(classifier.k, gallery, validated, trained=len(training)),
        pixel_voters=_describe_voters(pixels.k, training, validated),
        pretrained=pretrained,
        **_describe_networks(untrained, trunk, training, validated),
    )
    describe = sample.describe if sample else dict
    definitions, unknown = describe(definitions), describe(define_unknown(classifier))
    scores, tests = compute_scores("test", correct, measures, prediction, labels, definitions)
    clean_scores, clean_tests = without_duplicates(scores, tests)
    if len(leaked):
        kept = np.setdiff1d(images, np.asarray(leaked))
        kept_queries = None if queries is None else queries[kept]
        clean = Embeddings(test.vectors[kept], test.labels[kept], test.classes)
        clean_sample = sample and sample.without_leaked()
        clean_scores, clean_tests = compute_scores(
            WITHOUT_DUPLICATES,
            {metric: values[kept] for metric, values in correct.items()},
            _measure(clean, gallery, within, kept_queries, clean_sample, device),
            prediction.select(kept),
            labels[kept],
            {name: text for name, text in definitions.items() if METRICS[name].group == "test"},
        )
    scores += rejection_scores(prediction, labels, images[:, None], unknown)
    return Evaluation(
        scores=(*scores, *clean_scores),
        paired_tests=(*tests, *clean_tests),
        prediction=prediction,
        correct=correct,
        measures=image_measures,
        spread=_spread(test, gallery, within),
        leaked=tuple(leaked),
        evidence=label_evidence(test, classifier),
    )


def _first_rows(gallery: Embeddings, count: int) -> Embeddings:
    return Embeddings(gallery.vectors[:count], gallery.labels[:count], gallery.classes)


def _measure(
    test: Embeddings,
    gallery: Embeddings,
    within: bool,
    queries: Tensor | None,
    sample: QuerySample | None,
    device: torch.device,
) -> SplitMeasures:
    """Return the measures of all queries."""
    if sample:
        return sample.measure(device)
    vectors, labels = test.vectors, test.labels
    if not within:
        return measure_gallery(vectors, labels, gallery.vectors, gallery.labels, device=device)
    if queries is None:
        return measure_split(vectors, labels, device=device)
    return measure_gallery(
        vectors[queries], labels[queries], vectors[~queries], labels[~queries], device=device
    )


def _measures_per_image(measures: SplitMeasures, queries: Tensor | None) -> SplitMeasures:
    """Return measures with one row per test image: 0 or NaN for gallery images."""
    if queries is None:
        return measures
    arrays = []
    for values in measures:
        array = np.full(len(queries), math.nan if values.dtype.kind == "f" else 0, values.dtype)
        array[queries.numpy()] = values
        arrays.append(array)
    return SplitMeasures(*arrays)


def _won_shares(measures: SplitMeasures) -> np.ndarray:
    """Return the share of the triplets of each anchor that are won; NaN without a triplet."""
    with np.errstate(invalid="ignore"):  # 0 / 0
        return np.asarray(measures.won / measures.total)


def _classify(baseline: Baseline, gallery: Embeddings) -> np.ndarray:
    """Return the classes predicted by kNN in the space of a baseline, int64 (N,)."""
    return knn(baseline.queries, baseline.gallery, gallery.labels, k=baseline.k).labels


def _majority_class(gallery: Embeddings) -> int:
    return int(np.bincount(gallery.labels.numpy()).argmax())


def _correct_images(
    prediction: Predictions,
    labels: np.ndarray,
    gallery: Embeddings,
    pixels: Baseline,
    untrained: Baseline | None,
    trunk: TrunkBaselines | None,
) -> dict[str, np.ndarray]:
    """Return metric -> True where an image is classified correctly, bool (N,)."""
    correct = {
        "knn_accuracy": prediction.knn == labels,
        "classification_accuracy": prediction.classifier == labels,
        "majority_accuracy": labels == _majority_class(gallery),
        "pixel_knn_accuracy": _classify(pixels, gallery) == labels,
    }
    if untrained:
        correct["untrained_knn_accuracy"] = _classify(untrained, gallery) == labels
    if trunk:
        correct["trunk_knn_accuracy"] = _classify(trunk.knn, gallery) == labels
        correct["trunk_logistic_accuracy"] = trunk.logistic.labels == labels
    return correct


def _describe_networks(
    untrained: Baseline | None, trunk: TrunkBaselines | None, gallery: Embeddings, validated: bool
) -> dict[str, str | None]:
    """Describe the baselines that need a network, for the definitions."""
    return {
        "untrained_voters": untrained and _describe_voters(untrained.k, gallery, validated),
        "trunk_voters": trunk and _describe_voters(trunk.knn.k, gallery, validated),
        "trunk_penalty": trunk and _describe_penalty(trunk.logistic.penalty, validated),
    }


def _describe_voters(
    k: int, gallery: Embeddings, validated: bool, *, trained: int | None = None
) -> str:
    images = "training images"
    origin = "k chosen on validation images" if validated else "default k for the class sizes"
    if trained is not None and len(gallery) > trained:
        images = "training and enrolled images"
        origin = "k chosen on validation images and enrolled images that are left out"
    return f"{min(k, len(gallery))} nearest {images} ({origin})"


def _describe_penalty(penalty: float, validated: bool) -> str:
    return f"C = {penalty:g} ({'chosen on validation images' if validated else 'default'})"


def _spread(test: Embeddings, gallery: Embeddings, within: bool) -> float:
    """Return the root mean square distance between two images.

    The first is a test image, or a training image if there is no test image; the second is another
    of them if ``within``, else a training image.
    """
    first = test or gallery
    second = first if within else gallery
    centres = first.vectors.double().mean(0), second.vectors.double().mean(0)
    return math.sqrt(max(0.0, 2 - 2 * float(centres[0] @ centres[1])))


def compute_scores(
    split: str,
    correct: Mapping[str, np.ndarray],
    measures: SplitMeasures,
    prediction: Predictions,
    labels: np.ndarray,
    definitions: Mapping[str, str],
    *,
    images: np.ndarray | None = None,
) -> tuple[list[Score], list[PairedTest]]:
    """Compute every score and paired test of a split with N images.

    Args:
        split: Name of the split.
        correct: Metric -> True where the image is classified correctly, bool, or the mean over
            repeats, float64; shape (N,).
        measures: Retrieval measures of the N images.
        prediction: Predictions, one per image and repeat.
        labels: Class index of each prediction, int64.
        definitions: Metric -> definition. Gives the metrics and their order.
        images: Index of the image of each prediction, int64, if there are several repeats.

    Returns:
        Scores and paired tests. Those of metrics that are not in ``correct`` are undefined.
    """
    means = {
        "r_precision": measures.r_precision,
        "map_at_r": measures.map_at_r,
        "mean_average_precision": measures.average_precision,
    }
    confidences = {
        "calibration_error": prediction.probability,
        "calibration_error_uncalibrated": prediction.uncalibrated,
    }
    class_means = {}
    if set(CLASS_MEANS) <= set(definitions):
        class_means = class_mean_scores(
            prediction.classifier, labels, split, definitions, images=images
        )
    scores = []
    for metric, definition in definitions.items():
        if metric == "triplet_accuracy":
            score = triplet_score(metric, split, measures, definition)
        elif metric == "precision_at_1":
            score = share_score(metric, split, measures.precision_at_1, definition)
        elif metric in correct:
            score = share_score(metric, split, correct[metric].astype(float), definition)
        elif metric in class_means:
            score = class_means[metric]
        elif metric in means:
            score = mean_score(metric, split, means[metric], definition)
        elif metric in confidences:
            hits = prediction.classifier == labels
            score = calibration_score(metric, split, confidences[metric], hits, definition)
        else:
            score = Score.undefined(metric, split, definition)
        scores.append(score)
    tests = []
    for a, b in PAIRS:
        if a not in definitions or b not in definitions:
            continue
        if a in correct and b in correct:
            tests.append(mcnemar_test(a, b, split, correct[a], correct[b]))
        else:
            tests.append(PairedTest.undefined(a, b, split, "not available: a metric is undefined"))
    return scores, tests


def without_duplicates(
    scores: Sequence[Score], tests: Sequence[PairedTest]
) -> tuple[list[Score], list[PairedTest]]:
    """Repeat scores and tests for ``test-without-duplicates`` if no test image is a duplicate."""
    repeated = [score for score in scores if METRICS[score.metric].group == "test"]
    return (
        [replace(score, split=WITHOUT_DUPLICATES) for score in repeated],
        [replace(test, split=WITHOUT_DUPLICATES) for test in tests],
    )
