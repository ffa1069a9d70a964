"""Readable and damaged image files for the tests, folders of images, and their stores."""

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.decoding_pool import file_decoder, file_state
from pipeline.data.image_store import Store, file_signature, open_store
from pipeline.progress import no_progress
from stages.settings import ReadSettings

RAMP = np.add.outer(np.arange(24) * 5, np.arange(24) * 5).astype(np.uint8)  # 0 to 230
COLOUR = np.stack([RAMP, RAMP.T[::-1], np.full_like(RAMP, 40)], axis=-1)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Encode an image in a format of Pillow."""
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png_of_claimed_size(side: int, depth: int = 8, pixels: bytes = b"") -> bytes:
    """Return a grey PNG whose header claims side x side pixels, by default without most of them."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, 0, 0, 0, 0))
    data = png_chunk(b"IDAT", pixels or zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + header + data + png_chunk(b"IEND", b"")


def with_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    """Return a PNG with another chunk behind its header."""
    return png[:33] + png_chunk(kind, data) + png[33:]


GREY, RGB = Image.fromarray(RAMP), Image.fromarray(COLOUR)
ALPHA = np.dstack([COLOUR, np.where(RAMP > 100, 255, 0).astype(np.uint8)])
OVER_WHITE = np.where((RAMP > 100)[..., None], COLOUR, 255)
BITS = ((RAMP > 100) * 255).astype(np.uint8)
PALETTE = RGB.quantize(16)
TRANSPARENT = encode(PALETTE, "PNG", transparency=int(np.asarray(PALETTE)[0, 0]))
STRIPES = Image.fromarray(np.stack([RAMP, 255 - RAMP, RAMP], -1))
NOT_FINITE = np.array([[np.nan, np.inf], [-np.inf, 7]], np.float32)

# Content of the file, expected pixels, largest mean difference.
GOOD: dict[str, tuple[bytes, np.ndarray, float]] = {
    **{
        f"grey {kind}": (encode(GREY, kind), RAMP, 0)
        for kind in ("PNG", "BMP", "TIFF", "PPM", "GIF")
    },
    **{f"colour {kind}": (encode(RGB, kind), COLOUR, 0) for kind in ("PNG", "BMP", "TIFF", "PPM")},
    "grey JPEG": (encode(GREY, "JPEG", quality=95), RAMP, 2),
    "colour JPEG": (encode(RGB, "JPEG", quality=95, subsampling=0), COLOUR, 4),
    "progressive JPEG": (
        encode(RGB, "JPEG", quality=95, subsampling=0, progressive=True),
        COLOUR,
        4,
    ),
    "CMYK JPEG": (encode(RGB.convert("CMYK"), "JPEG", quality=95), COLOUR, 4),
    "CMYK TIFF": (encode(RGB.convert("CMYK"), "TIFF"), COLOUR, 1),
    "lossless WebP": (encode(RGB, "WEBP", lossless=True), COLOUR, 0),
    "lossy WebP": (encode(STRIPES, "WEBP", quality=95), np.asarray(STRIPES), 12),
    "compressed TIFF": (encode(RGB, "TIFF", compression="tiff_lzw"), COLOUR, 0),
    "1 bit PNG": (encode(Image.fromarray(BITS).convert("1"), "PNG"), BITS, 0),
    "1 bit TIFF": (encode(Image.fromarray(BITS).convert("1"), "TIFF"), BITS, 0),
    "16 bit PNG": (encode(Image.fromarray(RAMP.astype(np.uint16) * 257), "PNG"), RAMP, 0),
    "16 bit TIFF": (encode(Image.fromarray(RAMP.astype(np.uint16) * 257), "TIFF"), RAMP, 0),
    "32 bit TIFF": (encode(Image.fromarray(RAMP.astype(np.int32) * 257), "TIFF"), RAMP, 0),
    "float TIFF": (encode(Image.fromarray(RAMP.astype(np.float32)), "TIFF"), RAMP, 0),
    "palette PNG": (encode(PALETTE, "PNG"), np.asarray(PALETTE.convert("RGB")), 0),
    "palette GIF": (encode(PALETTE, "GIF"), np.asarray(PALETTE.convert("RGB")), 0),
    "palette with a transparent colour": (
        TRANSPARENT,
        np.where(
            np.asarray(PALETTE)[..., None] == np.asarray(PALETTE)[0, 0],
            255,
            np.asarray(PALETTE.convert("RGB")),
        ),
        0,
    ),
    "RGBA over white": (encode(Image.fromarray(ALPHA), "PNG"), OVER_WHITE, 0),
    "RGBA WebP": (encode(Image.fromarray(ALPHA), "WEBP", lossless=True, exact=True), OVER_WHITE, 0),
    "grey with alpha": (
        encode(Image.merge("LA", (GREY, Image.fromarray(ALPHA[..., 3]))), "PNG"),
        np.where(RAMP > 100, RAMP, 255),
        0,
    ),
    "grey in colour": (encode(GREY.convert("RGB"), "PNG"), RAMP, 0),
    "first frame of a GIF": (
        encode(GREY, "GIF", save_all=True, append_images=[Image.new("L", GREY.size)]),
        RAMP,
        0,
    ),
    "first page of a TIFF": (
        encode(GREY, "TIFF", save_all=True, append_images=[Image.new("L", GREY.size)]),
        RAMP,
        0,
    ),
    "animated PNG": (
        encode(GREY, "PNG", save_all=True, append_images=[Image.new("L", GREY.size)]),
        RAMP,
        0,
    ),
    "a thousand frames": (
        encode(Image.new("L", (4, 4), 9), "TIFF", save_all=True, append_images=[GREY] * 1000),
        np.full((4, 4), 9),
        0,
    ),
    "only transparent pixels": (
        encode(Image.new("LA", (5, 7)), "PNG"),
        np.full((7, 7), 255),
        0,
    ),
    "a single pixel": (
        encode(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"),
        np.full((4, 4, 3), (1, 2, 3)),
        0,
    ),
    "float TIFF with infinity": (
        encode(Image.fromarray(np.tile(NOT_FINITE, (2, 2))), "TIFF"),
        np.tile([[0, 255], [0, 7]], (2, 2)),
        0,
    ),
    "damaged colour profile": (
        encode(RGB, "JPEG", quality=95, subsampling=0, icc_profile=b"damaged" * 9),
        COLOUR,
        4,
    ),
    "damaged EXIF": (encode(RGB, "PNG", exif=b"Exif\0\0MM\0*\0\0\xff\xff\xff\xff"), COLOUR, 0),
}

JPEG, PNG = encode(RGB, "JPEG"), encode(RGB, "PNG")
ZIPPED = zlib.compress(bytes(50_000_000))

# Content of the file, part of the reason why it cannot be read.
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "text": (b"not an image at all", "not an image"),
    "zeros": (bytes(5000), "not an image"),
    "web page": (b"<!DOCTYPE html><html><body>404</body></html>", "not an image"),
    "zip": (b"PK\x03\x04" + bytes(300), "not an image"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not an image"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image"),
    "signature alone": (PNG[:8], ""),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], "truncated"),
    "truncated PNG": (PNG[: len(PNG) // 2], ""),
    "truncated BMP": (encode(RGB, "BMP")[:300], "truncated"),
    "truncated WebP": (encode(RGB, "WEBP")[:60], ""),
    "truncated TIFF": (encode(RGB, "TIFF")[:300], ""),
    "truncated PPM": (encode(RGB, "PPM")[:300], "truncated"),
    "bit flipped in a PNG": (PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:], ""),
    "decompression bomb": (png_of_claimed_size(60_000), "decompression bomb"),
    "smaller bomb": (png_of_claimed_size(9_700), "9700 x 9700 pixels"),
    "text that decompresses to 50 MB": (with_chunk(PNG, b"zTXt", b"a\0\0" + ZIPPED), "too large"),
    "international text of 50 MB": (
        with_chunk(PNG, b"iTXt", b"a\0\1\0\0\0" + ZIPPED),
        "too large",
    ),
    "colour profile of 50 MB": (with_chunk(PNG, b"iCCP", b"a\0\0" + ZIPPED), "too large"),
}


def make_directory(path: Path) -> None:
    path.mkdir()


def make_sparse_file(path: Path) -> None:
    """Create a file of 2 GB that takes no space on the disk."""
    with path.open("wb") as file:
        file.truncate(2**31)


def build_store(folder: Path, cache: Path, read: ReadSettings | None = None) -> Store:
    """Open or build the store of all files in a folder."""
    files = [(str(path), file_state(str(path))) for path in sorted(folder.iterdir())]
    read = read or ReadSettings()
    with file_decoder(files, read.resize, read.jpeg) as decoder:
        return open_store(cache, file_signature(files), decoder, len(files), read, no_progress)


def read_all_files(folder: Path) -> dict[str, bytes]:
    """Return the content of all files below a folder by relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_random_images(folder: Path, count: int, shape: tuple[int, ...] = (12, 12)) -> Path:
    """Write PNG files of random pixels, 00000.png and following."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for index in range(count):
        image = Image.fromarray(generator.integers(0, 256, shape, np.uint8))
        image.save(folder / f"{index:05}.png", compress_level=0)
    return folder
