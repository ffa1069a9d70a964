"""Stage two beside the plain loop and beside scikit-learn's logistic regression.

Speed: the plain loop runs the frozen network on every batch of each of 20 epochs, as peers do; ours embeds once, trains
the head on the vectors, and on a rerun reads them from disk. Accuracy: the same vectors, our head and a logistic regression
whose C validation chose, over three seeds of stage one, with the paired 95 % interval of the difference.

    python benchmarks/stage_two.py --data photos/ --json stage_two.json
"""

import argparse
import json
import math
import statistics
import tempfile
import time
import warnings
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
from stages.records import Embeddings
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings

CPU = torch.device("cpu")
QUIET = RunContext(device="cpu", quiet=True)
EPOCHS = 20  # of the plain loop
REPEATS = 5


def plain_loop(network: torch.nn.Module, data: Dataset) -> Head:
    """Frozen network + head, training and validation images through both in each of 20 epochs, without gradients in the network."""
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


def timed(work) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def measure_speed(data: Dataset, embedding: Path, folder: Path) -> list[dict]:
    """Medians of 5, the three contenders in turn. The first time includes writing the vectors, the rerun reading them."""
    held = load_embedding(embedding)
    network, vectors = to_device(held.network, CPU), folder / "vectors"
    known = {
        "embedding_digest": held.digest,
        "fingerprint": data.fingerprint,
        "classes": held.classes,
    }

    def first() -> None:
        train, validation = embed_frozen(network, data.train, data.validation, device=CPU)
        k = train_classifier(train, validation, ClassifySettings(), device=CPU).k
        save_vectors(vectors, train, validation, {**known, "k": k})

    def again() -> None:
        train, validation, record = load_vectors(vectors, **known)
        train_classifier(
            train, validation, ClassifySettings(dropout=0.3), device=CPU, k=record["k"]
        )

    first(), again()  # warm: imports, memory
    seconds = [
        (timed(lambda: plain_loop(network, data)), timed(first), timed(again))
        for _ in range(REPEATS)
    ]
    loop, *ours = (statistics.median(column) for column in zip(*seconds, strict=True))
    return [
        {
            "work": f"stage two {len(data.train)} {name}",
            "ours": mine,
            "peer": loop,
            "peer_name": "plain loop",
            "ratio": loop / mine,
            "limit": None,
            "unit": "seconds",
        }
        for name, mine in zip(("first time", "rerun"), ours, strict=True)
    ]


def logistic_regression(train: Embeddings, validation: Embeddings) -> LogisticRegression:
    best = (-1.0, None)
    for c in 10.0 ** np.arange(-3, 5):
        model = LogisticRegression(C=c, max_iter=5000).fit(
            train.vectors.numpy(), train.labels.numpy()
        )
        right = model.score(validation.vectors.numpy(), validation.labels.numpy())
        best = max(best, (right, model), key=lambda pair: pair[0])
    return best[1]


def thin_out(data: Dataset) -> Dataset:
    """One class, the middle one, at a tenth of its images in every part."""
    rare = len(data.train.classes) // 2

    def thin(split):
        members = (split.labels == rare).nonzero()[:, 0]
        keep = torch.ones(len(split), dtype=torch.bool)
        keep[members[max(2, math.ceil(len(members) / 10)) :]] = False
        rows = keep.nonzero()[:, 0]
        return type(split)(
            split.store,
            split.rows[rows],
            split.labels[rows],
            split.classes,
            tuple(split.ids[row] for row in rows.tolist()),
        )

    return type(data)(
        **{
            **vars(data),
            "train": thin(data.train),
            "validation": thin(data.validation),
            "test": thin(data.test),
        }
    )


def measure_accuracy(name: str, data: Dataset, folder: Path, seeds: int) -> tuple[Path, list[dict]]:
    """Our head and the regression on the same vectors, the test images of all seeds pooled."""
    ours, theirs = [], []
    for seed in range(seeds):
        path = folder / name.replace(" ", "-") / f"{seed}.safetensors"
        if not path.exists():
            embed(data, data.read, EmbedSettings(seed=seed), out=path, context=QUIET)
        network = load_embedding(path).network
        train, validation = embed_frozen(network, data.train, data.validation, device=CPU)
        test = embed_split(network, data.test, device=CPU)
        head = train_classifier(train, validation, ClassifySettings(seed=seed), device=CPU).head
        with torch.inference_mode():
            named = head(test.vectors).argmax(1)
        ours.append((named == test.labels).numpy())
        theirs.append(
            logistic_regression(train, validation).predict(test.vectors.numpy())
            == test.labels.numpy()
        )
    a, b = np.concatenate(ours), np.concatenate(theirs)
    paired = mcnemar_test("classification_accuracy", "logistic_regression", "test", a, b)
    row = {
        "work": f"{name} accuracy {seeds} seeds",
        "ours": float(a.mean()),
        "peer": float(b.mean()),
        "peer_name": "scikit-learn",
        "ratio": float(a.mean() / b.mean()),
        "limit": None,
        "unit": "accuracy",
        "difference": paired.difference,
        "ci_low": paired.low,
        "ci_high": paired.high,
        "count": paired.count,
    }
    return path, [row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a folder of images, beside the bundled digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--work", type=Path, help="keep the embeddings here, and use those that are there"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = options.work or Path(name)
        sets = {"digits": load_dataset("digits", ReadSettings())}
        if options.data:
            sets["folder"] = load_dataset(options.data, ReadSettings())
        largest = list(sets)[-1]
        sets[f"{largest} one class a tenth"] = thin_out(sets[largest])
        for set_name, data in sets.items():
            embedding, accuracy = measure_accuracy(set_name, data, folder, options.seeds)
            rows += accuracy
            if set_name == largest:
                rows += measure_speed(data, embedding, folder)
    for row in rows:
        told = f"{row['ratio']:.1f} x"
        if "ci_low" in row:
            told = f"difference {100 * row['difference']:+.2f} points ({100 * row['ci_low']:+.2f} to {100 * row['ci_high']:+.2f})"
        print(
            f"{row['work']:40} ours {row['ours']:.4f}, {row['peer_name']} {row['peer']:.4f} {row['unit']}; {told}"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
