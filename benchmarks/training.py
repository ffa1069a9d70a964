"""Training throughput of stage one compared with a peer's recipe, and time to accuracy.

    python benchmarks/training.py [--json FILE]
    python benchmarks/training.py --accuracy [--sets mnist,fashion,characters] [--json FILE]

The peer's recipe is `benchmarks/peer_recipe.py`. `peer_channels_last` is its throughput in our
memory layout. The limit is the throughput of forward pass, backward pass and optimiser step of that
network on one batch that stays in memory, in the precision of the row. Validation is excluded on
both sides. Contenders are interleaved; each number is the median of 11 runs after a warm-up run.

`--accuracy` measures whole trainings, `benchmarks/time_to_accuracy.py`.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import peer_recipe, time_to_accuracy
from benchmarks.image_folders import SETS, write_mnist
from benchmarks.peer_recipe import CPU, K, OnStep, P, train_peer
from pipeline.data.sources import load_dataset
from pipeline.device import choose_precision, keep_freed_memory, start_device
from stages.embedding.train import train_embedding
from stages.network.embedding_net import EmbeddingNet
from stages.network.initialization import pixel_statistics
from stages.records import Split
from stages.settings import EmbedSettings, ReadSettings

WARM_UP_STEPS, TIMED_STEPS, REPEATS = 5, 25, 11
PEER = "pytorch-metric-learning"
Row = dict[str, Any]


def new_network(train: Split) -> EmbeddingNet:
    mean, std = pixel_statistics(train)
    return peer_recipe.new_network(float(mean), float(std))


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

    def endless_peer(*, on_step: OnStep, channels_last: bool = False) -> None:
        network = new_network(train)
        train_peer(root, network, epochs=sys.maxsize, on_step=on_step, channels_last=channels_last)

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


def describe(row: Row) -> str:
    texts = [f"{row['work']:36} ours {row['ours']:.4g}"]
    if row["peer"]:
        texts.append(f"{row['peer_name']} {row['peer']:.4g} ({row['ratio']:.2f} x)")
    if row["limit"]:
        texts.append(f"limit {row['limit']:.4g} ({row['ours'] / row['limit']:.2f} of it)")
    texts.append(f"peer_channels_last {row['peer_channels_last']}")
    return f"{', '.join(texts)} {row['unit']}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument(
        "--accuracy", action="store_true", help="measure time to accuracy instead of throughput"
    )
    parser.add_argument("--sets", default=",".join(SETS), help="for --accuracy")
    parser.add_argument("--epochs", default="1,2,3,default", help="for --accuracy")
    parser.add_argument("--network", default="conv", help="for --accuracy; the peer has conv only")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="for --accuracy")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.accuracy:
            table = time_to_accuracy.measure(
                folder,
                sets=options.sets.split(","),
                epochs=options.epochs.split(","),
                network=options.network,
                seeds=[int(seed) for seed in options.seeds.split(",")],
            )
        else:
            root = write_mnist(folder / "mnist")
            data = load_dataset(str(root), ReadSettings(), cache=folder / "cache")
            table = measure_throughput(root, data.train)
    describe_row = time_to_accuracy.describe if options.accuracy else describe
    for row in table:
        print(describe_row(row))
    if options.json:
        options.json.write_text(json.dumps(table, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
