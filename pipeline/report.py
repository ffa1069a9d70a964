"""The comparison as files: CSVs for programs, a page for people."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from pipeline.checkpoint import write_atomically
from stages.records import Score, Scored, Split

TITLES = {
    "knn_accuracy": "kNN accuracy",
    "triplet_accuracy": "Triplet accuracy",
    "classification_accuracy": "Classification accuracy",
    "precision_at_1": "Precision@1",
    "r_precision": "R-precision",
    "map_at_r": "MAP@R",
    "mean_average_precision": "Mean average precision",
    "majority_accuracy": "Baseline: most frequent class",
    "pixel_knn_accuracy": "Baseline: kNN on raw pixels",
    "untrained_knn_accuracy": "Baseline: kNN, network untrained",
}
COLUMNS = ("run", "metric", "split", "value", "ci_low", "ci_high", "count", "definition")


@dataclass(frozen=True, eq=False)
class Comparison:
    """One run, scored: its name, both checkpoints' records, the images it was judged on and the figures."""

    run: str
    embedding: Mapping[str, Any]
    classifier: Mapping[str, Any]
    test: Split
    gallery_ids: tuple[str, ...]
    scored: Scored
    notes: tuple[str, ...]


def write_report(folder: Path, comparison: Comparison) -> None:
    """Write `accuracy.csv`, `predictions.csv` and `report.html` below the folder, each whole or not at all."""
    for name, content in (
        ("accuracy.csv", accuracy_table(comparison).to_csv(index=False)),
        ("predictions.csv", prediction_table(comparison).to_csv(index=False)),
        ("report.html", render_page(comparison)),
    ):
        write_atomically(folder / name, content.encode("utf-8", "surrogateescape"))


def accuracy_table(comparison: Comparison) -> pd.DataFrame:
    """One row a figure, with the contract's columns."""
    rows = [
        (comparison.run, s.metric, s.split, _digits(s.value), _digits(s.low), _digits(s.high), s.count, s.definition)
        for s in comparison.scored.scores
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def prediction_table(comparison: Comparison) -> pd.DataFrame:
    """One row a test image, with the contract's columns."""
    test, prediction = comparison.test, comparison.scored.prediction
    names = np.array(test.classes, dtype=object)
    triplet = [("" if math.isnan(value) else f"{value:.6f}") for value in prediction.triplet_accuracy]
    return pd.DataFrame(
        {
            "run": comparison.run,
            "id": test.ids,
            "label": names[test.labels.numpy()],
            "knn_label": names[prediction.knn],
            "classifier_label": names[prediction.classifier],
            "classifier_probability": [f"{value:.6f}" for value in prediction.probability],
            "triplet_accuracy": triplet,
            "nearest_id": [comparison.gallery_ids[row] for row in prediction.nearest],
        }
    )


def text_table(scores: tuple[Score, ...]) -> str:
    """The comparison for a terminal."""
    lines = [f"{'':34}{'value':>8}   {'95 % interval':<18}{'counted':>14}"]
    for score in scores:
        value = "-" if score.value is None else f"{score.value:.4f}"
        interval = "" if score.low is None or score.high is None else f"{score.low:.4f} to {score.high:.4f}"
        unit = "triplets" if score.metric == "triplet_accuracy" else "images"
        lines.append(f"{TITLES[score.metric]:34}{value:>8}   {interval:<18}{score.count:>14,} {unit}")
    return "\n".join(lines)


def verdict(scores: tuple[Score, ...]) -> str:
    """The answer in two sentences."""
    by_metric = {score.metric: score for score in scores}
    right, known, raw = (by_metric[f"{name}_accuracy"] for name in ("classification", "knn", "pixel_knn"))
    return (
        f"The classifier is right on {_percent(right.value)} of {right.count:,} unseen images "
        f"(95 % interval {_percent(right.low)} to {_percent(right.high)}), kNN on the embedding on {_percent(known.value)}. "
        f"kNN on raw pixels reaches {_percent(raw.value)}."
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def render_page(comparison: Comparison) -> str:
    """`report.html`: one file that needs no network. Class and file names are untrusted, so escaping is on."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline", "templates"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    test, prediction = comparison.test, comparison.scored.prediction
    labels, size = test.labels.numpy(), len(test.classes)
    confusion = np.zeros((size, size), dtype=int)
    np.add.at(confusion, (labels, prediction.classifier), 1)
    confused = sorted(((int(confusion[a, b]), a, b) for a, b in zip(*np.nonzero(confusion), strict=True) if a != b), reverse=True)
    classes = [
        {
            "name": name,
            "count": int(confusion[c].sum()),
            "classifier": _percent(confusion[c, c] / confusion[c].sum()) if confusion[c].sum() else "-",
            "knn": _percent(float((prediction.knn[labels == c] == c).mean())) if confusion[c].sum() else "-",
        }
        for c, name in enumerate(test.classes)
    ]
    return environment.get_template("report.html").render(
        run=comparison.run,
        verdict=verdict(comparison.scored.scores),
        scores=comparison.scored.scores,
        titles=TITLES,
        percent=_percent,
        curves=_curves(comparison.embedding["history"]),
        epoch=comparison.embedding["epoch"],
        classes=classes,
        confused=[(count, test.classes[a], test.classes[b]) for count, a, b in confused[:20]],
        embedding=comparison.embedding,
        classifier=comparison.classifier,
        notes=comparison.notes,
    )


def _curves(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The training log as polylines in a 300 x 100 box, each scaled to its own range."""
    captions = {
        "loss": "loss, mean over active triplets",
        "active_share": "active triplets, share",
        "mean_distance": "mean distance between two images",
        "val_knn": "validation kNN accuracy",
        "val_triplet": "validation triplet accuracy",
    }
    curves = []
    for name, caption in captions.items():
        values = [log[name] for log in history]
        if len(values) < 2 or None in values:
            continue
        low, high = min(values), max(values)
        points = " ".join(
            f"{300 * i / (len(values) - 1):.1f},{100 - 100 * (value - low) / ((high - low) or 1):.1f}" for i, value in enumerate(values)
        )
        curves.append({"caption": caption, "points": points, "first": values[0], "last": values[-1], "low": low, "high": high})
    return curves
