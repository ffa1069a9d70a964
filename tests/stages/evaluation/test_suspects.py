"""Suspect labels compared with a plain loop, on random and degenerate probabilities."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.evaluation.results import LabelEvidence
from stages.evaluation.suspects import find_suspects, most_probable_others


def make_evidence(probabilities, labels, trained=None) -> LabelEvidence:
    if trained is None:
        trained = np.ones(len(labels), bool)
    return most_probable_others(np.asarray(probabilities, np.float32), np.asarray(labels), trained)


def list_in_a_loop(
    evidence: LabelEvidence, matrix: np.ndarray, images: np.ndarray
) -> list[tuple[int, int, float]]:
    """Return row, suggested class and self-confidence of each suspect, one image at a time."""
    classes = range(matrix.shape[1])
    candidates, pairs, confirmed = [], Counter(), Counter()
    for image in sorted(set(images.tolist())):
        rows = [row for row in range(len(images)) if images[row] == image]
        label = int(evidence.labels[rows[0]])
        mean = [sum(float(matrix[row, cls]) for row in rows) / len(rows) for cls in classes]
        best, suggested = -1.0, -1
        for cls, value in enumerate(mean):
            if cls != label and value > best:
                best, suggested = value, cls
        if best <= mean[label]:
            confirmed[label] += 1
        elif all(evidence.trained[row] for row in rows):
            pairs[label, suggested] += 1
            candidates.append((mean[label] / best, image, rows[0], label, suggested, mean[label]))
    suspects = []
    for ratio, image, row, label, suggested, own in candidates:
        rate = (pairs[label, suggested] + 5) / (confirmed[suggested] + 5)
        suspects.append((ratio / rate, image, row, suggested, own))
    return [(row, suggested, own) for _, _, row, suggested, own in sorted(suspects)]


def as_list(suspects) -> list[tuple[int, int, float]]:
    return [
        (int(row), int(suggested), float(own))
        for row, suggested, own, _ in zip(*suspects, strict=True)
    ]


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    images=st.integers(1, 12),
    classes=st.integers(1, 4),
    repeats=st.integers(1, 3),
    values=st.sampled_from([2, 4, 1000]),
)
def test_suspects_equal_a_plain_loop(seed, images, classes, repeats, values):
    """Few distinct values give many ties between classes and between images."""
    generator = np.random.default_rng(seed)
    weights = generator.integers(0, values, (images * repeats, classes)) + 1e-3
    labels = generator.integers(0, classes, images)
    index = generator.permutation(np.repeat(np.arange(images), repeats))
    trained = generator.random(images * repeats) < 0.9
    matrix = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    evidence = make_evidence(matrix, labels[index], trained)
    assert as_list(find_suspects(evidence, index)) == list_in_a_loop(evidence, matrix, index)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), values=st.sampled_from([2, 1000]))
def test_many_classes_equal_a_plain_loop(seed, values):
    """Only some of the classes are kept; equal probabilities suggest the first class."""
    generator = np.random.default_rng(seed)
    weights = generator.integers(0, values, (9, 70)) + 1e-3
    matrix = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    evidence = make_evidence(matrix, generator.integers(0, 70, 9))
    assert evidence.others.shape == (9, 32)
    assert as_list(find_suspects(evidence)) == list_in_a_loop(evidence, matrix, np.arange(9))


def test_the_smallest_ratio_is_the_most_doubtful():
    """The second image has the smaller probability of its label, the first the smaller ratio."""
    probabilities = [[0.16, 0.84, 0.0], [0.1, 0.4, 0.5], [0.9, 0.1, 0.0]]
    suspects = find_suspects(make_evidence(probabilities, [0, 0, 0]))
    assert suspects.rows.tolist() == [0, 1]
    assert suspects.suggested.tolist() == [1, 2]
    assert suspects.self_confidence.tolist() == pytest.approx([0.16, 0.1])
    assert suspects.score.tolist() == pytest.approx([0.16 / 0.84 * 5 / 6, 0.2 * 5 / 6])


def test_a_frequent_confusion_is_more_doubtful_than_a_rare_one():
    """Nine images of class 1 have the label 0, and one image of class 2 has it."""
    frequent, rare = [0.3, 0.7, 0.0], [0.28, 0.0, 0.72]
    suspects = find_suspects(make_evidence([rare, *[frequent] * 9], [0] * 10))
    assert suspects.rows.tolist() == [*range(1, 10), 0]


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [
        ([[1.0], [1.0]], [0, 0]),  # one class
        ([[0.5, 0.5], [0.5, 0.5]], [0, 1]),  # equally probable classes
        ([[1.0, 0.0], [0.3, 0.7]], [0, 1]),  # all labels are confirmed
        (np.zeros((0, 2)), np.zeros(0, np.int64)),
    ],
)
def test_no_contradiction_is_no_suspect(probabilities, labels):
    assert as_list(find_suspects(make_evidence(probabilities, labels))) == []


def test_a_probability_of_zero_is_a_finite_suspect():
    suspects = find_suspects(make_evidence([[0.0, 1.0], [0.0, 1.0]], [0, 0]))
    assert as_list(suspects) == [(0, 1, 0.0), (1, 1, 0.0)]
    assert suspects.score.tolist() == [0, 0]


def test_an_untrained_class_is_no_suspect():
    trained = np.array([True, False])
    suspects = find_suspects(make_evidence([[0.2, 0.8], [0.2, 0.8]], [0, 0], trained))
    assert suspects.rows.tolist() == [0]
