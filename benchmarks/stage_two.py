"""Compare stage two with a plain training loop and with scikit-learn's logistic regression.

Speed: the plain loop applies the frozen network to every batch of 20 epochs, as other programs do.
Stage two embeds each image once, trains the head on the vectors, and reads them from disk when it
runs again. Accuracy: our head and a logistic regression whose C is chosen on validation, on the
same vectors, over three seeds of stage one, with the paired 95% interval of the difference.

    python benchmarks/stage_two.py --data photos/ --json stage_two.json
"""

import argparse
import json
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from pipeline.checkpoint import load_embedding
from pipeline.commands.embed import embed
from pipeline.context import RunContext
from pipeline.data.dataset import Dataset
from pipeline.data.sources import load_dataset
from pipeline.vector_cache import load_vectors, save_vectors
from stages.classifier.frozen_embedding import embed_frozen
from stages.classifier.train import train_classifier
from stages.evaluation.paired_tests import mcnemar_test
from stages.network.embedding_net import to_device
from stages.network.head import Head
from stages.network.inference import embed_split
from stages.records import Embeddings, Split
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings

CPU = torch.device("cpu")
QUIET = RunContext(device="cpu", quiet=True)
EPOCHS = 20  # of the plain loop
REPEATS = 5


def plain_loop(network: torch.nn.Module, data: Dataset) -> Head:
    """Train a head with Adam, and embed all training and validation images in every epoch."""
    head = Head(network.project.out_features, len(data.train.classes))
    optimiser = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(EPOCHS):
        head.train()
        for rows in torch.randperm(len(data.train)).split(256):
            with torch.inference_mode():
                vectors = network(data.train.take(rows))
            loss = F.nll_loss(head(vectors.clone()), data.train.labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.inference_mode():
            head.eval()
            for images in data.validation.blocks(256):
                head(network(images))
    return head


def measure_seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure_speed(data: Dataset, embedding: Path, folder: Path) -> list[dict]:
    """Return the median seconds of interleaved runs.

    The first run of stage two writes the vectors to disk, and the rerun reads them.
    """
    checkpoint = load_embedding(embedding)
    network, vectors = to_device(checkpoint.network, CPU), folder / "vectors"
    identity = {"embedding_digest": checkpoint.digest, "fingerprint": data.fingerprint}

    def first_run() -> None:
        train, validation = embed_frozen(network, data.train, data.validation, device=CPU)
        k = train_classifier(train, validation, ClassifySettings(), device=CPU).k
        save_vectors(vectors, train, validation, {**identity, "ids": data.train.ids, "k": k})

    def rerun() -> None:
        train, validation, record = load_vectors(vectors, **identity, classes=checkpoint.classes)
        settings = ClassifySettings(dropout=0.3)
        train_classifier(train, validation, settings, device=CPU, k=record["k"])

    first_run()  # warm up: imports and memory
    rerun()
    seconds = {"plain loop": [], "first time": [], "rerun": []}
    for _ in range(REPEATS):
        seconds["plain loop"].append(measure_seconds(lambda: plain_loop(network, data)))
        seconds["first time"].append(measure_seconds(first_run))
        seconds["rerun"].append(measure_seconds(rerun))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return [
        {
            "work": f"stage two {len(data.train)} {name}",
            "ours": median[name],
            "peer": median["plain loop"],
            "peer_name": "plain loop",
            "ratio": median["plain loop"] / median[name],
            "limit": None,
            "unit": "seconds",
        }
        for name in ("first time", "rerun")
    ]


def best_logistic_regression(train: Embeddings, validation: Embeddings) -> LogisticRegression:
    """Fit one logistic regression per C and return the best on validation."""
    best_accuracy, best_model = -1.0, None
    for c in 10.0 ** np.arange(-3, 5):
        model = LogisticRegression(C=c, max_iter=5000)
        model.fit(train.vectors.numpy(), train.labels.numpy())
        accuracy = model.score(validation.vectors.numpy(), validation.labels.numpy())
        if accuracy > best_accuracy:
            best_accuracy, best_model = accuracy, model
    return best_model


def make_one_class_rare(data: Dataset) -> Dataset:
    """Keep a tenth of the images of the middle class in every split."""
    rare_class = len(data.train.classes) // 2

    def reduce(split: Split) -> Split:
        members = (split.labels == rare_class).nonzero()[:, 0]
        keep = torch.ones(len(split), dtype=torch.bool)
        keep[members[max(2, math.ceil(len(members) / 10)) :]] = False
        return split.select(keep.nonzero()[:, 0])

    return replace(
        data,
        train=reduce(data.train),
        validation=reduce(data.validation),
        test=reduce(data.test),
    )


def measure_accuracy(name: str, data: Dataset, folder: Path, seeds: int) -> tuple[Path, dict]:
    """Compare our head with logistic regression on the test images of all seeds together.

    Returns the checkpoint of the last seed's embedding and the row of scores.
    """
    head_correct, reference_correct = [], []
    for seed in range(seeds):
        path = folder / name.replace(" ", "-") / f"{seed}.safetensors"
        if not path.exists():
            embed(data, data.read, EmbedSettings(seed=seed), out=path, context=QUIET)
        network = load_embedding(path).network
        train, validation = embed_frozen(network, data.train, data.validation, device=CPU)
        test = embed_split(network, data.test, device=CPU)
        head = train_classifier(train, validation, ClassifySettings(seed=seed), device=CPU).head
        with torch.inference_mode():
            head_correct.append((head(test.vectors).argmax(1) == test.labels).numpy())
        reference = best_logistic_regression(train, validation)
        reference_correct.append(reference.predict(test.vectors.numpy()) == test.labels.numpy())
    head_correct, reference_correct = map(np.concatenate, (head_correct, reference_correct))
    paired = mcnemar_test(
        "classification_accuracy", "logistic_regression", "test", head_correct, reference_correct
    )
    row = {
        "work": f"{name} accuracy {seeds} seeds",
        "ours": float(head_correct.mean()),
        "peer": float(reference_correct.mean()),
        "peer_name": "scikit-learn",
        "ratio": float(head_correct.mean() / reference_correct.mean()),
        "limit": None,
        "unit": "accuracy",
        "difference": paired.difference,
        "ci_low": paired.low,
        "ci_high": paired.high,
        "count": paired.count,
    }
    return path, row


def describe(row: dict) -> str:
    """Return a row of scores as a line of text."""
    comparison = f"{row['ratio']:.1f} x"
    if "ci_low" in row:
        low, high = 100 * row["ci_low"], 100 * row["ci_high"]
        comparison = f"difference {100 * row['difference']:+.2f} points ({low:+.2f} to {high:+.2f})"
    peer = f"{row['peer_name']} {row['peer']:.4f} {row['unit']}"
    return f"{row['work']:40} ours {row['ours']:.4f}, {peer}; {comparison}"


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a folder of images to measure in addition to the digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--work", type=Path, help="folder in which embeddings are kept and found again"
    )
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    warnings.filterwarnings("ignore", category=FutureWarning)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        datasets = {"digits": load_dataset("digits", ReadSettings())}
        if options.data:
            datasets["folder"] = load_dataset(options.data, ReadSettings())
        largest = list(datasets)[-1]
        datasets[f"{largest} one class a tenth"] = make_one_class_rare(datasets[largest])
        for name, data in datasets.items():
            embedding, row = measure_accuracy(name, data, folder, options.seeds)
            rows.append(row)
            if name == largest:
                rows += measure_speed(data, embedding, folder)
    for row in rows:
        print(describe(row))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
