"""Image files and readers that `data.py` compares: bare Pillow, our store, torchvision's loader."""

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.decoding_pool import file_decoder, file_state
from pipeline.data.image_store import Store, file_signature, open_store
from stages.settings import ReadSettings

PROCESSES = 2
BATCH = 160


def write_digits(root: Path, count: int) -> list[str]:
    """Write PNG files of 28 x 28 pixels, white strokes on black as in MNIST, in ten folders."""
    generator = np.random.default_rng(0)
    paths = []
    for index in range(count):
        path = root / str(index % 10) / f"{index:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = np.zeros((7, 7), np.uint8)
        coarse[1:6, 1:6] = generator.integers(0, 2, (5, 5)) * generator.integers(128, 256, (5, 5))
        Image.fromarray(coarse).resize((28, 28), Image.Resampling.BICUBIC).save(path)
        paths.append(str(path))
    return sorted(paths)


def write_photos(root: Path, count: int) -> list[str]:
    """Write smooth colour JPEG files of 300 to 1,200 pixels per side, in ten folders."""
    generator = np.random.default_rng(0)
    paths = []
    for index in range(count):
        path = root / str(index % 10) / f"{index:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = tuple(generator.integers(300, 1200, 2).tolist())
        coarse = Image.fromarray(generator.integers(0, 256, (24, 24, 3), np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(path, quality=85)
        paths.append(str(path))
    return sorted(paths)


def write_tiny_images(root: Path, count: int) -> None:
    """Write colour BMP files of 8 x 8 pixels, in ten folders."""
    generator = np.random.default_rng(0)
    for index in range(count):
        path = root / str(index % 10) / f"{index}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)).save(path)


def decode_with_pillow(paths: list[str]) -> int:
    """Decode files and return their number: the least work of any reader."""
    return sum(np.asarray(Image.open(path)).shape[0] > 0 for path in paths)


def decode_in_pool(pool: ProcessPoolExecutor, paths: list[str]) -> None:
    """Decode files in processes that have been started before, an equal share in each."""
    shares = [paths[start::PROCESSES] for start in range(PROCESSES)]
    assert sum(pool.map(decode_with_pillow, shares)) == len(paths)


def build_store(paths: list[str], cache: Path, first: list[float] | None = None) -> Store:
    """Build or open a store.

    Args:
        paths: Image files.
        cache: Folder of the store.
        first: Receives the time of the first image, when the worker processes have started.
    """

    def show(caption: str, total: int, items: Iterable[Any]) -> Iterator[Any]:
        for number, item in enumerate(items):
            if number == 0 and first is not None:
                first.append(time.perf_counter())
            yield item

    files = [(path, file_state(path)) for path in paths]
    read = ReadSettings()
    with file_decoder(files, read.resize, read.jpeg) as decoder:
        return open_store(cache, file_signature(files), decoder, len(files), read, show)


def read_with_torchvision(root: Path, size: int, grey: bool) -> None:
    """Read one epoch with ImageFolder and DataLoader."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = [transforms.Grayscale()] if grey else []
    steps += [transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor()]
    data = ImageFolder(root, transforms.Compose(steps))
    loader = DataLoader(data, batch_size=BATCH, shuffle=True, num_workers=PROCESSES)
    assert sum(len(labels) for _, labels in loader) == len(data)


def read_from_store(root: Path, cache: Path) -> None:
    """Read one epoch from the store as training does: random batches as float tensors."""
    import torch

    from pipeline.data.sources import load_dataset

    data = load_dataset(str(root), ReadSettings(), cache=cache)
    order = torch.randperm(len(data.train))
    count = 0
    for batch in order.split(BATCH):
        count += len(data.train.take(batch).float() / 255)
    assert count == len(order)
