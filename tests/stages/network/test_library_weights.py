"""Weights that timm and torchvision saved give the libraries' own features, at any size."""

from pathlib import Path

import pytest
import timm
import torch
from library_networks import library_settings
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings

from pipeline.weights import load_weights
from stages.errors import CheckpointError
from stages.network.embedding_net import EmbeddingNet

slow = pytest.mark.slow


def save_random_weights(network: nn.Module, path: Path) -> None:
    """Save a network with weights, all of them random, that differ from the initial ones."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    (save_file if path.suffix == ".safetensors" else torch.save)(tensors, path)


def features(name: str, side: int, path: Path, pixels: Tensor) -> Tensor:
    """Return the features of pixels in [0, 1] that a trunk with the weights of a file computes."""
    weights = load_weights(library_settings(name, weights=str(path)))
    zeros, ones = torch.zeros(3), torch.ones(3)
    network = EmbeddingNet(3, side, 8, name=name, mean=zeros, std=ones, pretrained=True).eval()
    network.load_trunk(weights.tensors, where=path.name)
    assert network.trunk.side == side
    with torch.no_grad():
        return network.features(pixels * 255)


@pytest.mark.parametrize(
    ("name", "sides", "ending"),
    [
        ("test_vit", (160, 64), ".safetensors"),  # class token
        ("test_vit3", (160, 48), ".pth"),  # attention pooling, as SigLIP
        ("test_convnext", (160, 64), ".pth"),
        ("test_efficientnet", (160, 64), ".safetensors"),
        ("test_resnet", (160, 64), ".safetensors"),
        pytest.param("test_maxvit", (160, 96), ".safetensors", marks=slow),
        ("mobilenetv3_small_050", (64,), ".pth"),
        pytest.param("eva02_tiny_patch14_224", (224, 56), ".safetensors", marks=slow),
        pytest.param("vit_tiny_patch16_dinov3_qkvb", (256, 64), ".safetensors", marks=slow),
        pytest.param("levit_128s", (224,), ".safetensors", marks=slow),  # BatchNorm in its head
        pytest.param("vit_small_patch14_dinov2", (98,), ".safetensors", marks=slow),
        pytest.param("swin_tiny_patch4_window7_224", (64,), ".safetensors", marks=slow),
    ],
)
# timm warns of its own calls when it resamples windows.
@pytest.mark.filterwarnings("ignore::UserWarning:timm")
def test_features_equal_timms(name, sides, ending, tmp_path):
    path = tmp_path / f"w{ending}"
    save_random_weights(timm.create_model(name, num_classes=7), path)
    for side in sides:
        fixed = timm.get_pretrained_cfg(name).fixed_input_size
        reference = timm.create_model(
            name,
            pretrained=True,
            num_classes=0,
            pretrained_cfg_overlay={"file": str(path), "num_classes": 7},
            **({"img_size": side} if fixed else {}),
        ).eval()
        pixels = torch.rand(2, 3, side, side)
        with torch.no_grad():
            expected = reference(pixels)
        found = features(f"timm:{name}", side, path, pixels)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert float(expected.std()) > 1e-3
        with torch.no_grad():
            pooled = reference.forward_head(reference.forward_features(pixels), pre_logits=True)
        torch.testing.assert_close(found, pooled, atol=1e-5, rtol=1e-5)


@slow
def test_features_equal_torchvisions_transformer(tmp_path):
    path = tmp_path / "w.pth"
    network = models.vit_b_32(weights=None)
    save_random_weights(network, path)
    state = interpolate_embeddings(64, 32, torch.load(path, weights_only=True))
    reference = models.vit_b_32(weights=None, image_size=64).eval()
    reference.load_state_dict(state)
    reference.heads = nn.Identity()
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = reference(pixels)
    found = features("torchvision:vit_b_32", 64, path, pixels)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def openai_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename timm's tensors of a CLIP image tower as OpenCLIP does, next to some of the text."""
    renamed = {f"visual.trunk.{name}": value for name, value in tensors.items()}
    return {**renamed, "logit_scale": torch.ones(()), "token_embedding.weight": torch.ones(3, 4)}


def dinov2_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the tensor that original files of DINOv2 have for masked patches."""
    return {**tensors, "mask_token": torch.zeros(1, 64)}


@pytest.mark.parametrize("rename", [openai_names, dinov2_names])
@pytest.mark.parametrize("side", [160, 64])
def test_original_formats_are_converted(rename, side, tmp_path):
    save_random_weights(timm.create_model("test_vit", num_classes=0), tmp_path / "w.pth")
    tensors = torch.load(tmp_path / "w.pth", weights_only=True)
    torch.save({"state_dict": rename(tensors), "epoch": 3}, tmp_path / "original.pth")
    pixels = torch.rand(2, 3, side, side)
    expected = features("timm:test_vit", side, tmp_path / "w.pth", pixels)
    found = features("timm:test_vit", side, tmp_path / "original.pth", pixels)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"blocks.1.norm1.weight": None}, "missing blocks.1.norm1.weight"),
        ({"extra.bias": torch.zeros(1)}, "unknown extra.bias"),
        ({"pos_embed": torch.zeros(1, 101, 32)}, r"wrong shape: pos_embed"),
        ({"patch_embed.proj.weight": torch.zeros(64, 3, 32, 32)}, "wrong shape: .*patch_embed"),
    ],
)
@pytest.mark.parametrize("side", [160, 64])
def test_incomplete_weights_raise_at_every_size(changes, problem, side):
    tensors = {**timm.create_model("test_vit", num_classes=0).state_dict(), **changes}
    given = {name: value for name, value in tensors.items() if value is not None}
    network = EmbeddingNet(3, side, 8, name="timm:test_vit")
    with pytest.raises(CheckpointError, match=f"^w.pth: .*timm:test_vit .*{problem}"):
        network.load_trunk(given, where="w.pth")
