"""Identical images are found although few JPEG images are decoded in full."""

from collections import defaultdict
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from image_files import build_store, encode
from PIL import Image

from pipeline.data import decoding_pool
from pipeline.data.decode import digest_files
from pipeline.data.identical_images import identify_pixels
from pipeline.data.image_store import Store
from pipeline.progress import no_progress
from stages.settings import ReadSettings

REDUCED, FULL = ReadSettings(size=8), ReadSettings(size=8, jpeg="full")
SIDES = (203, 150)


def make_photo(seed: int) -> Image.Image:
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (5, 6, 3), np.uint8))
    return coarse.resize(SIDES, Image.Resampling.BICUBIC)


def with_comment(jpeg: bytes) -> bytes:
    """Return another file with the same pixels."""
    return jpeg[:2] + b"\xff\xfe\x00\x06text" + jpeg[2:]


def decoded(content: bytes) -> Image.Image:
    return Image.open(BytesIO(content))


def write_copies(folder: Path) -> None:
    """Write photos, copies of them in other files, and similar photos."""
    folder.mkdir()
    photos = [make_photo(seed) for seed in range(5)]
    jpegs = [encode(photo, "JPEG", quality=80) for photo in photos]
    grey = encode(photos[3].convert("L").convert("RGB"), "JPEG")
    dots = np.random.default_rng(9).random(SIDES[::-1]) < 0.03  # white on black
    dotted = encode(Image.fromarray(dots.astype(np.uint8) * 255), "JPEG", quality=30)
    almost = np.array(decoded(jpegs[1]))
    almost[70, 90, 1] ^= 1
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = encode(photos[0].rotate(90, expand=True), "JPEG", exif=exif, quality=80)
    files = {
        "a.jpg": jpegs[0],
        "a bytes.jpg": jpegs[0],
        "a comment.jpg": with_comment(jpegs[0]),
        "a.png": encode(decoded(jpegs[0]), "PNG"),
        "a.webp": encode(decoded(jpegs[0]), "WEBP", lossless=True),
        "a again.jpg": encode(decoded(jpegs[0]), "JPEG", quality=60),
        "a sideways.jpg": sideways,
        "b.jpg": jpegs[1],
        "b almost.png": encode(Image.fromarray(almost), "PNG"),
        "c.jpg": jpegs[2],
        "e.jpg": jpegs[4],
        "e comment.jpg": with_comment(jpegs[4]),
        "c small.jpg": encode(decoded(jpegs[2]).resize((200, 150)), "JPEG"),
        "c crop.png": encode(decoded(jpegs[2]).crop((0, 0, 202, 150)), "PNG"),
        "d.png": encode(photos[3], "PNG"),
        "d bytes.png": encode(photos[3], "PNG", compress_level=1),
        "grey.jpg": grey,
        "grey.png": encode(decoded(grey).convert("L"), "PNG"),
        "dots.jpg": dotted,
        "dots.png": encode(decoded(dotted).convert("RGB"), "PNG"),
        "broken.jpg": jpegs[1][:-900],
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)


def partition(store: Store) -> set[frozenset[int]]:
    """Return the groups of images with the same key, as positions in the source."""
    groups = defaultdict(set)
    for position, key in zip(store.origin.tolist(), store.facts["pixels"].tolist(), strict=True):
        groups[key].add(position)
    return {frozenset(group) for group in groups.values()}


@pytest.mark.parametrize("resize", ["pad-repeat", "crop"])
@pytest.mark.parametrize("size", [8, 9, 4])
def test_the_same_images_are_identical_as_with_full_images(resize, size, tmp_path, monkeypatch):
    write_copies(tmp_path / "photos")
    full = build_store(
        tmp_path / "photos", tmp_path / "c", ReadSettings(size=size, resize=resize, jpeg="full")
    )
    read: list[str] = []

    def digest(paths):
        read.extend(Path(path).name for path in paths)
        return digest_files(paths)

    monkeypatch.setattr(decoding_pool, "digest_files", digest)
    store = build_store(tmp_path / "photos", tmp_path / "c", ReadSettings(size=size, resize=resize))
    assert partition(store) == partition(full)
    assert sorted(map(len, partition(full))) == [1] * 7 + [2, 2, 2, 2, 5]
    # Photos without a similar one of their size are not decoded in full, nor are copies of a file.
    assert {"b.jpg", "e.jpg", "e comment.jpg", "grey.jpg", "dots.jpg"} < set(read)
    assert not {"c.jpg", "c small.jpg", "d.png"} & set(read)
    assert len(read) == len(set(read)) and len({"a.jpg", "a bytes.jpg"} & set(read)) == 1
    for name in ("width", "height", "mode", "grey", "content"):
        assert np.array_equal(store.facts[name], full.facts[name])


def test_keys_of_full_images_are_their_digests_and_keys_do_not_depend_on_other_images(tmp_path):
    write_copies(tmp_path / "photos")
    names = sorted(path.name for path in (tmp_path / "photos").iterdir())
    full = build_store(tmp_path / "photos", tmp_path / "cache", FULL)
    store = build_store(tmp_path / "photos", tmp_path / "cache", REDUCED)
    keys = {names[row]: key for row, key in zip(store.origin, store.facts["pixels"], strict=True)}
    digests = {names[row]: key for row, key in zip(full.origin, full.facts["pixels"], strict=True)}
    files = {names[row]: key for row, key in zip(full.origin, full.facts["content"], strict=True)}
    for name in ("d.png", "d bytes.png", "c crop.png", "b almost.png"):
        assert keys[name] == digests[name]
    for name in ("b.jpg", "c.jpg"):
        assert keys[name] == files[name][:32]
    same = ("a.jpg", "a bytes.jpg", "a comment.jpg", "a.png", "a.webp")
    assert {keys[name] for name in same} == {
        min(digests["a.png"], files["a.jpg"][:32], files["a comment.jpg"][:32])
    }


def test_image_that_cannot_be_decoded_in_full_is_identical_to_copies_of_its_file(tmp_path):
    write_copies(tmp_path / "photos")
    store = build_store(tmp_path / "photos", tmp_path / "cache", REDUCED)
    names = sorted(path.name for path in (tmp_path / "photos").iterdir())
    facts = store.facts.copy()
    facts["pixels"][[names[row].endswith(".jpg") for row in store.origin]] = b""
    keys = identify_pixels(
        store.images, facts, store.origin, lambda rows: iter([""] * len(rows)), no_progress
    )
    of = {names[row]: key for row, key in zip(store.origin, keys, strict=True)}
    assert of["a.jpg"] == of["a bytes.jpg"]
    assert len({of["a.jpg"], of["a.png"], of["a comment.jpg"]}) == 3
    assert of["a.png"] == of["a.webp"]


def test_small_images_have_one_store_and_photos_have_two(tmp_path):
    write_copies(tmp_path / "photos")
    cache = tmp_path / "cache"
    build_store(tmp_path / "photos", cache, ReadSettings(size=64))
    assert [path.name[-13:] for path in cache.glob("*/")] == ["-3-pad-repeat"]
    build_store(tmp_path / "photos", cache, ReadSettings(size=64, jpeg="full"))
    assert len(list(cache.glob("*/"))) == 1
    build_store(tmp_path / "photos", cache, REDUCED)
    build_store(tmp_path / "photos", cache, FULL)
    build_store(tmp_path / "photos", cache, REDUCED)
    ends = sorted(path.name.partition("-")[2] for path in cache.glob("*/"))
    assert ends == ["64-3-pad-repeat", "8-3-pad-repeat", "8-3-pad-repeat-reduced"]
