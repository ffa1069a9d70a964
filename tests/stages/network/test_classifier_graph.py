"""A classifier as one module: what the separate functions compute."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import add_new_classes, make_classifier, random_embeddings
from torch import nn

from pipeline.onnx_parity import expected_outputs
from stages.evaluation.knn import knn
from stages.evaluation.typicality import classifier_typicality, typicality
from stages.network.classifier_graph import OUTPUTS, AnySizeGraph, ClassifierGraph
from stages.network.square_graph import SquareGraph
from stages.records import Embeddings


class Lookup(nn.Module):
    """A network that returns the vector with the number in the first pixel."""

    def __init__(self, vectors: torch.Tensor):
        super().__init__()
        self.vectors = vectors

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.vectors[images[:, 0, 0, 0].long()]


def apply(classifier, images):
    with torch.no_grad():
        outputs = ClassifierGraph(classifier)(images)
    return {name: value.numpy() for name, value in zip(OUTPUTS, outputs, strict=True)}


@pytest.fixture
def images():
    return torch.randint(256, (9, 1, 8, 8), generator=torch.Generator().manual_seed(1)).byte()


@pytest.mark.parametrize("validation", [True, False])
def test_outputs_equal_the_separate_functions(images, validation):
    classifier = make_classifier(
        random_embeddings(40, 5),
        validation=random_embeddings(30, 5, seed=2) if validation else None,
        temperature=0.3,
    )
    outputs, expected = apply(classifier, images), expected_outputs(images.numpy(), classifier)
    for name in ("vector", "nearest_distance"):
        np.testing.assert_allclose(outputs[name], expected[name], atol=1e-6)
        assert outputs[name].dtype == np.float32
    np.testing.assert_allclose(
        np.exp(outputs["log_probabilities"]), expected["probability"], atol=1e-6
    )
    calibration = classifier.validation_distances.numpy()
    shares = typicality(outputs["nearest_distance"], calibration)
    np.testing.assert_allclose(outputs["typicality"], shares, rtol=1e-6)
    assert np.isnan(shares).all() == (not validation)


@pytest.mark.parametrize("count", [0, 1, 25])
@pytest.mark.parametrize("validation", [True, False])
def test_images_near_new_classes_are_compared_with_enrolled_ones(count, validation):
    queries = random_embeddings(50, 5, seed=3)
    classifier = make_classifier(
        random_embeddings(60, 5, noise=0.4),
        validation=random_embeddings(30, 5, seed=2) if validation else None,
    )
    enrolled = 0.5 * torch.rand(count, generator=torch.Generator().manual_seed(1))
    changed = add_new_classes(classifier, (1, 3), enrolled)
    changed = replace(changed, network=Lookup(queries.vectors))
    images = torch.zeros(50, 1, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(50)
    gallery = classifier.gallery
    nearest = knn(queries.vectors, gallery.vectors, gallery.labels, k=1)
    expected = classifier_typicality(nearest.distance, nearest.nearest, changed)
    np.testing.assert_allclose(apply(changed, images)["typicality"], expected, rtol=1e-6)
    if validation:
        ungrouped = classifier_typicality(nearest.distance, nearest.nearest, classifier)
        assert (abs(expected - ungrouped) > 0.05).any()


def test_small_distances_are_exact():
    """A thousand gallery vectors nearly tie: float32 products cannot tell them apart."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.nn.functional.normalize(torch.ones(1, 16), dim=1)
    offsets = 1e-3 * torch.randn(1000, 16, generator=generator)
    gallery = torch.nn.functional.normalize(centre + offsets, dim=1)
    queries = torch.nn.functional.normalize(centre + offsets[:50].roll(1, 0) * 0.1, dim=1)
    queries[0] = gallery[7]
    classifier = make_classifier(Embeddings(gallery, torch.zeros(1000).long(), ("a",)))
    classifier = replace(classifier, network=Lookup(queries))
    images = torch.zeros(50, 1, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(50)
    outputs = apply(classifier, images)
    differences = queries.double()[:, None] - gallery.double()[None]
    nearest = differences.norm(dim=2).amin(dim=1).numpy()
    assert outputs["nearest_distance"][0] == 0
    np.testing.assert_allclose(outputs["nearest_distance"], nearest, atol=2e-8)
    float32 = (2 - 2 * queries @ gallery.T).clamp(min=0).amin(dim=1).sqrt().numpy()
    assert np.abs(float32 - nearest).max() > 1e-5  # the test can fail
    assert (outputs["log_probabilities"] == 0).all()  # of a single class


def test_an_image_of_any_size_is_classified_as_its_square():
    classifier = make_classifier(random_embeddings(40, 5))
    square = SquareGraph(8, 1, "pad-repeat")
    image = torch.randint(256, (13, 21, 3), generator=torch.Generator().manual_seed(1)).byte()
    with torch.no_grad():
        vectors = AnySizeGraph(square, ClassifierGraph(classifier))(image)[0]
        assert torch.equal(vectors, classifier.network.eval()(square(image)))
