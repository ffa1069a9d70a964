"""Made-up data sets and runs for the tests of the report."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from pipeline import run
from pipeline.data import Dataset, Entry, Source, split_source
from pipeline.store import FACT
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings

QUIET = run.Machine(device="cpu", precision="fp32", quiet=True)
TINY = EmbedSettings(dim=16, epochs=6, augment=False)


def make_dataset(
    classes: tuple[str, ...],
    *,
    train: int = 8,
    test: int | dict[int, int] = 4,
    noise: float = 40,
    leaked: int = 0,
    size: int = 8,
    channels: int = 1,
    seed: int = 0,
) -> Dataset:
    """A pattern a class under noise. train, test: images a class (test: by class, where it differs; 4 elsewhere).

    leaked: test images that are copies of training images, of the same class.
    """
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randint(256, (len(classes), channels, size, size), generator=torch.Generator().manual_seed(7)).float()
    counts = {"train": [train] * len(classes), "val": [2] * len(classes)}
    counts["test"] = [test.get(c, 4) for c in range(len(classes))] if isinstance(test, dict) else [test] * len(classes)
    images, splits, start = [], {}, 0
    for part, sizes in counts.items():
        labels = torch.tensor([c for c, count in enumerate(sizes) for _ in range(count)])
        pixels = patterns[labels] + noise * torch.randn(len(labels), channels, size, size, generator=generator)
        images.append(pixels.clamp(0, 255).to(torch.uint8))
        splits[part] = (torch.arange(start, start + len(labels)), labels)
        start += len(labels)
    for row in range(leaked):
        images[2][row] = images[0][int((splits["train"][1] == splits["test"][1][row]).nonzero()[row % train])]
    store = torch.cat(images)
    entries = tuple(
        Entry(f"{part}/{classes[c]}/{row}.png", classes[c], part, "")
        for part, (rows, labels) in splits.items()
        for row, c in zip(rows.tolist(), labels.tolist(), strict=True)
    )
    hashes = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in store]
    facts = np.array([(digest, digest[:32], size, size, "L", channels == 1) for digest in hashes], FACT)
    read = ReadSettings(size=size, channels=channels)
    return split_source(Source("made up", entries, store, facts, read, (), ()))


def train_both(data: Dataset, folder: Path, *, settings: EmbedSettings = TINY, name: str = "embedding") -> tuple[Path, Path]:
    """Both checkpoints of a short run."""
    embedding = run.embed(data, data.read, settings, out=folder / f"{name}.safetensors", machine=QUIET)
    out = folder / f"{name}-classifier.safetensors"
    return embedding, run.classify(embedding, ClassifySettings(), out=out, machine=QUIET, source=data)
