"""Scores of unseen classes: the parts fit together, roles, missing baselines, degenerate input."""

import numpy as np
import pytest
import torch
from factories import add_noise, pairwise_distances, random_embeddings, unit_vectors

from stages.evaluation.class_jackknife import class_groups
from stages.evaluation.left_out_rankings import rank_without_each_class
from stages.evaluation.metric_definitions import METRICS
from stages.evaluation.triplets_and_rankings import measure_split
from stages.evaluation.unseen import COMPARED, MEASURES, UNSEEN, evaluate_unseen
from stages.evaluation.verification import verify_without_each_class
from stages.records import Embeddings

BASELINES = ("pixel", "untrained", "trunk")


def evaluate(test, *, trunk=None, **options):
    baselines = {
        "pixel": unit_vectors(len(test), 20, seed=5),
        "untrained": add_noise(test, 0.4).vectors,
    }
    if trunk is not None:
        baselines["trunk"] = trunk
    return evaluate_unseen(test, baselines, **options)


def test_scores_come_from_each_kind_of_vectors():
    test = random_embeddings(60, 8)
    worse, pixels = add_noise(test, 0.4).vectors, unit_vectors(60, 20, seed=5)
    evaluation = evaluate(test, trunk=test.vectors)
    groups = class_groups(test.labels)
    for name, vectors in (
        ("", test.vectors),
        ("pixel_", pixels),
        ("untrained_", worse),
        ("trunk_", test.vectors),
    ):
        estimates, _ = rank_without_each_class(vectors, test.labels, groups)
        pairs, _ = verify_without_each_class(vectors, test.labels, groups)
        for metric in COMPARED if name else MEASURES:
            score, estimate = evaluation.score(name + metric), {**estimates, **pairs}[metric]
            assert score.value == pytest.approx(estimate.value, abs=1e-9)
            assert score.count == estimate.count and score.low < score.value < score.high
    assert list(evaluation.curves) == ["embedding", *BASELINES]


def test_every_score_has_a_metric_and_a_complete_definition():
    evaluation = evaluate(random_embeddings(60, 8), trunk=unit_vectors(60, 3, seed=0))
    metrics = [score.metric for score in evaluation.scores]
    expected = {*MEASURES, "knn_accuracy", "classification_accuracy"}
    expected |= {f"{name}_{metric}" for name in BASELINES for metric in COMPARED}
    assert set(metrics) == expected <= set(METRICS) and len(metrics) == len(expected)
    for score in evaluation.scores:
        assert score.split == UNSEEN and "{" not in score.definition
    for metric in ("knn_accuracy", "classification_accuracy"):
        score = evaluation.score(metric)
        assert score.value is None and score.count == 0 and "training split" in score.definition
    assert "leave-one-class-out" in evaluation.score("map_at_r").definition


def test_paired_tests_are_the_embedding_minus_each_baseline():
    evaluation = evaluate(random_embeddings(200, 25, noise=0.2))
    assert len(evaluation.paired_tests) == 6
    for test in evaluation.paired_tests:
        a, b = evaluation.score(test.metric_a), evaluation.score(test.metric_b)
        assert test.difference == pytest.approx(a.value - b.value) and test.count == 25
        assert test.low < test.difference < test.high
        assert (test.p_value < 0.05) == (test.low > 0)
        if test.metric_b == "pixel_precision_at_1":
            assert test.p_value < 0.001


def test_missing_baselines():
    test = random_embeddings(40, 6)
    evaluation = evaluate_unseen(test, {"pixel": test.vectors, "untrained": None})
    metrics = [score.metric for score in evaluation.scores]
    assert evaluation.score("untrained_map_at_r").value is None
    assert not any(metric.startswith("trunk_") for metric in metrics)
    assert evaluation.paired_tests[3].difference is None
    assert list(evaluation.curves) == ["embedding", "pixel"]


def test_values_per_image_without_roles():
    test = random_embeddings(30, 4)
    evaluation = evaluate(test)
    measures = measure_split(test.vectors, test.labels)
    np.testing.assert_allclose(evaluation.triplet_accuracy, measures.won / measures.total)
    distances = pairwise_distances(test.vectors, test.vectors) + 9 * np.eye(30)
    assert evaluation.neighbours.tolist() == np.argsort(distances, axis=1)[:, :5].tolist()
    np.testing.assert_allclose(evaluation.distances, np.sort(distances, axis=1)[:, :5], atol=1e-6)


def test_values_per_image_with_roles():
    test, queries = random_embeddings(30, 4), torch.arange(30) % 3 == 0
    evaluation = evaluate(test, queries=queries)
    assert np.isnan(evaluation.triplet_accuracy[~queries]).all()
    assert not np.isnan(evaluation.triplet_accuracy[queries]).any()
    assert (evaluation.neighbours[~queries] == -1).all()
    assert np.isnan(evaluation.distances[~queries]).all()
    assert not queries[evaluation.neighbours[queries]].any()
    assert evaluation.score("precision_at_1").count == 10
    assert evaluation.score("verification_auc").count == 10 * 20
    assert "query" in evaluation.score("triplet_accuracy").definition


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 0, 0], [0, 0, 1, 1], [0]])
@pytest.mark.parametrize("equal", [False, True])
def test_degenerate_splits(labels, equal):
    """One image per class, one class, two classes, one image; all vectors equal."""
    vectors = unit_vectors(len(labels), 3, seed=0)
    if equal:
        vectors = vectors[:1].expand(len(labels), -1)
    test = Embeddings(vectors, torch.tensor(labels), ("a", "b", "c", "d"))
    evaluation = evaluate_unseen(test, {"pixel": vectors, "untrained": vectors})
    defined = labels == [0, 0, 1, 1]
    for metric in ("triplet_accuracy", "verification_auc"):
        score = evaluation.score(metric)
        assert (score.value is not None) == defined and score.low is None
    if equal and defined:
        assert evaluation.score("precision_at_1").value == 0
        assert evaluation.score("verification_auc").value == 0.5
        assert evaluation.score("equal_error_rate").value == 0.5
    assert evaluation.neighbours.shape == (len(labels), min(5, len(labels) - 1))


@pytest.mark.parametrize("role", [True, False])
def test_a_split_of_only_queries_or_only_gallery_images_is_undefined(role):
    test = random_embeddings(12, 3)
    evaluation = evaluate(test, queries=torch.full((12,), role))
    assert all(score.value is None for score in evaluation.scores)
    assert evaluation.neighbours.shape[0] == 12


def test_order_of_rows_does_not_matter():
    test = random_embeddings(50, 6)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    permuted = Embeddings(test.vectors[order], test.labels[order], test.classes)
    pixels = unit_vectors(50, 20, seed=5)
    a = evaluate_unseen(test, {"pixel": pixels, "untrained": None})
    b = evaluate_unseen(permuted, {"pixel": pixels[order], "untrained": None})
    for first, second in zip(a.scores, b.scores, strict=True):
        assert first.value == pytest.approx(second.value, abs=1e-12)
        assert first.low == pytest.approx(second.low, abs=1e-9)
    np.testing.assert_array_equal(a.triplet_accuracy[order], b.triplet_accuracy)
