"""Decoding gives the right pixels or a reason, and never raises."""

import os
import random
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_files import (
    BAD,
    COLOUR,
    GOOD,
    RAMP,
    encode,
    make_directory,
    make_sparse_file,
    png_of_claimed_size,
)
from PIL import Image

from pipeline.data import decode, pixel_digest
from pipeline.data.decode import decode_files, decode_image, read_pixels
from stages.settings import RESIZES

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", GOOD)
def test_formats_and_modes(name: str, tmp_path: Path) -> None:
    content, expected, tolerance = GOOD[name]
    path = tmp_path / "image.JPG"  # the ending does not matter
    path.write_bytes(content)
    (outcome,) = decode_files([str(path)], size=None, channels=None, resize="pad-repeat")
    assert not isinstance(outcome, str), outcome
    expected = expected[None] if expected.ndim == 2 else expected.transpose(2, 0, 1)
    assert outcome.shape == expected.shape
    pixels = np.frombuffer(outcome.pixels, np.uint8).reshape(outcome.shape)
    assert np.abs(pixels.astype(int) - expected).mean() <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    stored = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.T,
        6: lambda a: np.rot90(a, 1),  # displayed rotated clockwise, so stored anticlockwise
        7: lambda a: np.rot90(a.T, 2),
        8: lambda a: np.rot90(a, -1),
    }
    upright = RAMP[:, :16].copy()
    upright[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.ascontiguousarray(stored[orientation](upright))
    content = encode(Image.fromarray(pixels), "PNG", exif=exif)
    assert np.array_equal(np.asarray(decode_image(content)), upright)


@pytest.mark.parametrize("name", BAD)
def test_unreadable_content_gives_a_reason(name: str, tmp_path: Path) -> None:
    content, reason = BAD[name]
    (tmp_path / "image.png").write_bytes(content)
    (outcome,) = decode_files([str(tmp_path / "image.png")], size=32, channels=3, resize="crop")
    assert isinstance(outcome, str) and outcome and reason in outcome.lower()
    assert str(tmp_path) not in outcome and "\n" not in outcome


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.symlink_to(path.parent / "nowhere"), "missing"),
        (lambda path: path.symlink_to(path), "links"),
        (make_directory, "folder"),
        (os.mkfifo, "not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a file"),
        (make_sparse_file, "2.1 gb"),
    ],
    ids=["missing", "broken link", "link to itself", "folder", "pipe", "device", "2 GB"],
)
def test_unreadable_path_gives_a_reason_without_waiting(
    make: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    make(tmp_path / "image.png")
    (outcome,) = decode_files([str(tmp_path / "image.png")], size=32, channels=3, resize="crop")
    assert isinstance(outcome, str) and reason in outcome.lower()


@pytest.mark.parametrize("name", GOOD)
def test_bands_give_the_same_pixels_and_digest(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image"
    path.write_bytes(GOOD[name][0])
    options = {"size": 16, "channels": 3, "resize": "pad"}
    expected = decode_files([str(path)], **options)
    monkeypatch.setattr(pixel_digest, "BAND_PIXELS", 100)  # four of 24 rows
    monkeypatch.setattr(decode, "MAX_READ_BYTES", 10)
    assert decode_files([str(path)], **options) == expected


# Kind of file, memory per pixel of its decoder.
LARGE = {
    "TIFF": ({}, 8),
    "JPEG": ({}, 8),
    "progressive": ({"progressive": True}, 10),
    "WEBP": ({"lossless": True}, 16),
}


@pytest.mark.parametrize("kind", LARGE)
def test_image_that_takes_too_much_memory_is_not_decoded(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, bytes_per_pixel = LARGE[kind]
    image = Image.new("RGB", (30, 20))
    content = encode(image, "JPEG" if kind == "progressive" else kind, **options)
    monkeypatch.setattr(decode, "MAX_DECODED_BYTES", 600 * bytes_per_pixel)
    assert decode_image(content).size == (30, 20)
    monkeypatch.setattr(decode, "MAX_DECODED_BYTES", 600 * bytes_per_pixel - 1)
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="30 x 20 pixels"):
        decode_image(content)


def test_large_jpeg_is_read_at_half_size(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode(Image.fromarray(COLOUR), "JPEG", quality=95, subsampling=0)
    monkeypatch.setattr(decode, "MAX_PIXELS", 24 * 24 - 1)
    pixels = np.asarray(decode_image(content)).astype(int)
    assert np.abs(pixels - COLOUR.reshape(12, 2, 12, 2, 3).mean((1, 3))).mean() < 4


LIMITED = r"""
import re, resource, sys
from pathlib import Path
from pipeline.data import decode, pixel_digest
from pipeline.data.decode import decode_files
used = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2)
(outcome,) = decode_files(sys.argv[1:], size=64, channels=1, resize="crop")
print(outcome if isinstance(outcome, str) else outcome.fact[2:5])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process")
def test_large_16_bit_image_is_decoded_in_300_mb(tmp_path: Path) -> None:
    rows = zlib.compress(bytes(6000 * (1 + 2 * 6000)), 1)
    (tmp_path / "large.png").write_bytes(png_of_claimed_size(6000, 16, rows))
    command = [sys.executable, "-c", LIMITED, tmp_path / "large.png"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "(6000, 6000, 'I;16')\n"


def test_worker_processes_import_no_torch() -> None:
    program = "import sys, pipeline.data.decoding_pool; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


@pytest.mark.slow
def test_fuzzed_files_give_pixels_or_a_reason(tmp_path: Path) -> None:
    """Thousands of truncated, damaged and random files of every format."""
    generator = random.Random(4)
    originals = [content for content, _, _ in GOOD.values()]
    unreadable = []
    for case in range(6000):
        content = bytearray(generator.choice(originals))
        if case % 3 == 0:
            content = content[: generator.randrange(len(content))]
        elif case % 3 == 1:
            for _ in range(generator.choice((1, 3, 20))):
                content[generator.randrange(len(content))] = generator.randrange(256)
        else:
            random_bytes = generator.randbytes
            content = content[: generator.randrange(20)] + random_bytes(generator.randrange(400))
        path = tmp_path / "fuzzed.png"
        path.write_bytes(content)
        (outcome,) = decode_files([str(path)], size=16, channels=3, resize="pad-repeat")
        if not isinstance(outcome, str):
            assert outcome.shape == (3, 16, 16) and len(outcome.pixels) == 768
        unreadable.append(isinstance(outcome, str))
    assert 0.2 < np.mean(unreadable) < 0.95  # both outcomes occur


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_without_facts_are_the_same(resize: str, channels: int, tmp_path: Path) -> None:
    contents = [content for content, *_ in (*GOOD.values(), *BAD.values())]
    contents.append(encode(Image.new("RGB", (40, 9), (77, 77, 77)), "JPEG"))
    for index, content in enumerate(contents):
        (tmp_path / str(index)).write_bytes(content)
    paths = [str(tmp_path / str(index)) for index in range(len(contents))] + ["/missing"]
    options = {"size": 16, "channels": channels, "resize": resize}
    expected = decode_files(paths, **options)
    for path, outcome in zip(paths, expected, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pixels = read_pixels(path, **options)
        if isinstance(outcome, str):
            assert pixels == outcome
        else:
            assert pixels.dtype == np.uint8 and pixels.shape == outcome.shape
            assert pixels.tobytes() == outcome.pixels
    assert any(isinstance(outcome, str) for outcome in expected)
