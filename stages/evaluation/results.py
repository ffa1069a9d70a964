"""Scores, paired tests and predictions of one evaluated run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

UNSEEN = "test-unseen"  # split of the test images of classes without a training image
ENROLLED = "test-enrolled"  # split of those of them whose class was enrolled later


@dataclass(frozen=True, eq=False)
class Score:
    """Value of one metric on one split, with its confidence interval.

    Attributes:
        metric: Name of the metric, a key of ``METRICS``.
        split: Name of the split.
        value: Share in [0, 1], or None if undefined.
        low: Lower bound of the 95% confidence interval, or None.
        high: Upper bound of the 95% confidence interval, or None.
        count: Number of images, queries, triplets or pairs; 0 if undefined.
        definition: Definition of the metric in one sentence.

    Raises:
        ValueError: If the value is outside [0, 1], or undefined with a count above 0.
    """

    metric: str
    split: str
    value: float | None
    low: float | None
    high: float | None
    count: int
    definition: str

    def __post_init__(self) -> None:
        if (self.value is None) != (self.count == 0) or (
            self.value is not None and not 0 <= self.value <= 1
        ):
            raise ValueError(f"{self.metric}: value {self.value} with count {self.count}")

    @classmethod
    def undefined(cls, metric: str, split: str, definition: str) -> "Score":
        """Return the score of a metric that cannot be computed."""
        return cls(metric, split, None, None, None, 0, definition)


@dataclass(frozen=True, eq=False)
class PairedTest:
    """Comparison of two metrics, or of one metric in two runs, on the same images.

    Attributes:
        metric_a: Name of the first metric.
        metric_b: Name of the second metric.
        split: Name of the split.
        difference: First minus second, in [-1, 1], or None if undefined.
        low: Lower bound of the 95% confidence interval of the difference, or None.
        high: Upper bound of the 95% confidence interval of the difference, or None.
        p_value: Two-sided p-value, or None.
        count: Number of images, queries or classes; 0 if undefined.
        test: Description of the test and the interval.
    """

    metric_a: str
    metric_b: str
    split: str
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    count: int
    test: str

    @classmethod
    def undefined(cls, metric_a: str, metric_b: str, split: str, test: str) -> "PairedTest":
        """Return the result of a comparison without enough images."""
        return cls(metric_a, metric_b, split, None, None, None, None, 0, test)


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions per test image; all arrays have shape (N,) and follow the order of the split.

    Attributes:
        knn: Class predicted by kNN, int64.
        classifier: Class predicted by the classifier, int64.
        probability: Calibrated probability of the classifier's prediction, float32.
        uncalibrated: The same before temperature scaling, float32.
        triplet_accuracy: Share of the triplets with this image as anchor whose positive is closer
            than the negative, float64; NaN without such a triplet.
        nearest: Row of the nearest training image in the gallery, int64.
        distance: Euclidean distance to it, float32.
        typicality: How usual this distance is, float64; see
            :func:`stages.evaluation.typicality.typicality`. NaN without validation images.
        energy: Log-sum-exp of the classifier's logits, float32. Low for unusual images.
        left_out_distance: Distance to the nearest training image of another class, float64; NaN if
            undefined. The next two describe it as that of an unknown image.
        left_out_nearer: Share of the test images of other classes that are nearer to the training
            images if the class of this image is left out of them, float64; NaN if undefined.
        left_out_typicality: Typicality with this class left out, float64; NaN if undefined.
    """

    knn: np.ndarray
    classifier: np.ndarray
    probability: np.ndarray
    uncalibrated: np.ndarray
    triplet_accuracy: np.ndarray
    nearest: np.ndarray
    distance: np.ndarray
    typicality: np.ndarray
    energy: np.ndarray
    left_out_distance: np.ndarray
    left_out_nearer: np.ndarray
    left_out_typicality: np.ndarray

    def select(self, rows: np.ndarray) -> "Predictions":
        """Return the predictions of some images, by index."""
        return Predictions(**{name: values[rows] for name, values in vars(self).items()})


class RocCurve(NamedTuple):
    """Points of a ROC curve of verification, from (0, 0) to (1, 1).

    Attributes:
        false_accept_rate: Share of the pairs of two classes that are accepted, float64, shape (R,).
        true_accept_rate: Share of the pairs of one class that are accepted, float64, shape (R,).
    """

    false_accept_rate: np.ndarray
    true_accept_rate: np.ndarray


@dataclass(frozen=True, eq=False)
class UnseenEvaluation:
    """Results on the N test images of classes that were not trained on.

    Attributes:
        scores: One score per metric, split ``test-unseen``.
        paired_tests: Recall@1, MAP@R and verification AUC of the embedding minus each baseline.
        triplet_accuracy: Share of the triplets with this image as anchor whose positive is closer
            than the negative, float64, shape (N,); NaN without such a triplet and for gallery
            images.
        neighbours: Rows of the nearest other images, nearest first, int64, shape (N, up to 5). They
            are gallery images if the split has queries, and -1 in the rows of gallery images.
        distances: Distances to them, float32, same shape; NaN where the row is -1.
        curves: ROC curves by the vectors they come from: ``embedding``, ``pixel``, ``untrained``,
            ``trunk``. A curve without points is undefined.
    """

    scores: tuple[Score, ...]
    paired_tests: tuple[PairedTest, ...]
    triplet_accuracy: np.ndarray
    neighbours: np.ndarray
    distances: np.ndarray
    curves: dict[str, RocCurve]

    def score(self, metric: str) -> Score:
        """Return the score of a metric."""
        return next(score for score in self.scores if score.metric == metric)


@dataclass(frozen=True, eq=False)
class LabelEvidence:
    """Class probabilities of labelled images, from a model that was not trained on them.

    Only the most probable classes are kept: with many classes, all of them would take gigabytes.

    Attributes:
        labels: Given class, int64, shape (N,).
        own: Calibrated probability of the given class, float32, shape (N,).
        others: The most probable other classes, int64, shape (N, M) with M at most 32.
        probabilities: Their probabilities, float32, shape (N, M).
        trained: True if the given class has training images, bool, shape (N,). Otherwise its
            probability says nothing about the label.
    """

    labels: np.ndarray
    own: np.ndarray
    others: np.ndarray
    probabilities: np.ndarray
    trained: np.ndarray


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All results of one run.

    Attributes:
        scores: One score per metric and split.
        paired_tests: Paired tests between metrics of the run.
        prediction: Predictions per test image.
        correct: Metric -> bool array of shape (N,), True where the image is classified correctly.
        measures: Retrieval measures per image (``SplitMeasures``) of the whole test split.
        spread: Root mean square distance between two test images, in [0, sqrt(2)].
        leaked: Indices of test images that also occur in the training or validation split.
        unseen: Results on the test images of classes without a training image, if there are any.
        unseen_prediction: Predictions for these images. They are wrong unless the class was
            enrolled.
        enrolled: True for those of these images whose class was enrolled, bool, shape (U,). None:
            no class was enrolled.
        enrolled_copies: Number of these images that are copies of enrolled images.
        evidence: Evidence on the labels of images that were not trained on, by split: ``test``
            and, if there are validation images, ``val``.
    """

    scores: tuple[Score, ...]
    paired_tests: tuple[PairedTest, ...]
    prediction: Predictions
    correct: dict[str, np.ndarray]
    measures: Any
    spread: float
    leaked: tuple[int, ...] = ()
    unseen: UnseenEvaluation | None = None
    unseen_prediction: Predictions | None = None
    enrolled: np.ndarray | None = None
    enrolled_copies: int = 0
    evidence: Mapping[str, LabelEvidence] = field(default_factory=dict)

    @property
    def unknown_prediction(self) -> Predictions | None:
        """Predictions for the images of classes that the classifier does not know, if any."""
        if self.unseen_prediction is None or self.enrolled is None:
            return self.unseen_prediction
        if self.enrolled.all():
            return None
        return self.unseen_prediction.select(~self.enrolled)

    def score(self, metric: str, split: str = "test") -> Score:
        """Return the score of a metric on a split."""
        key = (metric, split)
        return next(score for score in self.scores if (score.metric, score.split) == key)

    def paired_test(self, metric_a: str, metric_b: str, split: str = "test") -> PairedTest:
        """Return the paired test of two metrics on a split."""
        key = (metric_a, metric_b, split)
        return next(
            test for test in self.paired_tests if (test.metric_a, test.metric_b, test.split) == key
        )
