"""Scores, paired tests and predictions of one evaluated run."""

from dataclasses import dataclass
from typing import Any

from stages.errors import DataError


@dataclass(frozen=True, eq=False)
class Score:
    """One figure of the report.

    value: a share in [0, 1], or None where undefined (then count is 0). low, high: its 95 % interval, or None.
    count: what was counted (images, queries or triplets). definition: one sentence.
    Raises DataError where that does not hold.
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
            raise DataError(f"{self.metric}: value {self.value} with count {self.count}")


@dataclass(frozen=True, eq=False)
class PairedTest:
    """Two measures of the same images, compared image by image.

    difference: of a minus b, in [-1, 1], or None where undefined (then count is 0). low, high: its 95 % interval.
    p_value: two-sided. count: images. test: one sentence.
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


@dataclass(frozen=True, eq=False)
class Predictions:
    """What the report says of each test image; all arrays have one entry an image, in the split's order.

    knn, classifier: int64 class indices. probability: float32, the classifier's for its own label, calibrated;
    uncalibrated: the same before temperature.
    triplet_accuracy: float64, the share of triplets won with this image as anchor, NaN where it has none.
    nearest: int64, index into the gallery of the nearest training image. distance: float32, to it.
    """

    knn: Any
    classifier: Any
    probability: Any
    uncalibrated: Any
    triplet_accuracy: Any
    nearest: Any
    distance: Any


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The report's numbers.

    scores: one a metric and split. comparisons: paired tests within the run. prediction: one entry an image.
    right: metric -> bool (N,), the images that it names rightly. measures: of the whole test split, image by image.
    spread: root mean square distance between two test images, in [0, sqrt(2)]. leaked: positions in the test split.
    """

    scores: tuple[Score, ...]
    paired_tests: tuple[PairedTest, ...]
    prediction: Predictions
    correct: dict[str, Any]
    measures: Any
    spread: float
    leaked: tuple[int, ...] = ()

    def score(self, metric: str, split: str = "test") -> Score:
        """The one of that name."""
        return next(
            score for score in self.scores if (score.metric, score.split) == (metric, split)
        )

    def paired_test(self, metric_a: str, metric_b: str, split: str = "test") -> PairedTest:
        """The one of those two."""
        return next(
            one
            for one in self.paired_tests
            if (one.metric_a, one.metric_b, one.split) == (metric_a, metric_b, split)
        )
