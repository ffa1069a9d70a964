"""Checkpoints and images for the tests of enrolment."""

import shutil
from pathlib import Path

from factories import QUIET
from sample_sources import write_splits
from short_reports import QUICK

from pipeline.commands.classify import classify
from pipeline.commands.embed import embed
from pipeline.commands.enroll import enroll
from stages.settings import ClassifySettings, ReadSettings

OLD, NEW = ("ash", "birch", "cedar"), ("oak", "yew")


def train_on_old_classes(root: Path) -> Path:
    """Write both checkpoints, their source, and a folder `pool` with images of all classes."""
    splits = {
        "train": dict.fromkeys(OLD, 10),
        "val": dict.fromkeys(OLD, 8),
        "test": dict.fromkeys(OLD, 5) | dict.fromkeys(NEW, 6),
        "pool": dict.fromkeys((*OLD, *NEW), 8),
    }
    write_splits(root / "photos", splits, noise=60)
    (root / "photos" / "pool").rename(root / "pool")
    paths = root / "e.safetensors", root / "c.safetensors"
    embed(str(root / "photos"), ReadSettings(), QUICK, out=paths[0], context=QUIET)
    classify(paths[0], ClassifySettings(), out=paths[1], context=QUIET)
    return root


def write_new_images(workspace: Path, folder: Path, **counts: int) -> Path:
    """Write a folder with some images of the pool per class."""
    for label, count in counts.items():
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            shutil.copy(workspace / "pool" / label / f"{number}.png", folder / label)
    return folder


def enrol(source: Path, start: Path, out: Path, **options: bool) -> str:
    """Enrol the images of a folder without progress."""
    return enroll(str(source), start, out=out, context=QUIET, **options)
