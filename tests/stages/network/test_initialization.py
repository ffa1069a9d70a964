"""Initial networks and pixel statistics."""

import pytest
import torch
from library_networks import library_settings, make_photos, save_small_weights

from pipeline.weights import load_weights
from stages.embedding.train import train_embedding
from stages.network.digest import state_digest
from stages.network.initialization import (
    fit_projection,
    new_network,
    pixel_statistics,
    with_new_projection,
)

CPU = torch.device("cpu")


def test_pixel_statistics_equal_numpys(digit_split):
    split = digit_split(slice(0, 200))
    mean, std = pixel_statistics(split)
    pixels = split.take(slice(None)).double().numpy() / 255
    assert mean.item() == pytest.approx(pixels.mean(), abs=1e-6)
    assert std.item() == pytest.approx(pixels.std(), abs=1e-6)


def test_new_projection_restores_initial_network_of_frozen_trunk(tmp_path):
    photos = make_photos()
    settings = library_settings(weights=str(save_small_weights(tmp_path)), trunk="frozen")
    initial = new_network(photos.train, settings, load_weights(settings))
    fit_projection(initial, photos.train, device=CPU)
    digest = state_digest(initial.state_dict())
    trained = train_embedding(photos.train, None, settings, device=CPU, network=initial).network
    assert state_digest(trained.state_dict()) != digest
    restored = with_new_projection(trained, photos.train, settings.seed, device=CPU)
    assert state_digest(restored.state_dict()) == digest
