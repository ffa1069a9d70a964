"""Pooled scores equal numpy's mean and standard deviation."""

import numpy as np
import pytest
from factories import evaluate_random, random_embeddings

from stages.evaluation.pooling import pool_runs


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


def test_deviation_of_a_single_run_is_undefined():
    run = evaluate_random(random_embeddings(100, 4), random_embeddings(200, 4, seed=9))
    deviation = pool_runs([run])[1][0]
    assert deviation.value is None and deviation.count == 0
