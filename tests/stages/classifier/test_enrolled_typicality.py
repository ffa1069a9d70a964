"""Distances and typicality of enrolled images that are left out, compared with slow loops."""

import numpy as np
import pytest
import torch
from factories import pairwise_distances, random_embeddings

from stages.classifier.enrolled_typicality import enrolled_distances, left_out_typicality
from stages.classifier.enrolment import EnrolledGallery
from stages.distance import exact_distances
from stages.evaluation.knn import nearest_distances
from stages.records import Embeddings


def make_gallery(old: int, known: int, new: tuple[int, ...]) -> EnrolledGallery:
    """Return two old classes, enrolled images of them, and images of new classes.

    The first enrolled image of a known class and of a new one belong to an earlier enrolment.
    """
    pool = random_embeddings(600, 2 + len(new), seed=2, noise=0.5)
    rows = [(pool.labels < 2).nonzero().flatten()[: old + known]]
    rows += [(pool.labels == 2 + i).nonzero().flatten()[:n] for i, n in enumerate(new)]
    chosen = torch.cat(rows)
    return EnrolledGallery(
        embeddings=Embeddings(pool.vectors[chosen], pool.labels[chosen], pool.classes),
        enrolled=known + sum(new),
        added=known + sum(new) - 1,
        new_classes=tuple(range(2, 2 + len(new))),
    )


@pytest.mark.parametrize("block", [2**21, 100])
def test_distances_are_those_of_new_classes_to_the_nearest_other_image(monkeypatch, block):
    monkeypatch.setattr("stages.classifier.enrolled_typicality.BLOCK", block)
    gallery = make_gallery(30, 2, (1, 3))
    distances, rows = enrolled_distances(gallery)
    assert rows.tolist() == [33, 34, 35]  # neither known classes nor the only image of a class
    expected = pairwise_distances(gallery.embeddings.vectors, gallery.embeddings.vectors)
    np.fill_diagonal(expected, np.inf)
    np.testing.assert_allclose(distances, expected[rows].min(axis=1), atol=1e-6)


def test_more_images_of_known_classes_have_no_distance():
    assert len(enrolled_distances(make_gallery(30, 5, ()))[0]) == 0


@pytest.mark.parametrize(
    ("known", "new", "validated"),
    [(4, (1, 3), 25), (3, (30, 8), 25), (5, (), 25), (0, (1, 1), 9), (2, (4,), 0)],
)
def test_left_out_typicality_equals_a_loop(known, new, validated):
    gallery = make_gallery(30, known, new)
    stored = gallery.embeddings
    validation = torch.empty(0)
    if validated:
        images = random_embeddings(validated, len(stored.classes), seed=5, noise=0.5)
        validation = nearest_distances(images.vectors, stored.vectors)
    all_distances = exact_distances(stored.vectors, stored.vectors)
    all_distances.fill_diagonal_(np.inf)
    sizes = torch.bincount(stored.labels).tolist()
    labels = stored.labels.tolist()
    first_enrolled = len(stored) - gallery.enrolled
    expected = []
    for row in range(len(stored) - gallery.added, len(stored)):
        if sizes[labels[row]] < 2:
            continue
        nearest = int(all_distances[row].argmin())
        distance = float(all_distances[row, nearest])
        calibration = validation.tolist()
        if labels[nearest] in gallery.new_classes:
            calibration = [
                float(all_distances[other].min())
                for other in range(first_enrolled, len(stored))
                if other != row and labels[other] in gallery.new_classes
                if sizes[labels[other]] >= 2
            ]
        farther = sum(1 for other in calibration if other >= distance)
        expected.append((1 + farther) / (1 + len(calibration)))
    found = left_out_typicality(gallery, validation)
    if validated:
        assert found.tolist() == expected
    else:
        assert len(found) == len(expected) and np.isnan(found).all()
