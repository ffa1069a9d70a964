"""The comparison with onnxruntime reports differences."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import add_new_classes, make_classifier, random_embeddings

from pipeline.onnx_parity import Parity, compare_batches, compare_photos, expected_outputs
from stages.errors import PipelineError
from stages.network.classifier_graph import OUTPUTS, ClassifierGraph
from stages.network.square_graph import SquareGraph
from stages.records import Embeddings


@pytest.fixture
def classifier():
    return make_classifier(
        random_embeddings(40, 5), validation=random_embeddings(20, 5, seed=2), temperature=0.5
    )


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)


def runner(classifier, change=lambda outputs: None, sizes=None):
    """Return a function that runs the classifier in torch, with changed outputs."""

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        if sizes is not None:
            sizes.append(len(batch))
        with torch.no_grad():
            outputs = ClassifierGraph(classifier)(torch.from_numpy(batch))
        named = {name: out.numpy().copy() for name, out in zip(OUTPUTS, outputs, strict=True)}
        change(named)
        return named

    return run


def add(name: str, value: float):
    def change(outputs):
        outputs[name][-1] += value

    return change


def test_equal_outputs_pass_at_all_batch_sizes(classifier, images):
    sizes: list[int] = []
    parity = compare_batches(runner(classifier, sizes=sizes), classifier, iter([images, images]))
    parity.check()
    assert parity.images == 10 and "equal labels" in parity.describe()
    assert sizes == [1] * 5 + [3] * 1 + [64] + [64]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vector", 2e-5),
        ("log_probabilities", 0.01),
        ("nearest_distance", 2e-5),
        ("typicality", 0.06),
        ("typicality", -1.0),
        *((name, np.nan) for name in OUTPUTS),
    ],
)
def test_a_difference_is_an_error(classifier, images, name, value):
    run = runner(classifier, add(name, value))
    with pytest.raises(PipelineError, match="disagree"):
        compare_batches(run, classifier, iter([images])).check()


@pytest.mark.parametrize("name", ["vector", "log_probabilities", "nearest_distance"])
def test_rounding_is_accepted(classifier, images, name):
    compare_batches(runner(classifier, add(name, 2e-6)), classifier, iter([images])).check()


def test_another_label_is_an_error():
    probability = np.array([[0.5, 0.3, 0.2]])
    expected = {
        "vector": np.zeros((1, 2)),
        "probability": probability,
        "nearest_distance": np.zeros(1),
        "lowest": np.full(1, np.nan),
        "highest": np.full(1, np.nan),
    }
    outputs = expected | {
        "log_probabilities": np.log(probability[:, ::-1]),
        "typicality": np.full(1, np.nan),
    }
    parity = Parity()
    parity.add(outputs, expected)
    with pytest.raises(PipelineError, match="1 labels differ"):
        parity.check()
    tied = expected | {"probability": np.array([[0.5, 0.5 - 1e-7, 1e-7]])}
    outputs["log_probabilities"] = np.log(np.array([[0.5 - 1e-7, 0.5, 1e-7]]))
    parity = Parity()
    parity.add(outputs, tied)
    parity.check()


def with_calibration(vectors, labels, new_classes, validation, enrolled):
    """Return a classifier of two classes with the given gallery and calibration distances."""
    gallery = Embeddings(vectors, torch.tensor(labels), ("a", "b"))
    classifier = add_new_classes(make_classifier(gallery), new_classes, torch.tensor(enrolled))
    return replace(classifier, validation_distances=torch.tensor(validation))


def accepts(classifier, images, value):
    """Return whether the typicality of all images may have this value."""

    def change(outputs):
        outputs["typicality"][:] = value

    parity = compare_batches(runner(classifier, change), classifier, iter([images]))
    return parity.differences["typicality"] < 1e-6


def test_typicality_may_be_one_rank_off_at_a_tie(classifier, images):
    """The image is as far as a calibration image, up to rounding."""
    image = images[:1]
    distance = float(expected_outputs(image, classifier)["nearest_distance"][0])
    tied = replace(
        classifier, validation_distances=torch.tensor([0.01, distance + 1e-6, distance + 0.1])
    )
    assert accepts(tied, image, 0.75) and accepts(tied, image, 0.5)
    assert not accepts(tied, image, 0.25) and not accepts(tied, image, 1.0)


def test_the_group_is_that_of_the_nearest_image(images):
    """Unless an old and a new class are equally near, up to rounding."""
    image = images[:1]
    vector = torch.from_numpy(
        expected_outputs(image, make_classifier(random_embeddings(9, 2)))["vector"]
    )
    other = -vector
    near = torch.nn.functional.normalize(vector + 1e-6 * torch.eye(8)[:1])
    validation, enrolled = [1.0] * 4, [0.0] * 3  # typicality 1 if old, about 1/4 if new
    for vectors, labels, values in (
        ((vector, other), (0, 1), (True, False)),
        ((other, vector), (0, 1), (False, True)),
        ((vector, near), (0, 1), (True, True)),
    ):
        classifier = with_calibration(torch.cat(vectors), labels, (1,), validation, enrolled)
        # The distance to `near` is below the tolerance, so all ranks of new classes are possible.
        assert accepts(classifier, image, 1.0) or not values[0]
        assert accepts(classifier, image, 0.25) == values[1]


def test_an_enrolled_classifier_passes(classifier, images):
    changed = add_new_classes(classifier, (1, 3), torch.rand(25) / 2)
    compare_batches(runner(changed), changed, iter([images])).check()
    with pytest.raises(PipelineError, match="typicality differs"):
        forgetful = replace(changed, record={})  # compares all images with validation images
        blocks = iter([np.concatenate([images] * 4)])
        near_new = add_new_classes(classifier, range(5), torch.rand(25) / 2)
        compare_batches(runner(forgetful), near_new, blocks).check()


def photo_runner(classifier, square, change=lambda outputs: None):
    """Return a function that runs a classifier of images of any size."""

    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        return runner(classifier, change)(square(torch.from_numpy(image)).numpy())

    return run


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_resized_pixels_may_differ_by_one_level(classifier, levels, monkeypatch):
    """The reported differences are those from the results for Pillow's pixels."""
    monkeypatch.setattr("pipeline.onnx_parity.PIXEL_MARGIN", 1.0)
    square, pixels = SquareGraph(8, 1, "stretch"), np.full((9, 7, 3), 100, np.uint8)
    run = photo_runner(classifier, square)
    fitted = np.full((1, 8, 8), 100, np.uint8)
    fitted[:, :4] += levels
    if levels == 2:
        with pytest.raises(PipelineError, match="2 grey levels"):
            compare_photos(run, classifier, square, [(pixels, fitted)])
        return
    parity = compare_photos(run, classifier, square, [(pixels, fitted)])
    assert (parity.images, parity.levels) == (1, levels)
    expected = expected_outputs(fitted[None], classifier)
    vector = np.abs(run(pixels)["vector"] - expected["vector"]).max()
    assert parity.differences["vector"] == pytest.approx(vector)
    assert (vector > 1e-5) == (levels == 1)


@pytest.mark.parametrize(("margin", "accepted"), [(0.02, True), (0.001, False)])
def test_other_pixels_may_change_labels_of_almost_equal_probability(
    classifier, margin, accepted, monkeypatch
):
    monkeypatch.setattr("pipeline.onnx_parity.PIXEL_MARGIN", margin)
    results = [{"probability": np.array([[0.5, 0.5]])}, {"probability": np.array([[0.495, 0.505]])}]
    for result in results:
        result |= {"vector": np.zeros((1, 2)), "nearest_distance": np.zeros(1)}
        result |= {"lowest": np.ones(1), "highest": np.ones(1)}
    outputs = results[0] | {
        "log_probabilities": np.log(results[0]["probability"]),
        "typicality": np.ones(1),
    }
    remaining = iter(results)
    monkeypatch.setattr("pipeline.onnx_parity.expected_outputs", lambda *_: next(remaining))
    square, pixels = SquareGraph(8, 1, "stretch"), np.full((8, 8, 3), 100, np.uint8)
    photos = [(pixels, np.full((1, 8, 8), 101, np.uint8))]
    if accepted:
        parity = compare_photos(lambda _: outputs, classifier, square, photos)
        assert parity.describe().startswith("1 labels differ, of almost equally probable")
    else:
        with pytest.raises(PipelineError, match="1 labels differ"):
            compare_photos(lambda _: outputs, classifier, square, photos)


def test_another_translation_is_an_error_with_equal_pixels(classifier):
    square, pixels = SquareGraph(8, 1, "stretch"), np.full((8, 8, 3), 100, np.uint8)
    run = photo_runner(classifier, square, add("vector", 2e-5))
    with pytest.raises(PipelineError, match="vector differs by"):
        compare_photos(run, classifier, square, [(pixels, np.full((1, 8, 8), 100, np.uint8))])
