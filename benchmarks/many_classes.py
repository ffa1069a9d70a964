"""Time and memory of the three stages with thousands of classes and few images of each.

    python benchmarks/many_classes.py [--classes 3000] [--images 3] [--epochs N] [--json FILE]

Each class is a random pattern of 28 x 28 pixels; its images differ in position, contrast and noise.
Every stage is a new process. Reported are wall time, the largest resident memory and the
accuracies of the report, next to the chance of guessing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]


def write_patterns(root: Path, classes: int, images: int) -> None:
    generator = np.random.default_rng(0)
    for label in range(classes):
        folder = root / f"{label:06}"
        folder.mkdir(parents=True)
        pattern = Image.fromarray(generator.integers(0, 256, (7, 7)).astype(np.uint8))
        large = np.asarray(pattern.resize((36, 36), Image.Resampling.BICUBIC), float)
        for number in range(images):
            top, left = generator.integers(0, 9, 2)
            contrast = generator.uniform(0.5, 1)
            noise = generator.normal(0, 25, (28, 28))
            pixels = 128 + contrast * (large[top : top + 28, left : left + 28] - 128) + noise
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")


def run(folder: Path, *arguments: str) -> Row:
    """Run one command of the program and return its time and largest resident memory."""
    command = [sys.executable, "-m", "pipeline", *arguments, "--cache", str(folder / "cache")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{arguments[0]} has failed")
    seconds = time.perf_counter() - start
    return {"stage": arguments[0], "seconds": seconds, "gib": usage.ru_maxrss / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, default=3000)
    parser.add_argument("--images", type=int, default=3, help="images of each class")
    parser.add_argument("--epochs", help="epochs of stage one; the program's default if left out")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_patterns(folder / "images", options.classes, options.images)
        epochs = ["--epochs", options.epochs] if options.epochs else []
        rows = [
            run(folder, "embed", "--data", "images", *epochs),
            run(folder, "classify"),
            run(folder, "report"),
        ]
        history = pd.read_csv(folder / "checkpoints" / "embedding.history.csv")
        accuracy = pd.read_csv(folder / "reports" / "accuracy.csv")
    for row in rows:
        print(f"{row['stage']:10} {row['seconds']:7.1f} s  {row['gib']:.2f} GiB")
    print(history.tail(1).to_string(index=False))
    print(accuracy[["metric", "split", "value", "count"]].to_string(index=False))
    print(f"chance {1 / options.classes:.5f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
