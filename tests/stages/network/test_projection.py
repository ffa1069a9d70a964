"""The projection of a frozen trunk's features."""

import math

import numpy as np
import pytest
import torch
from library_networks import SMALL_NETWORK
from sklearn.decomposition import PCA

from stages.network.embedding_net import EmbeddingNet, build_network, unit_rows
from stages.network.pretrained import projection_head
from stages.network.projection import ResidualProjection


def random_features(count: int, features: int) -> torch.Tensor:
    """Return features of different means and deviations, shape (count, features)."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(count, features, generator=generator)
    return values * torch.linspace(0.5, 20, features) + torch.linspace(-100, 100, features)


def test_standardised_features_have_mean_0_and_mean_variance_1():
    features = random_features(50, 12)
    projection = ResidualProjection(12, 4)
    projection.fit(features)
    standardised = projection.standardise(features)
    torch.testing.assert_close(standardised.mean(0), torch.zeros(12), atol=1e-5, rtol=0)
    assert standardised.square().mean().item() == pytest.approx(1, abs=1e-5)


def test_first_outputs_are_the_principal_components():
    features = random_features(50, 12)
    projection = ResidualProjection(12, 4).eval()
    projection.fit(features)
    expected = PCA(4, svd_solver="full").fit_transform(features.double().numpy())
    outputs = projection(features).detach().double().numpy()
    signs = np.sign((outputs * expected).sum(0))
    assert outputs * signs * projection.scale.item() == pytest.approx(expected, abs=1e-3)


def test_features_that_are_not_finite_do_not_stop_the_fit():
    projection = ResidualProjection(6, 4)
    projection.fit(torch.tensor([[math.nan] * 6, [1.0] * 6]))
    assert projection.linear.weight.isfinite().all()


def test_fit_does_not_depend_on_earlier_fits():
    torch.manual_seed(0)
    projection = ResidualProjection(12, 4)
    projection.fit(random_features(30, 12))
    expected = {name: value.clone() for name, value in projection.state_dict().items()}
    projection.fit(random_features(20, 12) ** 2)
    projection.fit(random_features(30, 12))
    for name, value in projection.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    "features",
    [torch.ones(1, 6), torch.ones(5, 6), torch.zeros(5, 6), torch.rand(3, 6), torch.eye(2, 6)],
    ids=["one image", "equal images", "zeros", "fewer images than dimensions", "two images"],
)
def test_few_or_equal_images_give_finite_vectors(features):
    projection = ResidualProjection(6, 4)
    projection.fit(features)
    vectors = unit_rows(projection.eval()(features))
    vectors.sum().backward()
    assert vectors.isfinite().all()
    assert projection.linear.weight.grad.isfinite().all()


def test_network_of_earlier_version_gives_the_same_vectors():
    """A config without ``projection`` is that of the layers of earlier versions."""
    config = {
        **{"name": SMALL_NETWORK, "channels": 3, "size": 32, "dim": 8},
        **{"trunk": "frozen", "pretrained": True},
    }
    network = build_network(config).eval()
    earlier = projection_head(network.project[1].in_features, 8).eval()
    earlier.load_state_dict(network.project.state_dict())
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    expected = unit_rows(earlier(network.features(images)))
    assert torch.equal(network(images), expected)
    assert "projection" not in network.config


def test_config_rebuilds_the_residual_projection():
    network = EmbeddingNet(3, 32, 8, name=SMALL_NETWORK, trunk="frozen", projection="residual")
    network.project.fit(torch.rand(9, network.project.linear.in_features))
    rebuilt = build_network(network.config)
    rebuilt.load_state_dict(network.state_dict())
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(rebuilt.eval()(images), network.eval()(images))
