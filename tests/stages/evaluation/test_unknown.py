"""Scores of unknown images: values, errors by class, and the tests between the methods."""

import numpy as np
import pytest
import torch
from factories import make_classifier, random_embeddings
from pytorch_ood.detector.energy import EnergyBased
from pytorch_ood.detector.softmax import MaxSoftmax
from pytorch_ood.metrics.functional import auroc, fpr_at_tpr
from sklearn.metrics import roc_auc_score

from stages.evaluation.predictions import predict
from stages.evaluation.results import Predictions
from stages.evaluation.unknown import (
    _accepted_parts,
    _compare,
    class_error,
    define_unknown,
    rejection_scores,
    unknown_scores,
)
from stages.records import Embeddings
from stages.settings import REJECT


def predictions(embeddings: Embeddings, classifier, *, known: bool) -> Predictions:
    return predict(embeddings, classifier, np.zeros(len(embeddings)), known=known)


@pytest.fixture(scope="module")
def images():
    """Predictions of known and of unknown images, the labels of the latter, and the classifier."""
    gallery, validation = random_embeddings(60, 4, seed=1), random_embeddings(30, 4, seed=2)
    classifier = make_classifier(gallery, validation=validation)
    unknown = random_embeddings(40, 5, seed=3)
    unknown = Embeddings(-unknown.vectors, unknown.labels, unknown.classes)
    known = predictions(random_embeddings(50, 4, seed=4), classifier, known=True)
    labels = unknown.labels.numpy()
    return known, predictions(unknown, classifier, known=False), labels, classifier


def test_scores_equal_scikit_learn(images):
    known, unknown, labels, classifier = images
    scores, tests = unknown_scores(known, unknown, labels, define_unknown(classifier))
    values = {score.metric: score.value for score in scores}
    truth = np.repeat([1, 0], [50, 40])
    methods = {
        "": (-known.distance, -unknown.distance),
        "_max_probability": (known.probability, unknown.probability),
        "_energy": (known.energy, unknown.energy),
    }
    for ending, pair in methods.items():
        expected = roc_auc_score(truth, np.concatenate(pair))
        assert values[f"unknown_auroc{ending}"] == pytest.approx(expected)
    assert values["rejection_rate_unknown"] == np.mean(unknown.typicality < REJECT)
    assert 0 < values["rejection_rate_unknown"] < 1
    for score in scores:
        assert score.low < score.value < score.high or score.value in (score.low, score.high)
        assert score.split == "test-unseen" and score.count == 40
    for test in tests:
        assert test.difference == pytest.approx(values[test.metric_a] - values[test.metric_b])
        assert (test.low > 0 or test.high < 0) == (test.p_value < 0.05)


def test_scores_equal_pytorch_ood(images):
    known, unknown, labels, classifier = images
    scores, _ = unknown_scores(known, unknown, labels, define_unknown(classifier))
    values = {score.metric: score.value for score in scores}
    vectors = random_embeddings(50, 4, seed=4).vectors, -random_embeddings(40, 5, seed=3).vectors
    with torch.no_grad():
        logits = classifier.head.linear(torch.cat(vectors))
    outlier_scores = {
        "": torch.from_numpy(np.concatenate([known.distance, unknown.distance])),
        "_max_probability": MaxSoftmax.score(logits, t=classifier.temperature),
        "_energy": EnergyBased.score(logits),
    }
    is_unknown = torch.arange(90) >= 50
    for ending, outlier in outlier_scores.items():
        expected = auroc(outlier, -is_unknown.int())  # its unknown images have labels below 0
        assert values[f"unknown_auroc{ending}"] == pytest.approx(float(expected))
        # Our positive class is the known images.
        expected = fpr_at_tpr(-outlier, -(~is_unknown).int(), 0.95)
        assert values[f"unknown_fpr_at_95_tpr{ending}"] == pytest.approx(float(expected))


def test_energy_is_that_of_the_logits(images):
    known, _, _, classifier = images
    vectors = random_embeddings(50, 4, seed=4).vectors
    with torch.no_grad():
        logits = classifier.head.linear(vectors).double().numpy()
    np.testing.assert_allclose(known.energy, np.log(np.exp(logits).sum(1)), rtol=1e-5)


def test_error_by_class_equals_leaving_each_class_out():
    generator = np.random.default_rng(0)
    values, labels = generator.random(30), generator.integers(0, 6, 30)
    means = np.array([values[labels != label].mean() for label in np.unique(labels)])
    expected = np.sqrt(5 / 6 * np.square(means - means.mean()).sum())
    assert class_error(values, labels) == pytest.approx(expected)
    # With one image per class it is the error of independent images.
    alone = class_error(values, np.arange(30))
    assert alone == pytest.approx(values.std(ddof=1) / np.sqrt(30))
    assert class_error(values, np.zeros(30)) is None
    assert class_error(values, np.arange(30) % 2) is None


def test_two_unseen_classes_have_no_interval(images):
    known, unknown, labels, classifier = images
    scores, tests = unknown_scores(known, unknown, labels % 2, define_unknown(classifier))
    assert all(score.low is None and score.count == 40 for score in scores)
    assert all(test.count == 0 for test in tests) and len(tests) == 4


def test_exchangeable_methods_rarely_differ():
    """The threshold for 95% of the known images varies too."""
    generator, rejected = np.random.default_rng(0), 0
    labels = np.repeat(np.arange(20), 10)
    for _ in range(60):
        known = generator.normal(2, 1, 100) + generator.normal(0, 0.7, (2, 100))
        of_class = generator.normal(0, 0.5, 20)[labels] + generator.normal(0, 1, 200)
        unknown = of_class + generator.normal(0, 0.7, (2, 200))
        parts = [_accepted_parts(known[method], unknown[method]) for method in range(2)]
        rejected += _compare(("a", "b", "test-unseen"), *parts, labels).p_value < 0.05
    assert rejected <= 8  # 0.05 expected, 0.5 with a fixed threshold


def test_without_known_images_the_comparisons_are_undefined(images):
    known, unknown, labels, classifier = images
    nothing = known.select(np.empty(0, dtype=int))
    scores, tests = unknown_scores(nothing, unknown, labels, define_unknown(classifier))
    defined = {score.metric for score in scores if score.count}
    assert defined == {"rejection_rate_unknown"} and not tests


def test_without_validation_images_nothing_is_rejected(images):
    gallery = random_embeddings(60, 4, seed=1)
    classifier = make_classifier(gallery)
    known = predictions(random_embeddings(50, 4, seed=4), classifier, known=True)
    labels, order = random_embeddings(50, 4, seed=4).labels.numpy(), np.arange(50)[:, None]
    scores = {
        score.metric: score
        for score in rejection_scores(known, labels, order, define_unknown(classifier))
    }
    assert scores["rejection_rate_known"].count == 0
    assert "dropped" not in scores["rejection_rate_known"].definition
    assert scores["left_out_rejection_rate"].count == 0
    assert scores["left_out_auroc"].count == 50


def test_repeats_count_once(images):
    known, _, _, classifier = images
    labels = random_embeddings(50, 4, seed=4).labels.numpy()
    once = rejection_scores(known, labels, np.arange(50)[:, None], define_unknown(classifier))
    twice = known.select(np.tile(np.arange(50), 2))
    order = np.arange(100).reshape(2, 50).T
    repeated = rejection_scores(twice, labels, order, define_unknown())
    for a, b in zip(once, repeated, strict=True):
        assert (a.value, a.low, a.high, a.count) == (b.value, b.low, b.high, b.count)
