"""Scores pooled over folds and repeats, compared with counting."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import evaluate_random, random_embeddings
from sklearn.metrics import balanced_accuracy_score

from stages.evaluation.pooling import pool_folds, pool_runs
from stages.evaluation.statistics import bounded_mean_interval, triplet_accuracy
from stages.evaluation.triplets_and_rankings import measure_gallery

CLASSES = tuple("0123")


def random_folds(repeats: int, count: int = 60, folds: int = 3):
    """Return evaluations of random folds, each fold's test indices, and all test labels.

    Each fold has another gallery.
    """
    images, generator = random_embeddings(count, 4), np.random.default_rng(0)
    evaluations, test_indices = [], []
    for _ in range(repeats):
        for rows in np.array_split(generator.permutation(count), folds):
            test = replace(images, vectors=images.vectors[rows], labels=images.labels[rows])
            gallery = random_embeddings(100, 4, seed=10 + len(evaluations), noise=0.9)
            evaluations.append(evaluate_random(test, gallery, within=False))
            test_indices.append(rows)
    labels = torch.cat([images.labels[rows] for rows in test_indices]).numpy()
    return evaluations, test_indices, labels


@pytest.mark.parametrize("repeats", [1, 3])
def test_pooled_scores_are_counted_over_all_predictions(repeats):
    folds, test_indices, labels = random_folds(repeats)
    pooled = pool_folds(folds, test_indices, labels, CLASSES)
    definition = pooled.score("untrained_knn_accuracy").definition
    assert "network before training" in definition and "pretrained" not in definition
    pretrained = pool_folds(folds, test_indices, labels, CLASSES, pretrained=True)
    assert "pretrained trunk" in pretrained.score("untrained_knn_accuracy").definition
    for metric in ("knn_accuracy", "classification_accuracy", "pixel_knn_accuracy"):
        score = pooled.score(metric)
        correct = np.concatenate([fold.correct[metric] for fold in folds])
        assert score.value == pytest.approx(correct.mean())
        assert score.count == 60  # images, not predictions
    predicted = np.concatenate([fold.prediction.classifier for fold in folds])
    balanced = pooled.score("balanced_accuracy")
    assert balanced.value == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert balanced.count == pooled.score("macro_f1").count == 60
    majority = np.bincount(labels).max() / len(labels)
    assert pooled.score("majority_accuracy").value == pytest.approx(majority)
    won = sum(int(fold.measures.won.sum()) for fold in folds)
    total = sum(int(fold.measures.total.sum()) for fold in folds)
    assert pooled.score("triplet_accuracy").value == pytest.approx(won / total)
    assert pooled.score("triplet_accuracy").count == total
    expected = np.concatenate([fold.evidence["test"].probabilities for fold in folds])
    assert np.array_equal(pooled.evidence["test"].probabilities, expected)
    map_at_r = np.concatenate([fold.measures.map_at_r for fold in folds])
    assert pooled.score("map_at_r").value == pytest.approx(map_at_r.mean())


def test_repeated_predictions_do_not_narrow_an_interval():
    folds, test_indices, labels = random_folds(1)
    thrice = pool_folds(folds * 3, test_indices * 3, np.tile(labels, 3), CLASSES)
    once = pool_folds(folds, test_indices, labels, CLASSES)
    for score, repeated in zip(once.scores, thrice.scores, strict=True):
        assert repeated.value == pytest.approx(score.value)
        if score.metric != "triplet_accuracy":
            assert repeated.count == score.count
        if score.low is not None:
            assert (repeated.low, repeated.high) == pytest.approx((score.low, score.high))
    for test, repeated in zip(once.paired_tests, thrice.paired_tests, strict=True):
        assert (repeated.p_value, repeated.low, repeated.count) == pytest.approx(
            (test.p_value, test.low, test.count)
        )


def test_interval_of_triplet_accuracy_is_a_jackknife_over_queries():
    test, gallery = random_embeddings(30, 3), random_embeddings(50, 3, seed=2)
    measures = measure_gallery(test.vectors, test.labels, gallery.vectors, gallery.labels)
    value, low, high = triplet_accuracy(measures)
    without = []
    for row in range(30):
        keep = np.arange(30) != row
        kept = measure_gallery(
            test.vectors[keep], test.labels[keep], gallery.vectors, gallery.labels
        )
        without.append(kept.won.sum() / kept.total.sum())
    error = np.sqrt(29 / 30 * np.square(without - np.mean(without)).sum())
    assert 0 < low < value < high < 1
    assert (low, high) == pytest.approx(bounded_mean_interval(value, error, 30))


def test_pool_runs_equals_numpy():
    gallery = random_embeddings(200, 4, seed=9)
    runs = [evaluate_random(random_embeddings(100, 4, seed=seed), gallery) for seed in range(3)]
    means, deviations = pool_runs(runs)
    index = [score.metric for score in means].index("map_at_r")
    values = [run.score("map_at_r").value for run in runs]
    assert means[index].split == deviations[index].split == "test"
    assert means[index].value == pytest.approx(np.mean(values))
    assert deviations[index].value == pytest.approx(np.std(values, ddof=1))
    assert means[index].count == 3


def test_pool_runs_matches_scores_by_metric_and_split():
    gallery = random_embeddings(200, 4, seed=9)
    first, second = (
        evaluate_random(random_embeddings(100, 4, seed=seed), gallery) for seed in (1, 2)
    )
    extra = replace(first.score("knn_accuracy"), metric="trunk_knn_accuracy")
    means, deviations = pool_runs([replace(first, scores=(extra, *first.scores)), second])
    assert len(means) == len(deviations) == len(second.scores) + 1
    values = {(score.metric, score.split): score for score in means}
    assert values["trunk_knn_accuracy", "test"].value == extra.value
    assert values["trunk_knn_accuracy", "test"].count == 1
    expected = np.mean([run.score("map_at_r").value for run in (first, second)])
    assert values["map_at_r", "test"].value == pytest.approx(expected)


def test_deviation_of_a_single_run_is_undefined():
    run = evaluate_random(random_embeddings(100, 4), random_embeddings(200, 4, seed=9))
    deviation = pool_runs([run])[1][0]
    assert deviation.value is None and deviation.count == 0
