"""A sample of queries has the measures of these queries, and wider intervals."""

import numpy as np
import pytest
import torch
from factories import add_noise, evaluate_random, pairwise_distances, random_embeddings

from stages.evaluation.query_sample import QuerySample, draw_queries
from stages.evaluation.scores import WITHOUT_DUPLICATES
from stages.evaluation.statistics import triplet_accuracy
from stages.evaluation.triplets_and_rankings import measure_split
from stages.records import Embeddings

PER_QUERY = ("won", "tied", "total", "won_by_margin", "first_hit", "precision_at_1", "map_at_r")


def test_queries_are_drawn_at_random_and_always_the_same():
    rows = draw_queries(1000, 100)
    assert torch.equal(rows, draw_queries(1000, 100)) and torch.equal(rows, rows.unique())
    assert len(rows) == 100 and 400 < float(rows.double().mean()) < 600
    roles = torch.arange(50) % 2 == 0
    assert set(draw_queries(50, 10, queries=roles).tolist()) <= set(range(0, 50, 2))


def test_measures_are_those_of_the_queries():
    test = random_embeddings(40, 4)
    rows = draw_queries(40, 12)
    measures, expected = QuerySample(test, rows).measure(), measure_split(test.vectors, test.labels)
    for name in PER_QUERY:
        np.testing.assert_array_equal(getattr(measures, name), getattr(expected, name)[rows])


def test_triplets_of_each_image_equal_a_loop():
    test = random_embeddings(15, 3, seed=1)
    rows, labels = draw_queries(15, 6), test.labels.tolist()
    distances = pairwise_distances(test.vectors, test.vectors)
    won_any, total_any = np.zeros((2, 15), int)
    for anchor in rows.tolist():
        for positive in range(15):
            for negative in range(15):
                same_class = positive != anchor and labels[positive] == labels[anchor]
                if same_class and labels[negative] != labels[anchor]:
                    images = [anchor, positive, negative]
                    won_any[images] += distances[anchor, positive] < distances[anchor, negative]
                    total_any[images] += 1
    measures = QuerySample(test, rows).measure()
    np.testing.assert_array_equal(measures.won_any, won_any)
    np.testing.assert_array_equal(measures.total_any, total_any)
    assert 0 < won_any.sum() < total_any.sum()


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_fewer_queries_have_wider_intervals(noise):
    """Also if every triplet is won, so that nothing varies."""
    centres = Embeddings(torch.eye(4).repeat(50, 1), torch.arange(4).repeat(50), tuple("abcd"))
    test = add_noise(centres, noise) if noise else centres
    widths = []
    for count in (200, 50, 10):
        _, low, high = triplet_accuracy(QuerySample(test, draw_queries(200, count)).measure())
        widths.append(high - low)
    assert widths == sorted(widths) and widths[0] < widths[-1] / 2


def test_scores_count_the_sample_and_drop_leaked_images():
    images, gallery = random_embeddings(60, 3, seed=2), random_embeddings(30, 3, seed=3)
    rows = draw_queries(60, 20)
    test = Embeddings(images.vectors[rows], images.labels[rows], images.classes)
    leaked = (int(rows[0]), int(rows[4]), 59 if 59 not in rows else 58)
    sample = QuerySample(images, rows, leaked=leaked)
    whole = evaluate_random(test, gallery)
    run = evaluate_random(test, gallery, leaked=(0, 4), sample=sample)
    assert run.score("map_at_r").value != whole.score("map_at_r").value
    for metric in ("knn_accuracy", "precision_at_1", "map_at_r"):
        assert run.score(metric).count == 20
        assert run.score(metric, WITHOUT_DUPLICATES).count == 18
        assert "20 of 60 test images" in run.score(metric).definition
    kept = sample.without_leaked()
    assert len(kept.images) == 60 - len(set(leaked)) and len(kept.rows) == 18
    assert torch.equal(kept.images.labels[kept.rows], test.labels[[*range(1, 4), *range(5, 20)]])


def test_queries_with_roles_search_the_gallery():
    images = random_embeddings(40, 3, seed=4)
    roles = torch.arange(40) < 25
    rows = draw_queries(40, 10, queries=roles)
    sample = QuerySample(images, rows, roles)
    all_queries = QuerySample(images, torch.arange(25), roles).measure()
    np.testing.assert_array_equal(sample.measure().map_at_r, all_queries.map_at_r[rows])
    assert sample.measure().total.shape == (10,)
