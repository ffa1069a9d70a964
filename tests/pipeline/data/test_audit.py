"""Planted duplicates, leaks, conflicts and crossings are found, and nothing that was not planted."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from pipeline.data.audit import as_text, audit_source, audit_warnings
from pipeline.data.dataset import Source
from pipeline.data.duplicates import near_duplicates, perceptual_hash
from pipeline.data.sources import load_dataset, read_source
from stages.settings import ReadSettings

REPOSITORY = Path(__file__).parents[3]


def scene(seed: int, side: int = 96) -> Image.Image:
    """A smooth random picture, as photos are: no two alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """40 pictures in train/ and test/, two classes, and of each kind of trouble one."""
    root = tmp_path / "photos"
    for seed in range(40):
        part, label = "test" if seed % 4 == 3 else "train", "cat" if seed % 8 < 4 else "dog"
        (root / part / label).mkdir(parents=True, exist_ok=True)
        scene(seed).save(root / part / label / f"{seed}.png")
    shutil.copy(root / "train/cat/0.png", root / "train/cat/copy.png")  # the same file
    Image.open(root / "train/cat/1.png").save(
        root / "train/cat/one.bmp"
    )  # the same pixels in another format
    Image.open(root / "train/dog/4.png").save(root / "test/dog/leak.tiff")  # a leak
    Image.open(root / "train/cat/2.png").convert("RGBA").save(
        root / "train/dog/2 again.webp", lossless=True
    )  # another label
    Image.open(root / "train/dog/5.png").save(
        root / "train/dog/near.jpg", quality=70
    )  # alike, not the same
    return root


def read(root: Path, cache: Path) -> Source:
    return read_source(str(root), ReadSettings(), cache=cache)


def test_what_was_planted_is_found_and_nothing_else(planted: Path, tmp_path: Path) -> None:
    found = audit_source(read(planted, tmp_path / "cache"), near=True)
    assert {frozenset(group) for group in found.exact_duplicates} == {
        frozenset(group)
        for group in (
            ("train/cat/0.png", "train/cat/copy.png"),
            ("train/cat/1.png", "train/cat/one.bmp"),
            ("train/dog/4.png", "test/dog/leak.tiff"),
            ("train/cat/2.png", "train/dog/2 again.webp"),
        )
    }
    assert found.leaks == (("train/dog/4.png", "test/dog/leak.tiff"),)
    assert found.label_conflicts == (("train/cat/2.png", "train/dog/2 again.webp"),)
    assert found.near_duplicates == (("train/dog/5.png", "train/dog/near.jpg"),)
    assert (
        found.images == 45
        and not found.problems
        and found.batches
        and found.batches.classes_per_batch == 2
    )
    assert len(audit_warnings(found)) == 3
    text = as_text(found)
    assert (
        "test/dog/leak.tiff" in text
        and "leaks (the same pixels in more than one given part): 1" in text
    )


def test_one_different_pixel_is_no_exact_duplicate(tmp_path: Path) -> None:
    pixels = np.zeros((20, 20, 3), np.uint8)
    for index in range(60):
        other = pixels.copy()
        other[index // 20, index % 20, index % 3] = 1
        path = tmp_path / "photos" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(other).save(path)
    Image.fromarray(np.zeros((10, 40, 3), np.uint8)).save(
        tmp_path / "photos" / "a" / "same bytes, another shape.png"
    )
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "photos" / "a" / "zero.png")
    found = audit_source(read(tmp_path / "photos", tmp_path / "cache"))
    assert found.images == 62 and found.exact_duplicates == () and found.near_duplicates is None


def test_groups_that_cross_given_parts_are_named(tmp_path: Path) -> None:
    lines = ["path,label,split,group"]
    for index in range(24):
        scene(index).save(tmp_path / f"{index}.png")
        lines.append(
            f"{index}.png,{'ab'[index % 2]},{'test' if index >= 18 else 'train'},patient {index // 4}"
        )
    (tmp_path / "list.csv").write_text("\n".join(lines))
    found = audit_source(read(tmp_path / "list.csv", tmp_path / "cache"))
    assert found.group_crossings == (
        "patient 4",
    )  # 16 to 19; all else that we split ourselves stays together
    assert "group" in audit_warnings(found)[0]


@pytest.mark.parametrize("change", ["jpeg", "smaller", "brighter", "contrast", "one pixel"])
def test_near_duplicates_survive_what_happens_to_pictures(change: str, tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "a"
    folder.mkdir(parents=True)
    for seed in range(30):
        scene(seed).save(folder / f"{seed:02}.png")
        image = scene(seed)
        if change == "smaller":
            image = image.resize((70, 70))
        elif change == "brighter":
            image = ImageEnhance.Brightness(image).enhance(1.1)
        elif change == "contrast":
            image = ImageEnhance.Contrast(image).enhance(0.8)
        elif change == "one pixel":
            image.putpixel((3, 3), (255, 0, 0))
        image.save(folder / f"{seed:02} changed.{'jpg' if change == 'jpeg' else 'png'}")
    source = read(tmp_path / "photos", tmp_path / "cache")
    groups = [{source.entries[row].id[2:4] for row in rows} for rows in near_duplicates(source)]
    assert sum(len(group) == 1 for group in groups) >= 29 and not any(
        len(group) > 1 for group in groups
    )


def test_different_digits_are_rarely_alike() -> None:
    source = read_source("digits", ReadSettings())
    assert sum(map(len, near_duplicates(source))) < 0.02 * len(source.entries)


def test_the_hash_is_that_of_imagehash_on_its_own_thumbnail() -> None:
    images = [scene(seed, 32).convert("L") for seed in range(20)]
    ours = perceptual_hash(np.stack([np.asarray(image) for image in images])[:, None]) > 0
    theirs = np.stack([imagehash.phash(image).hash.ravel() for image in images])
    # They take the median over all 64, we without the mean brightness: at most the bits at the median differ.
    assert (ours != theirs).sum(axis=1).max() <= 2


def test_flat_images_are_not_alike(tmp_path: Path) -> None:
    for value in range(0, 200, 10):
        path = tmp_path / "photos" / "ab"[value % 20 // 10] / f"{value}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 9), value, np.uint8)).save(path)
    assert near_duplicates(read(tmp_path / "photos", tmp_path / "cache")) == []


def pipeline(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    import os

    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "pipeline", *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def test_the_commands_tell(planted: Path, tmp_path: Path) -> None:
    (planted / "train/cat/broken.png").write_bytes(b"x")
    done = pipeline("data", planted, "--json", "--cache", tmp_path / "cache", folder=tmp_path)
    found = json.loads(done.stdout)
    assert done.returncode == 0 and not done.stderr
    assert found["unreadable"] == [
        {"path": "train/cat/broken.png", "reason": "not an image that can be read"}
    ]
    assert found["leaks"] == [["train/dog/4.png", "test/dog/leak.tiff"]]
    assert found["images"] == 45 and found["batches"]["classes_per_batch"] == 2
    counts = found["classes"]
    assert counts["cat"]["test"] + counts["dog"]["test"] == 11 and counts["cat"]["val"] > 0
    done = pipeline(
        "embed", "--data", planted, "--epochs", 1, "--cache", tmp_path / "cache", folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    for said in (
        "train/cat/broken.png",
        "the same image in more than one given part: 1",
        "more than one label: 1",
    ):
        assert said in done.stderr
    assert not done.stderr.count("Traceback") and {path.name for path in tmp_path.iterdir()} == {
        "photos",
        "cache",
        "checkpoints",
    }


def test_leaks_of_the_dataset_are_those_of_the_audit(planted: Path, tmp_path: Path) -> None:
    data = load_dataset(str(planted), ReadSettings(), cache=tmp_path / "cache")
    found = audit_source(data.origin, dataset=data)
    assert data.test and [data.test.ids[position] for position in data.leaked] == [
        found.leaks[0][1]
    ]
