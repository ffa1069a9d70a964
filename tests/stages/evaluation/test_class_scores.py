"""Precision, recall and F1 per class and their means, compared with scikit-learn."""

import math

import numpy as np
import pytest
from factories import interval_coverage
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_recall_fscore_support

from stages.evaluation.class_scores import Estimate, class_mean_scores, class_scores
from stages.evaluation.statistics import wilson_interval

DEFINITIONS = {"balanced_accuracy": "mean of recall", "macro_f1": "mean of F1"}


def random_predictions(count: int, classes: int, *, seed: int = 0, accuracy: float = 0.7):
    """Return random labels and predictions, some of them correct."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=count)
    correct = generator.random(count) < accuracy
    return np.where(correct, labels, generator.integers(classes, size=count)), labels


CASES = {
    "random": (*random_predictions(200, 5), 5),
    "few of many classes": (*random_predictions(12, 9, seed=1), 9),
    "one class": (np.zeros(4, int), np.zeros(4, int), 1),
    "one image per class": (np.array([0, 2, 2]), np.array([0, 1, 2]), 3),
    "all wrong": (np.array([1, 0, 1]), np.array([0, 1, 0]), 3),
    "always one class": (np.zeros(6, int), np.array([0, 0, 1, 1, 2, 2]), 3),
    "one image": (np.array([1]), np.array([0]), 3),
}


@pytest.mark.parametrize("name", CASES)
def test_values_equal_scikit_learn(name):
    predicted, labels, classes = CASES[name]
    expected = precision_recall_fscore_support(
        labels, predicted, labels=range(classes), zero_division=np.nan
    )
    scores = class_scores(predicted, labels, classes)
    assert len(scores) == classes
    for label, score in enumerate(scores):
        assert score.count == expected[3][label]
        estimates = (score.precision, score.recall, score.f1)
        for estimate, values in zip(estimates, expected[:3], strict=True):
            if np.isnan(values[label]):
                assert estimate == Estimate()
            else:
                assert estimate.value == pytest.approx(values[label])
                assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
                assert estimate.low < estimate.high
    present = sorted(set(labels))
    means = class_mean_scores(predicted, labels, "test", DEFINITIONS)
    recall = np.mean([scores[label].recall.value for label in present])
    macro = f1_score(labels, predicted, labels=present, average="macro", zero_division=0)
    assert means["balanced_accuracy"].value == pytest.approx(recall)
    assert means["macro_f1"].value == pytest.approx(macro)
    assert means["macro_f1"].count == means["balanced_accuracy"].count == len(labels)
    for score in means.values():
        if score.low is not None:
            assert 0 <= score.low <= score.value <= score.high <= 1
            assert score.low < score.high


def test_balanced_accuracy_equals_scikit_learn():
    predicted, labels = random_predictions(200, 5)
    score = class_mean_scores(predicted, labels, "test", DEFINITIONS)["balanced_accuracy"]
    assert score.value == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_without_images_everything_is_undefined():
    nothing = np.zeros(0, int)
    (score,) = class_scores(nothing, nothing, 1)
    assert score.count == 0 and score.precision == score.recall == score.f1 == Estimate()
    for mean in class_mean_scores(nothing, nothing, "test", DEFINITIONS).values():
        assert mean.value is None and mean.count == 0


def test_intervals_are_wilson_intervals_of_counts():
    predicted, labels = random_predictions(80, 3)
    hits = np.sum((predicted == 1) & (labels == 1))
    either = np.sum((predicted == 1) | (labels == 1))
    score = class_scores(predicted, labels, 3)[1]
    count = np.sum(predicted == 1)
    assert score.precision[1:] == pytest.approx(wilson_interval(hits / count, count))
    count = np.sum(labels == 1)
    assert score.recall[1:] == pytest.approx(wilson_interval(hits / count, count))
    low, high = wilson_interval(hits / either, either)
    assert score.f1[1:] == pytest.approx((2 * low / (1 + low), 2 * high / (1 + high)))


def test_errors_of_means_equal_numerical_derivatives():
    predicted, labels = random_predictions(60, 4)

    def means(weights: np.ndarray) -> np.ndarray:
        confusion = np.zeros((4, 4))
        np.add.at(confusion, (labels, predicted), weights)
        hits, rows, columns = np.diag(confusion), confusion.sum(1), confusion.sum(0)
        return np.array([(hits / rows).mean(), (2 * hits / (rows + columns)).mean()])

    sizes, variance = np.bincount(labels)[labels], np.zeros(2)
    for image in range(60):
        step = np.zeros(60)
        step[image] = 1e-5
        change = (means(1 + step) - means(1 - step)) / 2e-5
        variance += change**2 * sizes[image] / (sizes[image] - 1)
    effective = 4**2 / np.sum(1 / np.bincount(labels))
    scores = class_mean_scores(predicted, labels, "test", DEFINITIONS)
    for score, value, error in zip(scores.values(), means(np.ones(60)), variance**0.5, strict=True):
        # The interval of `bounded_mean_interval`, written out.
        design = ((effective * error) ** 2 + 0.25) / (effective * value * (1 - value) + 0.25)
        low, high = wilson_interval(value, effective / design)
        assert (score.low, score.high) == pytest.approx((low, high), rel=1e-6)


def test_repeated_predictions_of_an_image_count_once():
    predicted, labels = random_predictions(40, 3)
    images = np.arange(40)
    once = class_scores(predicted, labels, 3)
    thrice = class_scores(np.tile(predicted, 3), np.tile(labels, 3), 3, images=np.tile(images, 3))
    for score, repeated in zip(once, thrice, strict=True):
        assert repeated.count == score.count
        for field in ("precision", "recall", "f1"):
            assert getattr(repeated, field) == pytest.approx(getattr(score, field))
    once = class_mean_scores(predicted, labels, "test", DEFINITIONS)
    thrice = class_mean_scores(
        np.tile(predicted, 3), np.tile(labels, 3), "test", DEFINITIONS, images=np.tile(images, 3)
    )
    for metric, score in once.items():
        repeated = thrice[metric]
        assert (repeated.value, repeated.low, repeated.high, repeated.count) == pytest.approx(
            (score.value, score.low, score.high, score.count)
        )


def test_differing_repeats_are_averaged():
    """Image 0 of class 0 is predicted as 0 and as 1; images 1 and 2 of class 1 always as 1."""
    images = np.array([0, 1, 2, 2, 1, 0])
    labels = np.array([0, 1, 1, 1, 1, 0])
    scores = class_scores(np.array([0, 1, 1, 1, 1, 1]), labels, 2, images=images)
    assert [score.count for score in scores] == [1, 2]
    assert scores[0].recall.value == 0.5 and scores[0].precision.value == 1
    assert scores[1].recall.value == 1 and scores[1].precision.value == pytest.approx(2 / 2.5)
    assert scores[1].f1.value == pytest.approx(2 * 2 / (2 + 2.5))
    # Weights 1, 1 and 1/2 are as precise as 2.5^2 / 2.25 images.
    expected = wilson_interval(0.8, 2.5**2 / 2.25)
    assert scores[1].precision[1:] == pytest.approx(expected)


@pytest.mark.parametrize("metric", ["f1", "balanced_accuracy", "macro_f1"])
def test_intervals_cover_the_true_value(metric):
    generator = np.random.default_rng(0)
    confusion = np.array([[0.8, 0.15, 0.05], [0.2, 0.7, 0.1], [0.0, 0.1, 0.9]])
    prior = np.array([0.5, 0.3, 0.2])
    joint = prior[:, None] * confusion
    f1 = 2 * np.diag(joint) / (joint.sum(0) + prior)
    truth = {"f1": f1[1], "macro_f1": f1.mean(), "balanced_accuracy": np.diag(confusion).mean()}

    def draw() -> tuple[float, float]:
        cells = generator.choice(9, size=60, p=joint.ravel())
        if metric == "f1":
            return class_scores(cells % 3, cells // 3, 3)[1].f1[1:]
        score = class_mean_scores(cells % 3, cells // 3, "test", DEFINITIONS)[metric]
        return score.low, score.high

    assert 0.92 < interval_coverage(draw, truth[metric], draws=500) < 0.98


def test_macro_f1_of_tiny_classes_has_no_interval():
    labels = np.arange(10)
    scores = class_mean_scores(labels, labels, "test", DEFINITIONS)
    assert scores["macro_f1"].value == 1 and scores["macro_f1"].low is None
    assert "no interval" in scores["macro_f1"].definition
    low = scores["balanced_accuracy"].low
    assert math.isclose(low, wilson_interval(1.0, 10)[0])
