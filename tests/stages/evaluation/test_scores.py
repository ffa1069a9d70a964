"""Scores of a run: duplicates, temperature, spread and undefined values."""

import dataclasses

import numpy as np
import pytest
import torch
from factories import evaluate_random, random_embeddings, unit_vectors

from stages.errors import PipelineError
from stages.evaluation.metric_definitions import METRICS
from stages.evaluation.results import Score
from stages.evaluation.scores import WITHOUT_DUPLICATES
from stages.evaluation.triplets_and_rankings import measure_gallery
from stages.records import Embeddings


def test_scores_follow_the_table_of_metrics():
    run = evaluate_random(random_embeddings(30, 3), random_embeddings(60, 3, seed=2))
    names = [score.metric for score in run.scores if score.split == "test"]
    assert names == [metric for metric in METRICS if metric in names]
    groups = {metric: METRICS[metric].group for metric in METRICS}
    assert {metric for metric in METRICS if groups[metric] in ("test", "classes")} <= set(names)
    assert "trunk" not in {groups[metric] for metric in names}
    clean = [score.metric for score in run.scores if score.split == WITHOUT_DUPLICATES]
    assert clean == [metric for metric in names if groups[metric] == "test"]
    for score in run.scores:
        assert score.definition.startswith(METRICS[score.metric].definition.split("{")[0])
        assert "{" not in score.definition


def test_scores_without_duplicates_equal_scores_of_the_other_images():
    test, gallery = random_embeddings(120, 4), random_embeddings(200, 4, seed=2)
    leaked = tuple(range(0, 120, 3))
    kept = np.setdiff1d(np.arange(120), leaked)
    run = evaluate_random(test, gallery, leaked=leaked)
    other_images = Embeddings(test.vectors[kept], test.labels[kept], test.classes)
    expected = evaluate_random(other_images, gallery)
    for metric in (
        "knn_accuracy",
        "triplet_accuracy",
        "classification_accuracy",
        "map_at_r",
        "calibration_error",
    ):
        score = run.score(metric, WITHOUT_DUPLICATES)
        assert score.value == pytest.approx(expected.score(metric).value)
        assert score.count == expected.score(metric).count
    assert run.score("knn_accuracy").count == 120
    pair = ("classification_accuracy", "knn_accuracy")
    paired = dataclasses.astuple(run.paired_test(*pair, WITHOUT_DUPLICATES))
    assert paired[3:] == dataclasses.astuple(expected.paired_test(*pair))[3:]


def test_evidence_on_labels_has_the_probabilities_of_the_reported_predictions():
    test, gallery = random_embeddings(30, 3), random_embeddings(60, 3, seed=2)
    gallery = Embeddings(gallery.vectors, gallery.labels.clamp(max=1), gallery.classes)
    run = evaluate_random(test, gallery, temperature=2.0)
    evidence = run.evidence["test"]
    assert list(run.evidence) == ["test"]  # no validation images
    other = evidence.probabilities[:, 0]
    predicted = np.where(other > evidence.own, evidence.others[:, 0], evidence.labels)
    assert np.array_equal(predicted, run.prediction.classifier)
    assert np.array_equal(np.maximum(other, evidence.own), run.prediction.probability)
    assert np.array_equal(evidence.labels, test.labels)
    assert np.array_equal(evidence.trained, test.labels != 2)


def test_scores_are_undefined_if_all_images_are_duplicates():
    test, gallery = random_embeddings(30, 3), random_embeddings(60, 3, seed=2)
    run = evaluate_random(test, gallery, leaked=tuple(range(30)))
    scores = [score for score in run.scores if score.split == WITHOUT_DUPLICATES]
    tests = [paired for paired in run.paired_tests if paired.split == WITHOUT_DUPLICATES]
    assert scores and all(score.value is None and score.count == 0 for score in scores)
    assert tests and all(paired.difference is None and paired.count == 0 for paired in tests)


def test_temperature_changes_probabilities_but_no_prediction():
    test, gallery = random_embeddings(120, 4), random_embeddings(200, 4, seed=2)
    cold = evaluate_random(test, gallery, temperature=1.0).prediction
    hot = evaluate_random(test, gallery, temperature=4.0).prediction
    assert (cold.classifier == hot.classifier).all()
    assert (hot.probability < cold.probability).all()
    np.testing.assert_array_equal(hot.uncalibrated, cold.probability)


def test_spread_is_the_root_mean_square_distance():
    test, gallery = random_embeddings(50, 3), random_embeddings(60, 3, seed=2)
    squared = torch.cdist(test.vectors.double(), test.vectors.double()).square()
    expected = float(squared.mean().sqrt())
    assert evaluate_random(test, gallery).spread == pytest.approx(expected, rel=1e-6)


def test_queries_search_the_gallery_images_of_the_split():
    test, gallery = random_embeddings(120, 4), random_embeddings(200, 4, seed=2)
    queries = torch.arange(120) % 3 == 0
    run, plain = evaluate_random(test, gallery, queries=queries), evaluate_random(test, gallery)
    measures = measure_gallery(
        test.vectors[queries], test.labels[queries], test.vectors[~queries], test.labels[~queries]
    )
    for metric, values in (
        ("precision_at_1", measures.precision_at_1),
        ("map_at_r", measures.map_at_r),
        ("mean_average_precision", measures.average_precision),
    ):
        score = run.score(metric)
        assert score.value == pytest.approx(values.mean()) and score.count == 40
        assert "query" in score.definition and "dropped" not in score.definition
    triplets = run.score("triplet_accuracy")
    assert triplets.value == measures.won.sum() / measures.total.sum()
    assert triplets.count == measures.total.sum()
    assert np.isnan(run.prediction.triplet_accuracy[~queries]).all()
    assert np.isnan(run.measures.map_at_r).sum() == 80
    for metric in ("knn_accuracy", "classification_accuracy"):
        assert run.score(metric).value == plain.score(metric).value
        assert run.score(metric).count == 120


def test_queries_without_duplicates():
    test, gallery = random_embeddings(60, 3), random_embeddings(90, 3, seed=2)
    queries, leaked = torch.arange(60) % 2 == 0, tuple(range(10))
    run = evaluate_random(test, gallery, queries=queries, leaked=leaked)
    clean = Embeddings(test.vectors[10:], test.labels[10:], test.classes)
    expected = evaluate_random(clean, gallery, queries=queries[10:]).score("map_at_r")
    score = run.score("map_at_r", WITHOUT_DUPLICATES)
    assert (score.value, score.count) == (pytest.approx(expected.value), expected.count)


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 0]])
def test_triplet_accuracy_without_triplets_is_undefined(labels):
    gallery = random_embeddings(60, 3, seed=2)
    test = Embeddings(unit_vectors(3, 8, seed=0), torch.tensor(labels), gallery.classes)
    assert evaluate_random(test, gallery).score("triplet_accuracy").value is None


@pytest.mark.parametrize("value, count", [(1.5, 3), (-0.1, 3), (None, 3), (0.5, 0), (np.nan, 3)])
def test_an_inconsistent_score_is_a_bug_and_no_error_of_the_user(value, count):
    with pytest.raises(ValueError, match="knn_accuracy") as error:
        Score("knn_accuracy", "test", value, None, None, count, "")
    assert not isinstance(error.value, PipelineError)
