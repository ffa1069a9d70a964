"""Library networks as trunks: building, strict loading, freezing and tuning."""

import sys
from pathlib import Path

import pytest
import torch
from factories import make_dataset, make_record
from library_networks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SMALL_NETWORK,
    library_settings,
    make_photos,
    save_small_weights,
    scale_for_imagenet,
    torchvision_network,
)
from torch import nn

from pipeline.checkpoint import load_embedding, save_embedding
from pipeline.weights import load_weights
from stages.embedding.train import train_embedding
from stages.errors import CheckpointError, SettingsError
from stages.network.digest import state_digest
from stages.network.embedding_net import EmbeddingNet
from stages.network.inference import embed_split
from stages.network.initialization import new_network
from stages.network.pretrained import trunk_blocks

CPU = torch.device("cpu")
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory) -> Path:
    return save_small_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def photos():
    return make_photos()


@pytest.mark.parametrize(
    "name",
    [
        "torchvision:resnet18",
        "torchvision:mobilenet_v3_large",
        pytest.param("torchvision:resnet50", marks=slow),
        pytest.param("torchvision:efficientnet_b0", marks=slow),
        pytest.param("torchvision:convnext_tiny", marks=slow),
        pytest.param("torchvision:inception_v3", marks=slow),
        pytest.param("torchvision:squeezenet1_1", marks=slow),
        "efficientnet-lite0",
        "timm:resnet10t",
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_network_trains_and_is_rebuilt_from_its_checkpoint(name, channels, tmp_path):
    data = make_dataset(("a", "b"), train=4, size=32, channels=channels)
    trained = train_embedding(
        data.train, data.validation, library_settings(name), device=CPU
    ).network
    assert trained.trunk.state_dict().keys()
    for parameter in trained.trunk.parameters():
        assert 1000 not in parameter.shape  # no ImageNet classifier
    vectors = embed_split(trained, data.test, device=CPU).vectors
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    save_embedding(tmp_path / "e", trained, make_record("embedding", trained))
    rebuilt = load_embedding(tmp_path / "e").network
    torch.testing.assert_close(
        embed_split(rebuilt, data.test, device=CPU).vectors, vectors, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenet_v3_small",
        "shufflenet_v2_x0_5",
        "densenet121",
        "squeezenet1_1",
        "mnasnet0_5",
    ],
)
def test_features_equal_input_of_last_layer(name):
    reference = torchvision_network(name)
    layers = [m for m in reference.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    last_inputs = []
    layers[-1].register_forward_hook(lambda module, inputs, output: last_inputs.append(inputs[0]))
    network = EmbeddingNet(
        3, 64, 8, name=f"torchvision:{name}", mean=IMAGENET_MEAN, std=IMAGENET_STD
    ).eval()
    network.load_trunk(reference.state_dict(), where="reference")
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        reference(scale_for_imagenet(images))
        expected = last_inputs[0]
        if expected.ndim == 4:  # squeezenet: a convolution, with ReLU and pooling behind it
            expected = expected.relu().mean((2, 3))
        torch.testing.assert_close(network.features(images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"features.0.0.weight": None}, "missing features.0.0.weight"),
        ({"extra.bias": torch.zeros(1)}, "unknown extra.bias"),
        ({"features.0.1.bias": torch.zeros(17)}, r"features.0.1.bias \(17,\).*\(16,\)"),
        (dict.fromkeys(f"features.{i}.block.0.0.weight" for i in (1, 2, 3, 4)), "and 1 more"),
    ],
)
def test_loading_weights_of_another_network_raises(small_weights, changes, problem):
    tensors = {**torch.load(small_weights, weights_only=True), **changes}
    given = {name: value for name, value in tensors.items() if value is not None}
    network = EmbeddingNet(3, 32, 8, name=SMALL_NETWORK)
    with pytest.raises(CheckpointError, match=f"^w.pth: .*{SMALL_NETWORK}.* 32 .*{problem}"):
        network.load_trunk(given, where="w.pth")


def test_loading_ignores_classifier_and_batchnorm_counters(small_weights):
    tensors = torch.load(small_weights, weights_only=True)
    five_classes = {
        "classifier.3.weight": torch.zeros(5, 1024),
        "classifier.3.bias": torch.zeros(5),
    }
    given = {
        name: value
        for name, value in {**tensors, **five_classes}.items()
        if not name.endswith("num_batches_tracked")
    }
    network = EmbeddingNet(3, 32, 8, name=SMALL_NETWORK)
    network.load_trunk(given, where="w.pth")
    torch.testing.assert_close(
        network.trunk.body.features[0][0].weight, tensors["features.0.0.weight"]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "resnet18"}, r"^network resnet18: .*torchvision:NAME"),
        ({"network": "torchvision:"}, "torchvision:NAME"),
        ({"network": "vit_base_patch14_dinov2"}, "timm:vit_base_patch14_dinov2"),
        ({"trunk": "last-0"}, "^trunk last-0: "),
        ({"trunk": "first-2"}, "last-N such as last-2"),
        ({"network": "conv", "weights": "default"}, "^weights default: .*conv.*"),
    ],
)
def test_invalid_network_settings_raise(changes, message):
    with pytest.raises(SettingsError, match=message):
        library_settings(**changes)


@pytest.mark.parametrize(
    ("name", "similar"), [("torchvision:resnet19", "resnet1"), ("timm:resnet1", "resnet1")]
)
def test_unknown_network_raises_and_similar_names_are_listed(name, similar):
    with pytest.raises(SettingsError, match=f"^network {name}: .*such as .*{similar}"):
        EmbeddingNet(3, 32, 8, name=name)


def test_missing_extra_raises(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SettingsError, match="pip install timm"):
        EmbeddingNet(3, 32, 8, name="efficientnet-lite0")


def test_training_on_pixels_leaves_frozen_trunk_unchanged(photos, small_weights):
    settings = library_settings(weights=str(small_weights), trunk="frozen", epochs=2)
    network = new_network(photos.train, settings, load_weights(settings))
    before = state_digest(network.trunk.state_dict())
    trained = train_embedding(photos.train, None, settings, device=CPU, network=network).network
    assert state_digest(trained.trunk.state_dict()) == before


def test_only_last_blocks_are_trained(photos, small_weights):
    settings = library_settings(weights=str(small_weights), trunk="last-2", epochs=2)
    network = new_network(photos.train, settings, load_weights(settings))
    before = {name: value.clone() for name, value in network.trunk.state_dict().items()}
    last_blocks = trunk_blocks(network.trunk)[-2:]
    assert [type(block).__name__ for block in last_blocks] == ["Conv2dNormActivation", "Linear"]
    trained = train_embedding(
        photos.train, photos.validation, settings, device=CPU, network=network
    ).network
    after = trained.trunk.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == {
        "body.features.12.0.weight",
        "body.features.12.1.weight",
        "body.features.12.1.bias",
        "body.classifier.0.weight",
        "body.classifier.0.bias",
    }


@pytest.mark.parametrize("pretrained", [True, False])
def test_batchnorm_statistics_are_frozen_if_pretrained(photos, small_weights, pretrained):
    settings = library_settings(weights=str(small_weights) if pretrained else "none")
    network = new_network(photos.train, settings, load_weights(settings))
    convolution, norm, _ = network.trunk.body.features[0]
    mean_before, weight_before = norm.running_mean.clone(), convolution.weight.clone()
    network = train_embedding(photos.train, None, settings, device=CPU, network=network).network
    convolution, norm, _ = network.trunk.body.features[0]
    assert torch.equal(norm.running_mean, mean_before) == pretrained
    assert not torch.equal(convolution.weight, weight_before)
    rates = [group["lr"] for group in network.parameter_groups(1.0)]
    assert rates == ([1.0, 0.1] if pretrained else [1.0])
