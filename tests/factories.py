"""Synthetic data sets, embeddings and runs, and slow reference code for the tests."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st

from pipeline.commands.classify import classify
from pipeline.commands.embed import embed
from pipeline.context import RunContext
from pipeline.data.dataset import Dataset, Source
from pipeline.data.decode import FACT
from pipeline.data.entries import Entry
from pipeline.data.splits import split_source
from stages.checkpoints import ClassifierCheckpoint
from stages.evaluation.baselines import Baseline
from stages.evaluation.knn import nearest_distances
from stages.evaluation.query_sample import QuerySample
from stages.evaluation.results import Evaluation
from stages.evaluation.scores import evaluate_split
from stages.network.digest import state_digest
from stages.network.embedding_net import EmbeddingNet
from stages.network.head import Head
from stages.records import Embeddings, EpochLog, HeadLog
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings

QUIET = RunContext(device="cpu", precision="fp32", quiet=True)
TINY = EmbedSettings(dim=16, epochs=6, augment=False)

# A row of `source_of`: label, pixels, group, no given split.
ROW = st.tuples(
    st.sampled_from("abc"),
    st.integers(0, 40),
    st.sampled_from(("", "", "g1", "g2", "g3")),
    st.just(""),
)


def make_dataset(
    classes: tuple[str, ...],
    *,
    train: int = 8,
    test: int | dict[int, int] = 4,
    noise: float = 40,
    leaked: int = 0,
    unseen: Sequence[str] = (),
    size: int = 8,
    channels: int = 1,
    seed: int = 0,
) -> Dataset:
    """Return a data set with one random pattern per class, plus noise.

    Args:
        classes: Class names.
        train: Training images per class.
        test: Test images per class, or a dictionary from class index to count (default 4).
        noise: Standard deviation of the noise.
        leaked: Number of test images that are copies of a training image of their class.
        unseen: Classes of which all images are test images.
        size: Side of the images.
        channels: Channels of the images.
        seed: Seed of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randint(
        256, (len(classes), channels, size, size), generator=torch.Generator().manual_seed(7)
    ).float()
    counts = {"train": [train] * len(classes), "val": [2] * len(classes)}
    if isinstance(test, dict):
        counts["test"] = [test.get(index, 4) for index in range(len(classes))]
    else:
        counts["test"] = [test] * len(classes)
    images, splits, start = [], {}, 0
    for split, sizes in counts.items():
        labels = torch.repeat_interleave(torch.arange(len(classes)), torch.tensor(sizes))
        shape = (len(labels), channels, size, size)
        pixels = patterns[labels] + noise * torch.randn(shape, generator=generator)
        images.append(pixels.clamp(0, 255).to(torch.uint8))
        splits[split] = (torch.arange(start, start + len(labels)), labels)
        start += len(labels)
    for row in range(leaked):
        same_class = (splits["train"][1] == splits["test"][1][row]).nonzero()
        images[2][row] = images[0][int(same_class[row % train])]
    store = torch.cat(images)
    entries = []
    for split, (rows, labels) in splits.items():
        for row, label in zip(rows.tolist(), labels.tolist(), strict=True):
            path = f"{split}/{classes[label]}/{row}.png"
            part = "test" if classes[label] in unseen else split
            entries.append(Entry(path, classes[label], part, ""))
    hashes = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in store]
    facts = np.array(
        [(digest, digest[:32], size, size, "L", channels == 1) for digest in hashes], FACT
    )
    read = ReadSettings(size=size, channels=channels)
    return split_source(Source("made up", tuple(entries), store, facts, read, (), ()))


def train_both(
    data: Dataset,
    folder: Path,
    *,
    settings: EmbedSettings = TINY,
    name: str = "embedding",
    max_iter: int = ClassifySettings().max_iter,
) -> tuple[Path, Path]:
    """Train an embedding and a classifier briefly and return the paths of both checkpoints."""
    embedding = embed(data, data.read, settings, out=folder / f"{name}.safetensors", context=QUIET)
    out = folder / f"{name}-classifier.safetensors"
    classify_settings = ClassifySettings(max_iter=max_iter)
    return embedding, classify(embedding, classify_settings, out=out, context=QUIET, source=data)


def make_record(kind: str, network: EmbeddingNet | None = None, **changes: Any) -> dict[str, Any]:
    """Return a valid record of a checkpoint with two classes and three training images.

    Args:
        kind: Kind of the checkpoint.
        network: Network of the checkpoint.
        changes: Entries to replace.
    """
    network = network or EmbeddingNet(1, 8, 8)
    config = network.config
    read = ReadSettings(size=config["size"], channels=config["channels"])
    settings = EmbedSettings(network=config["name"], dim=config["dim"], trunk=config["trunk"])
    epoch_log = EpochLog(1, loss=0.1, active_share=0.2, mean_distance=1, val_knn=1, val_triplet=1)
    identity = {"fingerprint": "f" * 64, "read": asdict(read), "settings": asdict(settings)}
    checkpoint = {
        **identity,
        "network": config,
        "classes": ["a", "b"],
        "source": "made up",
        "counts": {"train": 3, "val": 1, "test": 0},
        "skipped": [{"path": "b/4.png", "reason": "no image"}],
        "unseen": None,
        "epoch": 1,
        "versions": {"torch": torch.__version__},
    }
    process = {"precision": "float32", "processes": 1}
    digest = state_digest(network.state_dict())
    records = {
        "embedding": {
            **checkpoint,
            **process,
            "weights": None,
            "root": None,
            "held_out_classes": [],
            "history": [asdict(epoch_log)],
        },
        "classifier": {
            **checkpoint,
            "settings": asdict(ClassifySettings()),
            "embedding_settings": asdict(settings),
            "embedding_digest": digest,
            "gallery_ids": ["x", "y", "z"],
            "temperature": 1.5,
            "calibrated": True,
            "k": 3,
            "history": [asdict(HeadLog(9, 0.1, 0.2, 1.0, 1e-3, converged=True))],
        },
        "gallery": {
            "network": config,
            "read": asdict(read),
            "classes": ["a", "b"],
            "embedding_digest": digest,
            "ids": ["x", "y", "z"],
            "versions": {"torch": torch.__version__},
        },
        "vectors": {
            "embedding_digest": digest,
            "fingerprint": "f" * 64,
            "ids": ["x", "y", "z"],
            "k": 3,
        },
        "state": {**identity, **process, "speeds": [12.5], "finished": False},
    }
    return {**records[kind], **changes}


def source_of(rows: list[tuple[str, int, str, str]], read: ReadSettings | None = None) -> Source:
    """Return a source from rows of label, pixels (as a number), group and given split."""
    entries = tuple(
        Entry(str(index), label, split, group)
        for index, (label, _, group, split) in enumerate(rows)
    )
    facts = np.zeros(len(rows), FACT)
    facts["pixels"] = [f"pixels {pixels}".encode() for _, pixels, _, _ in rows]
    facts["content"] = facts["pixels"]
    store = torch.zeros(len(rows), 1, 4, 4, dtype=torch.uint8)
    return Source("made up", entries, store, facts, read or ReadSettings(size=4), (), ())


def unit_vectors(count: int, dim: int, *, seed: int) -> torch.Tensor:
    """Return random unit vectors, float32 (count, dim)."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dim, generator=generator), dim=1)


def random_embeddings(
    count: int, classes: int, *, seed: int = 0, dim: int = 8, noise: float = 0.6
) -> Embeddings:
    """Return random embeddings around fixed class centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = unit_vectors(classes, dim, seed=1)
    labels = torch.randint(classes, (count,), generator=generator)
    vectors = F.normalize(
        centres[labels] + noise * torch.randn(count, dim, generator=generator), dim=1
    )
    return Embeddings(vectors, labels, tuple(map(str, range(classes))))


def add_noise(embeddings: Embeddings, noise: float) -> Embeddings:
    """Return a worse embedding of the same images."""
    generator = torch.Generator().manual_seed(3)
    offsets = noise * torch.randn(embeddings.vectors.shape, generator=generator)
    vectors = F.normalize(embeddings.vectors + offsets)
    return Embeddings(vectors, embeddings.labels, embeddings.classes)


def make_classifier(
    gallery: Embeddings,
    *,
    validation: Embeddings | None = None,
    temperature: float = 1.0,
    k: int = 5,
) -> ClassifierCheckpoint:
    """Return a classifier whose head is made of class means."""
    torch.manual_seed(0)
    head = Head(gallery.vectors.shape[1], len(gallery.classes)).eval()
    with torch.no_grad():
        for label in range(len(gallery.classes)):
            members = gallery.labels == label
            head.linear.weight[label] = 4 * gallery.vectors[members].sum(0) / max(1, members.sum())
        head.linear.bias.zero_()
    distances = torch.empty(0)
    if validation:
        distances = nearest_distances(validation.vectors, gallery.vectors)
    return ClassifierCheckpoint(
        network=EmbeddingNet(1, 8, 8),
        head=head,
        gallery=gallery,
        gallery_ids=(),
        validation=validation,
        validation_distances=distances,
        enrolled_distances=torch.empty(0),
        classes=gallery.classes,
        record={},
        embedding_digest="",
        digest="",
        temperature=temperature,
        calibrated=True,
        k=k,
    )


def add_new_classes(
    classifier: ClassifierCheckpoint, labels: Sequence[int], distances: torch.Tensor
) -> ClassifierCheckpoint:
    """Return a classifier in which some classes count as enrolled ones.

    Args:
        classifier: Classifier of all classes.
        labels: Indices of the new classes.
        distances: Distances of enrolled images, float32, shape (E,).
    """
    names = [classifier.classes[label] for label in labels]
    record = {"enrolled": [{"new_classes": [name]} for name in names]}
    return replace(classifier, record=record, enrolled_distances=distances)


def evaluate_random(
    test: Embeddings,
    gallery: Embeddings,
    *,
    validation: Embeddings | None = None,
    temperature: float = 1.0,
    k: int = 5,
    leaked: Sequence[int] = (),
    within: bool = True,
    queries: torch.Tensor | None = None,
    sample: QuerySample | None = None,
) -> Evaluation:
    """Evaluate embeddings with a classifier made of class means and with random baselines."""
    classifier = make_classifier(gallery, validation=validation, temperature=temperature, k=k)
    generator = torch.Generator().manual_seed(5)
    baselines = []
    for _ in range(2):
        vectors = torch.randn(len(test), 3, generator=generator)
        baselines.append(Baseline(vectors, torch.randn(len(gallery), 3, generator=generator), 3))
    return evaluate_split(
        test,
        classifier,
        pixels=baselines[0],
        untrained=baselines[1],
        leaked=leaked,
        within=within,
        queries=queries,
        sample=sample,
    )


def pairwise_distances(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """Return Euclidean distances from differences in float64, shape (len(a), len(b))."""
    differences = a.double().numpy()[:, None] - b.double().numpy()[None]
    return np.sqrt(np.square(differences).sum(-1))


def count_triplets(vectors: torch.Tensor, labels: Sequence[int]) -> dict[str, np.ndarray]:
    """Count triplets one by one, by the names of `SplitMeasures`."""
    distances, images = pairwise_distances(vectors, vectors), range(len(labels))
    names = ("won", "tied", "total", "won_any", "total_any")
    counts = {name: np.zeros(len(labels), dtype=int) for name in names}
    for anchor in images:
        for positive in images:
            for negative in images:
                same_class = positive != anchor and labels[positive] == labels[anchor]
                if not same_class or labels[negative] == labels[anchor]:
                    continue
                won = distances[anchor, positive] < distances[anchor, negative]
                tied = distances[anchor, positive] == distances[anchor, negative]
                counts["won"][anchor] += won
                counts["tied"][anchor] += tied
                counts["total"][anchor] += 1
                for image in (anchor, positive, negative):
                    counts["won_any"][image] += won
                    counts["total_any"][image] += 1
    return counts


def interval_coverage(
    draw: Callable[[], tuple[float, float]], truth: float, *, draws: int
) -> float:
    """Return how often an interval from repeated draws contains the true value."""
    covered = 0
    for _ in range(draws):
        low, high = draw()
        covered += low <= truth <= high
    return covered / draws
