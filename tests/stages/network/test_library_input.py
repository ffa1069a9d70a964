"""Image sides of library networks, compared with networks that are built with weights."""

import re

import pytest
import timm
import torch

from stages.errors import SettingsError
from stages.network.embedding_net import EmbeddingNet, build_network
from stages.network.library_input import enlargement, library_input


def runs(name: str, side: int) -> bool:
    """Return True if timm's network runs on images of a side without leaving out pixels."""
    network = timm.create_model(name, num_classes=0, img_size=side)
    patch = network.patch_embed.patch_size[0]
    return side % patch == 0 and network(torch.zeros(1, 3, side, side)).ndim == 2


@pytest.mark.parametrize("size", [33, 64, 100])
def test_side_is_the_smallest_possible_one(size):
    expected = next(side for side in range(size, 200) if runs("test_vit3", side))
    assert library_input("timm:test_vit3", size).side == expected


@pytest.mark.parametrize(
    ("name", "size", "side", "features"),
    [
        ("timm:vit_small_patch14_dinov2", 98, 98, 384),
        ("timm:vit_small_patch14_dinov2", 100, 112, 384),
        ("timm:vit_small_patch14_dinov2", 518, 518, 384),
        ("timm:vit_base_patch16_clip_224.openai", 64, 64, 768),
        ("timm:vit_base_patch16_siglip_224", 64, 64, 768),
        ("timm:eva02_tiny_patch14_224", 64, 70, 192),
        ("timm:swin_tiny_patch4_window7_224", 64, 64, 768),
        ("torchvision:vit_b_32", 70, 96, 768),
        ("torchvision:regnet_y_400mf", 40, 40, 440),  # cannot be built without memory
        ("torchvision:inception_v3", 64, 96, 2048),
        ("efficientnet-lite2", 8, 32, 1280),
    ],
)
def test_sides_and_features_of_networks(name, size, side, features):
    assert library_input(name, size)[:2] == (side, features)


@pytest.mark.slow
def test_huge_network_takes_no_memory():
    assert library_input("timm:vit_7b_patch16_dinov3", 64).parameters > 6e9


def test_impossible_size_raises_with_a_possible_one():
    with pytest.raises(SettingsError, match=r"^network timm:crossvit_9_240: .*518.* 240"):
        library_input("timm:crossvit_9_240", 518)


@pytest.mark.parametrize(
    ("name", "size", "note"),
    [
        ("timm:test_vit", 64, ""),
        ("timm:test_vit", 100, "timm:test_vit takes multiples of 16 pixels: .* from 100 to 112"),
        ("torchvision:inception_v3", 64, r".* does not run on 64 x 64 .* from 64 to 96"),
    ],
)
def test_enlargement_is_described(name, size, note):
    assert re.fullmatch(note, enlargement(name, size))


def test_random_weights_do_not_depend_on_earlier_networks():
    states = []
    for _ in range(2):  # the second time, the side is known
        torch.manual_seed(0)
        states.append(EmbeddingNet(3, 44, 8, name="timm:test_vit4").state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])


def test_checkpoint_without_a_side_is_built_as_before():
    """Earlier versions enlarged images to the size that a network of timm was designed for."""
    network = EmbeddingNet(3, 64, 8, name="timm:test_vit3")
    assert network.config["side"] == network.trunk.side == 64
    assert build_network(network.config).trunk.side == 64
    earlier = {key: value for key, value in network.config.items() if key != "side"}
    rebuilt = build_network(earlier)
    assert rebuilt.config == earlier
    assert rebuilt.trunk.side == 160
    assert rebuilt.trunk.body.pos_embed.shape == (1, 101, 96)


def test_side_is_part_of_the_digest_of_a_frozen_trunk():
    digests = set()
    for side in (64, 96):
        torch.manual_seed(0)
        network = EmbeddingNet(3, 64, 8, name="timm:test_resnet", trunk="frozen", side=side)
        digests.add(network.trunk_digest())
    assert len(digests) == 2
