"""The embedding network: layers, image sizes and unit rows."""

import pytest
import torch
from torch import Tensor, nn

from stages.errors import SettingsError
from stages.network.embedding_net import EmbeddingNet, unit_rows
from stages.network.inference import embed_images
from stages.network.pretrained import trunk_blocks

CHANNELS_AND_SIZES = [(1, 8), (1, 28), (3, 33), (3, 64), (1, 100)]


def embed_random_images(network: EmbeddingNet, channels: int, size: int) -> Tensor:
    images = torch.randint(0, 256, (3, channels, size, size), dtype=torch.uint8)
    return embed_images(network, [images], device=torch.device("cpu"))


@pytest.mark.parametrize(("channels", "size"), CHANNELS_AND_SIZES)
def test_conv_embeds_any_channel_count_and_size_as_unit_rows(channels, size):
    vectors = embed_random_images(EmbeddingNet(channels, size, 16), channels, size)
    assert vectors.shape == (3, 16)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize(("channels", "size"), CHANNELS_AND_SIZES)
def test_conv_deep_embeds_any_channel_count_and_size_with_few_weights(channels, size):
    network = EmbeddingNet(channels, size, 16, name="conv-deep")
    vectors = embed_random_images(network, channels, size)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert sum(parameter.numel() for parameter in network.parameters()) < 3e6


@pytest.mark.parametrize("name", ["conv", "conv-deep", "torchvision:mobilenet_v3_small"])
def test_more_trained_blocks_than_the_trunk_has_is_an_error(name):
    count = len(trunk_blocks(EmbeddingNet(3, 32, 8, name=name).trunk))
    assert EmbeddingNet(3, 32, 8, name=name, trunk=f"last-{count}").trunk is not None
    with pytest.raises(SettingsError, match=f"trunk last-{count + 1}: .*{count} blocks") as error:
        EmbeddingNet(3, 32, 8, name=name, trunk=f"last-{count + 1}")
    assert error.value.field == "trunk"


def describe(layer: nn.Module) -> tuple[str, int, int] | tuple[str, int, int, int]:
    name = type(layer).__name__
    if isinstance(layer, nn.Conv2d):
        return name, layer.out_channels, layer.kernel_size[0], layer.stride[0]
    if isinstance(layer, nn.MaxPool2d):
        return name, layer.kernel_size, layer.stride
    return name, layer.in_features, layer.out_features


def test_conv_has_the_first_layers_of_facenet():
    layers = [
        layer
        for layer in EmbeddingNet(1, 28, 128).modules()
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.Linear))
    ]
    assert [describe(layer) for layer in layers] == [
        ("Conv2d", 64, 7, 2),
        ("MaxPool2d", 3, 2),
        ("Conv2d", 64, 1, 1),
        ("Conv2d", 192, 3, 1),
        ("MaxPool2d", 3, 2),
        ("Linear", 192 * 4 * 4, 128),
    ]


def test_projection_does_not_grow_above_64_pixels():
    large, medium = EmbeddingNet(3, 299, 128), EmbeddingNet(3, 64, 128)
    assert large.project.in_features == medium.project.in_features


def test_zero_row_becomes_unit_vector_without_gradient():
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    rows = unit_rows(features)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(2))
    rows[:, 0].sum().backward()
    assert not features.grad[0].any()
    assert features.grad[1].any()
