"""The embedding network: shapes, unit rows, and what must not depend on the batch."""

import pytest
import torch
from torch import nn

from stages.network.digest import state_digest
from stages.network.embedding_net import EmbeddingNet, unit_rows
from stages.network.head import Head
from stages.network.inference import embed_images
from stages.network.initialization import pixel_statistics

CPU = torch.device("cpu")


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 33), (3, 64), (1, 100)])
def test_any_channel_count_and_size_gives_unit_rows(channels, size):
    network = EmbeddingNet(channels, size, 16)
    vectors = embed_images(
        network, [torch.randint(0, 256, (3, channels, size, size), dtype=torch.uint8)], device=CPU
    )
    assert vectors.shape == (3, 16) and vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))


def test_the_layers_are_those_of_the_mission():
    network = EmbeddingNet(1, 28, 128)
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.MaxPool2d, nn.Linear))]
    described = [
        (type(m).__name__, m.out_channels, m.kernel_size[0], m.stride[0])
        if isinstance(m, nn.Conv2d)
        else (type(m).__name__, m.kernel_size, m.stride)
        if isinstance(m, nn.MaxPool2d)
        else (type(m).__name__, m.in_features, m.out_features)
        for m in layers
    ]
    assert described == [
        ("Conv2d", 64, 7, 2),
        ("MaxPool2d", 3, 2),
        ("Conv2d", 64, 1, 1),
        ("Conv2d", 192, 3, 1),
        ("MaxPool2d", 3, 2),
        ("Linear", 192 * 4 * 4, 128),
    ]
    head = Head(128, 62)
    assert (head.dropout.p, head.linear.in_features, head.linear.out_features) == (0.5, 128, 62)
    torch.testing.assert_close(head(torch.randn(4, 128)).exp().sum(1), torch.ones(4))


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 33), (3, 64), (1, 100)])
def test_conv_deep_takes_any_image_with_the_same_few_weights(channels, size):
    network = EmbeddingNet(channels, size, 16, name="conv-deep")
    vectors = embed_images(
        network, [torch.randint(0, 256, (3, channels, size, size), dtype=torch.uint8)], device=CPU
    )
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert sum(weights.numel() for weights in network.parameters()) < 3e6


def test_above_64_pixels_the_last_layer_stays_small():
    assert (
        EmbeddingNet(3, 299, 128).project.in_features
        == EmbeddingNet(3, 64, 128).project.in_features
    )


def test_batch_size_changes_an_embedding_by_rounding_only():
    network = EmbeddingNet(1, 28, 32)
    images = torch.randint(0, 256, (10, 1, 28, 28), dtype=torch.uint8)
    whole = embed_images(network, [images], device=CPU)
    single = embed_images(network, images.split(1), device=CPU)
    torch.testing.assert_close(single, whole, rtol=0, atol=1e-6)


def test_embedding_leaves_the_network_as_it_was():
    network = EmbeddingNet(1, 28, 32).train()
    before = state_digest(network.state_dict())
    embed_images(network, [torch.randint(0, 256, (8, 1, 28, 28), dtype=torch.uint8)], device=CPU)
    assert network.training and state_digest(network.state_dict()) == before


def test_a_zero_row_becomes_a_unit_vector_without_gradient():
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    rows = unit_rows(features)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(2))
    rows[:, 0].sum().backward()
    assert not features.grad[0].any() and features.grad[1].any()


def test_pixel_statistics_equal_numpys(digit_split):
    split = digit_split(slice(0, 200))
    mean, std = pixel_statistics(split)
    pixels = split.take(slice(None)).double().numpy() / 255
    assert mean.item() == pytest.approx(pixels.mean(), abs=1e-6)
    assert std.item() == pytest.approx(pixels.std(), abs=1e-6)


def test_the_digest_sees_values_and_names_but_not_layout():
    weights = torch.randn(2, 3, 4, 4)
    base = state_digest({"a": weights, "b": torch.zeros(1)})
    assert (
        state_digest(
            {"b": torch.zeros(1), "a": weights.contiguous(memory_format=torch.channels_last)}
        )
        == base
    )
    assert state_digest({"c": weights, "b": torch.zeros(1)}) != base
    assert state_digest({"a": weights, "b": torch.full((1,), 1e-30)}) != base
    assert state_digest({"a": weights.view(6, 4, 4), "b": torch.zeros(1)}) != base
