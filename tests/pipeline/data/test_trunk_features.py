"""Cached trunk features give the same results as pixels and are computed once."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import make_dataset
from library_networks import (
    SMALL_NETWORK,
    library_settings,
    make_photos,
    save_small_weights,
)

from pipeline.data.dataset import Dataset
from pipeline.data.trunk_features import cache_trunk_features
from pipeline.weights import load_weights
from stages.classifier.frozen_embedding import embed_frozen
from stages.embedding.inputs import training_input
from stages.embedding.train import Step, train_embedding
from stages.network.digest import state_digest
from stages.network.embedding_net import EmbeddingNet
from stages.network.inference import embed_images, embed_split, has_cached_features
from stages.network.initialization import new_network

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos():
    return make_photos()


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    weights = save_small_weights(tmp_path_factory.mktemp("weights"))
    return library_settings(weights=str(weights), trunk="frozen", epochs=2)


@pytest.fixture
def network(photos, settings):
    return new_network(photos.train, settings, load_weights(settings))


def add_features(data: Dataset, network: EmbeddingNet, cache: Path) -> Dataset:
    return cache_trunk_features(
        data, network, cache=cache, device=CPU, show=lambda caption, total, items: items
    )


def assert_almost_equal(vectors: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=1e-5)


def test_training_on_features_trains_only_the_projection(photos, settings, network, tmp_path):
    trunk_before = state_digest(network.trunk.state_dict())
    projection_before = state_digest(network.project.state_dict())
    data = add_features(photos, network, tmp_path)
    assert has_cached_features(network, data.train)
    assert data.train.features.values.shape[:2] == (len(photos.origin.images), 2)
    trained = train_embedding(
        data.train, data.validation, settings, device=CPU, network=network
    ).network
    assert state_digest(trained.trunk.state_dict()) == trunk_before
    assert state_digest(trained.project.state_dict()) != projection_before


def test_resumed_run_equals_uninterrupted_run(photos, settings, network, tmp_path):
    data = add_features(photos, network, tmp_path)
    states = []

    def stop_in_second_epoch(step: Step) -> bool:
        if step.done == 3:  # of 4
            states.append(copy.deepcopy(step.state()))
        return step.done == 3

    def train(**options: Any) -> EmbeddingNet:
        initial = copy.deepcopy(network)
        arguments = data.train, data.validation, settings
        return train_embedding(*arguments, device=CPU, network=initial, **options).network

    whole = train()
    train(on_step=stop_in_second_epoch)
    resumed = train(state=states[0])
    assert state_digest(resumed.state_dict()) == state_digest(whole.state_dict())


def test_embeddings_from_features_equal_embeddings_from_pixels(photos, network, tmp_path):
    data = add_features(photos, network, tmp_path)
    for with_features, without in ((data.train, photos.train), (data.test, photos.test)):
        assert_almost_equal(
            embed_split(network, with_features, device=CPU).vectors,
            embed_images(network, without.blocks(7), device=CPU),
        )
    embeddings, _ = embed_frozen(network, data.train, data.validation, device=CPU)
    assert_almost_equal(
        embeddings.vectors, embed_images(network, photos.train.blocks(), device=CPU)
    )


def test_training_draws_plain_or_mirrored_view(photos, network, tmp_path):
    data = add_features(photos, network, tmp_path)
    batches = [
        training_input(network, data.train, torch.arange(4), slice(4), strength=1.0, device=CPU)
        for _ in range(8)
    ]
    mirrored = network.eval().features(photos.train.take(slice(4)).flip(-1)).detach()
    for row, value in enumerate(torch.cat(batches)):
        plain = data.train.features.values[data.train.rows[row % 4], 0]
        assert torch.allclose(value, plain) or torch.allclose(value, mirrored[row % 4], atol=1e-5)


def test_grey_images_have_one_view(tmp_path):
    grey = make_dataset(("6", "9"), train=4, size=32)
    network = EmbeddingNet(1, 32, 8, name=SMALL_NETWORK, trunk="frozen")
    data = add_features(grey, network, tmp_path)
    values = data.train.features.values
    assert values.shape[:2] == (len(grey.origin.images), 1)
    inputs = training_input(
        network, data.train, torch.arange(8), slice(8), strength=1.0, device=CPU
    )
    assert torch.equal(inputs, values[data.train.rows, 0])


def test_features_are_computed_once(photos, network, tmp_path, monkeypatch):
    data = add_features(photos, network, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(EmbeddingNet, "features", lambda *_: pytest.fail("computed again"))
    cached = add_features(photos, network, tmp_path)
    assert torch.equal(cached.test.features.values, data.test.features.values)


def test_features_of_another_trunk_are_not_used(photos, network, tmp_path):
    data = add_features(photos, network, tmp_path)
    other = EmbeddingNet(3, 32, 8, name=SMALL_NETWORK, trunk="frozen")
    assert not has_cached_features(other, data.train)
    expected = embed_images(other, photos.test.blocks(), device=CPU)
    assert torch.equal(embed_split(other, data.test, device=CPU).vectors, expected)


def test_damaged_file_is_replaced(photos, network, tmp_path):
    data = add_features(photos, network, tmp_path)
    path = next(tmp_path.iterdir())
    content = path.read_bytes()
    middle = len(content) // 2
    truncated = content[:500]
    flipped = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
    for damaged in (truncated, flipped):
        path.unlink()  # the mapped file must not change in place
        path.write_bytes(damaged)
        repaired = add_features(photos, network, tmp_path)
        assert torch.equal(repaired.test.features.values, data.test.features.values)
