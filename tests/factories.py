"""Made-up data sets and runs for the tests of the report."""

import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st

from pipeline.commands.classify import classify
from pipeline.commands.embed import embed
from pipeline.context import RunContext
from pipeline.data.dataset import Dataset, Entry, Source
from pipeline.data.decode import FACT
from pipeline.data.splits import split_source
from stages.evaluation.baselines import Baseline
from stages.evaluation.scores import evaluate_split
from stages.network.embedding_net import EmbeddingNet
from stages.network.head import Head
from stages.records import ClassifierCheckpoint, Embeddings
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings

QUIET = RunContext(device="cpu", precision="fp32", quiet=True)
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
    patterns = torch.randint(
        256, (len(classes), channels, size, size), generator=torch.Generator().manual_seed(7)
    ).float()
    counts = {"train": [train] * len(classes), "val": [2] * len(classes)}
    counts["test"] = (
        [test.get(c, 4) for c in range(len(classes))]
        if isinstance(test, dict)
        else [test] * len(classes)
    )
    images, splits, start = [], {}, 0
    for part, sizes in counts.items():
        labels = torch.tensor([c for c, count in enumerate(sizes) for _ in range(count)])
        pixels = patterns[labels] + noise * torch.randn(
            len(labels), channels, size, size, generator=generator
        )
        images.append(pixels.clamp(0, 255).to(torch.uint8))
        splits[part] = (torch.arange(start, start + len(labels)), labels)
        start += len(labels)
    for row in range(leaked):
        images[2][row] = images[0][
            int((splits["train"][1] == splits["test"][1][row]).nonzero()[row % train])
        ]
    store = torch.cat(images)
    entries = tuple(
        Entry(f"{part}/{classes[c]}/{row}.png", classes[c], part, "")
        for part, (rows, labels) in splits.items()
        for row, c in zip(rows.tolist(), labels.tolist(), strict=True)
    )
    hashes = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in store]
    facts = np.array(
        [(digest, digest[:32], size, size, "L", channels == 1) for digest in hashes], FACT
    )
    read = ReadSettings(size=size, channels=channels)
    return split_source(Source("made up", entries, store, facts, read, (), ()))


def train_both(
    data: Dataset, folder: Path, *, settings: EmbedSettings = TINY, name: str = "embedding"
) -> tuple[Path, Path]:
    """Both checkpoints of a short run."""
    embedding = embed(data, data.read, settings, out=folder / f"{name}.safetensors", context=QUIET)
    out = folder / f"{name}-classifier.safetensors"
    return embedding, classify(embedding, ClassifySettings(), out=out, context=QUIET, source=data)


def source_of(rows: list[tuple[str, int, str, str]], read: ReadSettings | None = None) -> Source:
    """Labels, pixels (as a number), groups and given parts."""
    entries = tuple(
        Entry(str(i), label, part, group) for i, (label, _, group, part) in enumerate(rows)
    )
    facts = np.zeros(len(rows), FACT)
    facts["pixels"] = [f"pixels {pixels}".encode() for _, pixels, _, _ in rows]
    facts["content"] = facts["pixels"]
    return Source(
        "made up",
        entries,
        torch.zeros(len(rows), 1, 4, 4, dtype=torch.uint8),
        facts,
        read or ReadSettings(size=4),
        (),
        (),
    )


ROW = st.tuples(
    st.sampled_from("abc"),
    st.integers(0, 40),
    st.sampled_from(("", "", "g1", "g2", "g3")),
    st.just(""),
)


def random_embeddings(
    count: int, classes: int, *, seed: int = 0, dim: int = 8, noise: float = 0.6
) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)
    centres = F.normalize(
        torch.randn(classes, dim, generator=torch.Generator().manual_seed(1)), dim=1
    )
    labels = torch.randint(classes, (count,), generator=generator)
    vectors = F.normalize(
        centres[labels] + noise * torch.randn(count, dim, generator=generator), dim=1
    )
    return Embeddings(vectors, labels, tuple(map(str, range(classes))))


def scored(
    test: Embeddings,
    gallery: Embeddings,
    *,
    temperature: float = 1.0,
    k: int = 5,
    leaked=(),
    within: bool = True,
):
    torch.manual_seed(0)
    head = Head(test.vectors.shape[1], len(test.classes)).eval()
    with torch.no_grad():
        for label in range(len(test.classes)):
            head.linear.weight[label] = 4 * gallery.vectors[gallery.labels == label].mean(0)
        head.linear.bias.zero_()
    classifier = ClassifierCheckpoint(
        EmbeddingNet(1, 8, 8), head, gallery, (), test.classes, {}, "", "", temperature, k
    )
    noise = torch.Generator().manual_seed(5)
    spaces = [
        Baseline(
            torch.randn(len(test), 3, generator=noise),
            torch.randn(len(gallery), 3, generator=noise),
            3,
        )
        for _ in range(2)
    ]
    return evaluate_split(
        test, classifier, pixels=spaces[0], untrained=spaces[1], leaked=leaked, within=within
    )
