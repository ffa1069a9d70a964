"""Evaluated runs with doubtful labels."""

from dataclasses import replace

import numpy as np

from pipeline.report.evaluated_run import EvaluatedRun
from stages.evaluation.suspects import most_probable_others


def with_suspects(run: EvaluatedRun, own: dict[str, list[float]]) -> EvaluatedRun:
    """Return a run in which the labels of some images are doubtful.

    Args:
        run: Evaluated run with validation images.
        own: Probability of the label of the first images, by split. The rest of the probability
            belongs to the next class. All other labels have probability 1.
    """
    evidence = {}
    for name, split in (("test", run.images), ("val", run.data.validation)):
        labels = split.labels.numpy()
        rows, classes = np.arange(len(labels)), len(split.classes)
        probabilities = np.zeros((len(labels), classes), np.float32)
        probabilities[rows, labels] = 1
        for row, value in enumerate(own.get(name, [])):
            probabilities[row, labels[row]] = value
            probabilities[row, (labels[row] + 1) % classes] = 1 - value
        evidence[name] = most_probable_others(probabilities, labels, np.ones(len(labels), bool))
    return replace(run, evaluation=replace(run.evaluation, evidence=evidence))
