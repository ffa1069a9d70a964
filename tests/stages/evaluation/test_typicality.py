"""Typicality is a conformal p-value."""

import numpy as np
import pytest
import torch
from factories import add_new_classes, make_classifier, random_embeddings

from stages.evaluation.knn import knn
from stages.evaluation.typicality import (
    classifier_typicality,
    smallest_typicality,
    typicality,
)
from stages.settings import REJECT


def count_as_far(distances, calibration):
    """Oracle: count the validation distances one by one."""
    values = []
    for distance in distances:
        as_far = sum(1 for other in calibration if other >= distance)
        values.append((1 + as_far) / (len(calibration) + 1))
    return values


@pytest.mark.parametrize("count", [1, 7, 50])
def test_equals_counting(count):
    # Rounded, so that distances are tied.
    generator = np.random.default_rng(count)
    calibration = generator.uniform(0, 2, count).round(1)
    distances = generator.uniform(0, 2, 40).round(1)
    assert typicality(distances, calibration).tolist() == count_as_far(distances, calibration)


def test_the_order_of_the_validation_images_does_not_matter():
    calibration = np.array([0.3, 0.1, 0.2])
    assert typicality(np.array([0.15]), calibration) == typicality(
        np.array([0.15]), calibration[::-1]
    )


def test_without_validation_images_it_is_undefined():
    assert np.isnan(typicality(np.array([0.1, 0.2]), np.empty(0))).all()
    assert smallest_typicality(0) == 1


def test_the_smallest_value_depends_on_the_number_of_validation_images():
    for count in (1, 19, 20, 100):
        farthest = typicality(np.array([2.0]), np.linspace(0, 1, count))
        assert farthest.tolist() == [smallest_typicality(count)]
    assert smallest_typicality(19) == REJECT > smallest_typicality(20)


@pytest.mark.parametrize("count", [20, 100, 1000])
def test_rejects_at_most_the_given_share_of_exchangeable_images(count):
    generator = np.random.default_rng(0)
    shares = []
    for _ in range(500):
        distances = generator.gamma(2, size=count + 200)
        shares.append((typicality(distances[count:], distances[:count]) < REJECT).mean())
    error = np.std(shares, ddof=1) / 500**0.5
    assert np.mean(shares) <= REJECT + 3 * error
    # Rejecting nothing would pass the test above.
    expected = np.ceil(REJECT * (count + 1) - 1) / (count + 1)
    assert abs(np.mean(shares) - expected) < 4 * error


@pytest.mark.parametrize("new_classes", [(), (4,), (1, 3), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("count", [0, 1, 25])
def test_images_are_compared_with_those_of_their_group(new_classes, count):
    classifier = make_classifier(
        random_embeddings(60, 5, noise=0.4), validation=random_embeddings(30, 5, seed=2)
    )
    generator = torch.Generator().manual_seed(count)
    enrolled = 0.5 * torch.rand(count, generator=generator)
    changed = add_new_classes(classifier, new_classes, enrolled)
    queries, gallery = random_embeddings(40, 5, seed=3), classifier.gallery
    nearest = knn(queries.vectors, gallery.vectors, gallery.labels, k=1)
    expected = []
    for distance, row in zip(nearest.distance, nearest.nearest, strict=True):
        is_new = int(gallery.labels[row]) in new_classes
        calibration = enrolled if is_new else classifier.validation_distances
        expected += count_as_far([distance], calibration.numpy())
    found = classifier_typicality(nearest.distance, nearest.nearest, changed)
    assert found.tolist() == expected
    before = classifier_typicality(nearest.distance, nearest.nearest, classifier)
    same = ~np.isin(gallery.labels.numpy()[nearest.nearest], new_classes)
    assert found[same].tolist() == before[same].tolist()
    if new_classes:
        assert found.tolist() != before.tolist()


def test_without_validation_images_enrolled_ones_do_not_help():
    classifier = make_classifier(random_embeddings(20, 2))
    changed = add_new_classes(classifier, (1,), torch.rand(30))
    rows = np.arange(20)
    assert np.isnan(classifier_typicality(np.full(20, 0.1), rows, changed)).all()
