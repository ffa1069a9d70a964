"""Folders and manifests of small images, and what the commands report about them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.cli import main

RANDOM = np.random.default_rng(0)
ROWS = "".join(f"{label}/{index}.png,{label}\n" for label in "ab" for index in range(10))

Writer = Callable[[Path], Any]  # writes a source below a path and returns what to pass as SOURCE
Check = Callable[[dict[str, Any]], bool]  # tests the audit of a source


def save_image(path: Path, value: int | None = None, side: int = 8) -> Path:
    """Save a grey PNG of random noise, or of one value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if value is None:
        pixels = RANDOM.integers(0, 256, (side, side), np.uint8)
    else:
        pixels = np.full((side, side), value, np.uint8)
    Image.fromarray(pixels).save(path, "PNG")
    return path


def smooth_image(seed: int, side: int = 96) -> Image.Image:
    """Return a random smooth colour image, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def write_photos(root: Path, classes: str = "ab", count: int = 10) -> Path:
    """Write a folder with one subfolder per class."""
    for label in classes:
        for index in range(count):
            save_image(root / label / f"{index}.png")
    return root


def split_folders(*splits: str, **classes: str) -> Writer:
    """Return a writer of a folder per split. ``classes`` overrides the classes of a split."""

    def write(root: Path) -> Path:
        for split in splits:
            write_photos(root / split, classes.get(split, "ab"))
        return root

    return write


def write_manifest(root: Path, text: str, encoding: str = "utf-8") -> Path:
    """Write photos and a manifest next to them."""
    write_photos(root)
    (root / "list.csv").write_bytes(text.encode(encoding))
    return root / "list.csv"


def manifest(text: str, encoding: str = "utf-8") -> Writer:
    """Return a writer of photos and a manifest."""
    return lambda root: write_manifest(root, text, encoding)


def file_with(content: bytes, name: str) -> Writer:
    """Return a writer of a single file."""

    def write(root: Path) -> Path:
        root.mkdir()
        (root / name).write_bytes(content)
        return root / name

    return write


def run_command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Return exit status, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def count_images(audit: dict[str, Any]) -> list[int]:
    """Return the number of training, validation and test images in a JSON audit."""
    classes = audit["classes"].values()
    return [sum(counts[split] for counts in classes) for split in ("train", "val", "test")]


def check_readable(
    write: Writer, check: Check, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Assert that a source can be audited, as JSON and as text, and that it is not changed."""
    source = write(folder / "source")
    before = sorted((folder / "source").iterdir())
    options = ("--cache", folder / "cache")
    status, out, err = run_command(capsys, "data", source, "--json", *options)
    assert status == 0, err
    audit = json.loads(out)
    assert check(audit)
    status, out, _ = run_command(capsys, "data", source, *options)
    assert status == 0 and "classes, read as" in out
    train, val, test = count_images(audit)
    skipped = len(audit["unreadable"])
    assert f"\n{train} training, {val} validation, {test} test images; {skipped} skipped\n" in out
    assert sorted((folder / "source").iterdir()) == before
    assert {path.name for path in folder.iterdir()} <= {"source", "cache", "elsewhere"}


def check_rejected(
    write: Writer,
    message: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    *options: str,
) -> None:
    """Assert that training ends in an error of one line that contains ``message``."""
    arguments = ["embed", "--quiet", "--data", write(folder / "source")]
    arguments += ["--cache", folder / "cache", "--root", folder / "root"]
    arguments += ["--out", folder / "out" / "a.safetensors"]
    status, out, err = run_command(capsys, *arguments, *options)
    assert status == 1 and not out, err
    assert err.startswith("error: ") and message in err and err.strip().count("\n") == 0
    assert {path.name for path in folder.iterdir()} <= {"source", "cache"}


def write_splits(
    root: Path, splits: dict[str, dict[str, int]], *, noise: int = 60, colour: bool = False
) -> Path:
    """Write small images: one pattern per class under noise.

    Args:
        root: Folder of the source.
        splits: Split -> class -> number of images. The split ``""`` has no folder of its own.
        noise: Largest value of the uniform noise.
        colour: True for RGB images of 32 x 32 pixels, otherwise grey ones of 8 x 8.
    """
    generator = np.random.default_rng(0)
    shape = (32, 32, 3) if colour else (8, 8)
    patterns: dict[str, np.ndarray] = {}
    for split, classes in splits.items():
        for label, count in classes.items():
            pattern = patterns.setdefault(label, generator.integers(0, 256 - noise, shape))
            folder = root / split / label
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = pattern + generator.integers(0, noise, shape)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root
