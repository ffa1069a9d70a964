"""`pipeline export` of all kinds of networks, and the preparation of images for them."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import QUIET
from onnx_files import run, write_classifier
from PIL import Image

from pipeline.commands.export import export, sample_photos
from pipeline.data.decode import decode_files
from stages.network.embedding_net import EmbeddingNet
from stages.network.projection import RESIDUAL, ResidualProjection
from stages.settings import RESIZES, ReadSettings

# conv with one channel is exported by the test of images of any size.
OWN_NETWORKS = [
    pytest.param("conv", 100, 3, marks=pytest.mark.slow),
    ("conv-deep", 33, 3),
    pytest.param("conv-deep", 70, 1, marks=pytest.mark.slow),
]
LIBRARY_NETWORKS = [
    "torchvision:resnet18",
    "torchvision:inception_v3",
    "torchvision:convnext_tiny",
    "torchvision:vit_b_32",
    "timm:test_vit3",
    "efficientnet-lite0",
]
PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "export.md"


def save_rotated(photo: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(path, exif=exif)


def save_transparent(photo: Image.Image, path: Path) -> None:
    photo.putalpha(photo.convert("L"))
    photo.save(path)


def save_16_bits(photo: Image.Image, path: Path) -> None:
    values = np.asarray(photo.convert("L")).astype(np.uint16) * 250 + 77
    Image.fromarray(values).save(path)


# Ways of saving an image that need care when it is read.
IMAGES = {
    "colour": lambda photo, path: photo.save(path),
    "grey": lambda photo, path: photo.convert("L").save(path),
    "grey as colour": lambda photo, path: photo.convert("L").convert("RGB").save(path),
    "black and white": lambda photo, path: photo.convert("1").save(path),
    "palette": lambda photo, path: photo.quantize(16).save(path),
    "transparent colour": lambda photo, path: photo.quantize(16).save(path, transparency=3),
    "transparent": save_transparent,
    "transparent grey": lambda photo, path: photo.convert("LA").save(path),
    "orientation": save_rotated,
    "16 bits": save_16_bits,
}


@pytest.mark.parametrize(("name", "size", "channels"), OWN_NETWORKS)
def test_own_networks(name, size, channels, tmp_path):
    check_network(tmp_path, name, size, channels)


@pytest.mark.parametrize(
    "resize",
    [
        pytest.param(name, marks=() if name == "pad-repeat" else pytest.mark.slow)
        for name in RESIZES
    ],
)
def test_images_of_any_size(resize, tmp_path):
    check_network(tmp_path, "conv", 30, 1, resize=resize, any_size=tmp_path / "any.onnx", high=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARY_NETWORKS)
def test_library_networks(name, tmp_path):
    check_network(tmp_path, name, 32, 3)


@pytest.mark.slow
def test_library_network_on_grey_images_of_any_size(tmp_path):
    any_size = tmp_path / "any.onnx"
    check_network(tmp_path, "torchvision:resnet18", 20, 1, any_size=any_size)


@pytest.mark.slow
def test_projection_of_a_frozen_trunk(tmp_path):
    frozen = {"trunk": "frozen", "projection": RESIDUAL}
    check_network(tmp_path, "torchvision:mobilenet_v3_small", 32, 3, **frozen)


def check_network(
    folder: Path,
    name: str,
    size: int,
    channels: int,
    *,
    resize: str = "pad-repeat",
    any_size: Path | None = None,
    high: bool = False,
    **options: str,
) -> None:
    """Export an untrained network, and compare its vector of a photograph."""
    torch.manual_seed(0)
    network = EmbeddingNet(channels, size, 8, name=name, **options).eval()
    if isinstance(network.project, ResidualProjection):
        network.project.fit(torch.rand(20, network.project.linear.in_features))
    read = asdict(ReadSettings(size=size, channels=channels, resize=resize))
    classifier = write_classifier(folder / "c.safetensors", network, read=read)
    photo, out = folder / "photo.png", folder / "model.onnx"
    image = sample_photos()[0]
    if high:  # Pillow 13 resizes rows first
        image = image.resize((90, 310))
    image.save(photo)
    text = export(classifier, [photo], out=out, context=QUIET, any_size=any_size)
    assert "equal labels" in text and ("on 1 image with equal pixels" in text) == bool(any_size)
    (decoded,) = decode_files([str(photo)], size=size, channels=channels, resize=resize)
    square = np.frombuffer(decoded.pixels, np.uint8).reshape(1, *decoded.shape)
    with torch.no_grad():
        vector = network(torch.from_numpy(square.copy())).numpy()
    np.testing.assert_allclose(run(out, square)["vector"], vector, atol=1e-5)
    if any_size:
        single = run(any_size, np.array(Image.open(photo)))
        np.testing.assert_allclose(single["vector"], vector, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", sorted(IMAGES))
def test_the_documented_preparation_gives_the_same_pixels(kind, channels, tmp_path):
    block = next(
        text
        for text in PAGE.read_text(encoding="utf-8").split("```python\n")
        if "def prepare" in text
    )
    names: dict[str, object] = {}
    exec(block.split("```")[0], names)
    for number, photo in enumerate(sample_photos()[:3]):
        path = tmp_path / f"{number}.{'jpg' if kind == 'orientation' else 'png'}"
        IMAGES[kind](photo, path)
        for size, jpeg in ((8, "full"), (8, "reduced"), (300, "reduced")):
            (decoded,) = decode_files(
                [str(path)], size=size, channels=channels, resize="pad-repeat", jpeg=jpeg
            )
            expected = np.frombuffer(decoded.pixels, np.uint8).reshape(decoded.shape)
            assert np.array_equal(names["prepare"](path, size, channels, jpeg), expected)
            reduced = jpeg == "reduced" and size == 8 and kind == "orientation"
            assert (decoded.fact[1] == "") == reduced  # no digest of the full pixels
