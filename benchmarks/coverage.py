"""Simulate how often intervals over classes contain the true value.

    python benchmarks/coverage.py [--draws 200] [--json FILE]

Each draw has new classes: a random centre per class, a noise level per class, and images around the
centre, all of 6 images or between 2 and 12. The true value is the mean over all draws. The standard
error is that of the leave-one-class-out jackknife. Contenders: our interval (Wilson with the
effective number of classes); the same with the larger additional variance of means over images; the
same with a t quantile and without an additional variance; the logit of the value with a t quantile;
value +- t errors. All should cover 95%.
The row of the JSON file is the mean coverage over the settings; the peer is the logit.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from stages.evaluation.class_jackknife import (
    Estimate,
    class_groups,
    class_interval,
    class_jackknife_error,
)
from stages.evaluation.left_out_rankings import rank_without_each_class
from stages.evaluation.statistics import bounded_mean_interval
from stages.evaluation.verification import verify_without_each_class

Interval = Callable[[float, float, int], tuple[float, float]]

CLASSES = (10, 30, 100)
SHAPES = ((8, 0.8), (8, 0.5), (16, 0.45))  # dimensions and noise
METRICS = ("precision_at_1", "map_at_r", "verification_auc", "equal_error_rate")
UNEQUAL_SIZES = torch.tensor([2, 2, 3, 4, 6, 8, 12])


def draw_images(
    classes: int, dim: int, noise: float, unequal: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return unit vectors of new classes and their labels."""
    sizes = torch.full((classes,), 6)
    if unequal:
        sizes = UNEQUAL_SIZES[torch.randint(7, (classes,), generator=generator)]
    labels = torch.repeat_interleave(torch.arange(classes), sizes)
    centres = F.normalize(torch.randn(classes, dim, generator=generator), dim=1)
    levels = noise * torch.exp(0.5 * torch.randn(classes, generator=generator)) / math.sqrt(dim)
    offsets = levels[labels, None] * torch.randn(len(labels), dim, generator=generator)
    return F.normalize(centres[labels] + offsets, dim=1), labels


def estimate(vectors: Tensor, labels: Tensor) -> dict[str, Estimate]:
    groups = class_groups(labels)
    rankings, _ = rank_without_each_class(vectors, labels, groups)
    pairs, _ = verify_without_each_class(vectors, labels, groups)
    return {**rankings, **pairs}


def wilson_t(value: float, error: float, classes: int) -> tuple[float, float]:
    quantile = float(stats.t.ppf(0.975, classes - 1))
    count = value * (1 - value) / error**2 if error and 0 < value < 1 else classes
    centre = value + quantile**2 / (2 * count)
    half = quantile * math.sqrt(value * (1 - value) / count + (quantile / (2 * count)) ** 2)
    scale = 1 + quantile**2 / count
    return (centre - half) / scale, (centre + half) / scale


def logit_t(value: float, error: float, classes: int) -> tuple[float, float]:
    if not (error and 0 < value < 1):
        return wilson_t(value, error, classes)
    half = float(stats.t.ppf(0.975, classes - 1)) * error / (value * (1 - value))
    centre = math.log(value / (1 - value))
    return 1 / (1 + math.exp(half - centre)), 1 / (1 + math.exp(-half - centre))


def plain_t(value: float, error: float, classes: int) -> tuple[float, float]:
    half = float(stats.t.ppf(0.975, classes - 1)) * error
    return value - half, value + half


INTERVALS: dict[str, Interval] = {
    "ours": class_interval,
    "as for images": bounded_mean_interval,
    "Wilson t": wilson_t,
    "logit t": logit_t,
    "plain t": plain_t,
}


def coverages(
    classes: int, dim: int, noise: float, unequal: bool, draws: int
) -> dict[str, dict[str, float]]:
    """Return metric -> interval -> coverage, plus the mean value as "value"."""
    generator = torch.Generator().manual_seed(classes + 1000 * dim + int(100 * noise))
    points: dict[str, list[tuple[float, float]]] = {metric: [] for metric in METRICS}
    for _ in range(draws):
        estimates = estimate(*draw_images(classes, dim, noise, unequal, generator))
        for metric in METRICS:
            error = class_jackknife_error(estimates[metric].left_out)
            if error is not None:
                points[metric].append((estimates[metric].value, error))
    table = {}
    for metric, pairs in points.items():
        truth = float(np.mean([value for value, _ in pairs]))
        table[metric] = {"value": truth}
        for name, interval in INTERVALS.items():
            covered = 0
            for value, error in pairs:
                low, high = interval(value, error, classes)
                covered += low <= truth <= high
            table[metric][name] = covered / len(pairs)
    return table


def run(draws: int) -> list[dict[str, Any]]:
    """Print one line per setting and metric, and return the means."""
    print(f"{'metric':18}{'classes':>8}{'sizes':>8}{'value':>8}", end="")
    print("".join(f"{name:>15}" for name in INTERVALS))
    results: dict[tuple[str, int], list[dict[str, float]]] = {}
    for classes in CLASSES:
        for dim, noise in SHAPES:
            for unequal in (False, True):
                for metric, row in coverages(classes, dim, noise, unequal, draws).items():
                    sizes = "2 to 12" if unequal else "6"
                    print(f"{metric:18}{classes:8}{sizes:>8}{row['value']:8.3f}", end="")
                    print("".join(f"{row[name]:15.3f}" for name in INTERVALS), flush=True)
                    results.setdefault((metric, classes), []).append(row)
    rows = []
    for (metric, classes), settings in results.items():
        ours, peer = (
            float(np.mean([row[name] for row in settings])) for name in ("ours", "logit t")
        )
        rows.append(
            {
                "work": f"coverage {classes} classes, {metric}",
                "ours": ours,
                "peer": peer,
                "peer_name": "logit t",
                "ratio": abs(peer - 0.95) / max(abs(ours - 0.95), 1e-9),
                "limit": 0.95,
                "unit": "coverage",
            }
        )
        print(f"mean coverage, {classes} classes, {metric}: {ours:.3f}, logit t {peer:.3f}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=200, help="draws per setting")
    parser.add_argument("--json", type=Path, help="file for the rows as JSON")
    options = parser.parse_args()
    rows = run(options.draws)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
