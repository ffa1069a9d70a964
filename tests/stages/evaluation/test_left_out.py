"""Leaving classes out equals removing them from the gallery one at a time."""

import numpy as np
import pytest
import torch
from factories import make_classifier, pairwise_distances, random_embeddings

from stages.evaluation.left_out import class_distances, leave_classes_out
from stages.evaluation.roc import placements
from stages.evaluation.typicality import typicality
from stages.records import Embeddings


def leave_out_one_by_one(test, gallery, validation):
    """Oracle: remove each class from the gallery and compute all distances again."""
    labels = test.labels.numpy()
    nearest, nearer, typical = np.full((3, len(test)), np.nan)
    for image, label in enumerate(labels):
        kept = gallery.labels != label
        if not kept.any():
            continue
        distances = pairwise_distances(test.vectors, gallery.vectors[kept]).min(1)
        nearest[image] = distances[image]
        others = distances[labels != label]
        if len(others):
            nearer[image] = placements(-others, -distances[[image]])[0]
        if validation is not None:
            chosen = validation.vectors[validation.labels != label]
            reference = pairwise_distances(chosen, gallery.vectors[kept]).min(1)
            typical[image] = typicality(distances[[image]], reference)[0]
    return nearest, nearer, typical


@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize("validated", [True, False])
def test_equals_removing_each_class(classes, validated):
    test, gallery = random_embeddings(17, classes, seed=1), random_embeddings(23, classes, seed=2)
    validation = random_embeddings(11, classes, seed=3) if validated else None
    result = leave_classes_out(test, make_classifier(gallery, validation=validation))
    expected = leave_out_one_by_one(test, gallery, validation)
    for values, oracle in zip(result, expected, strict=True):
        np.testing.assert_allclose(values, oracle, atol=1e-6)
    assert np.isnan(result).all() == (classes == 1)


def test_equal_vectors_are_as_near_as_all_others():
    same = torch.eye(3)[:1].repeat(6, 1)
    images = Embeddings(same, torch.tensor([0, 0, 1, 1, 2, 2]), ("a", "b", "c"))
    _, nearer, typical = leave_classes_out(images, make_classifier(images, validation=images))
    assert nearer.tolist() == [0.5] * 6 and typical.tolist() == [1.0] * 6


def test_a_class_without_training_images_is_never_nearest():
    gallery = random_embeddings(12, 3, seed=4)
    gallery = Embeddings(gallery.vectors, gallery.labels % 2, gallery.classes)
    distances = class_distances(gallery.vectors, gallery.vectors, gallery.labels)
    assert set(distances.label.tolist()) == {0, 1}
    np.testing.assert_array_equal(distances.without(2), distances.nearest)
