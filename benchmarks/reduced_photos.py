"""Reduced JPEG photos compared with photos decoded in full: pixels and time.

    apt-get install tuxpaint-stamps-default

Run from the repository: `python benchmarks/reduced_photos.py [--json FILE] [--small]`. Stamps of at
least 250 pixels are enlarged to 1,000 to 3,000 pixels, put on white and saved as JPEG files of
quality 75, 85 and 95. Times are CPU times of one process; the contenders are interleaved.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.photo_sets import STAMPS
from pipeline.data import jpeg_reduction
from pipeline.data.decode import read_pixels

SIZES = (64, 224)
OVERSIZES = (1, 2, 3, 4)


def write_stamps(folder: Path, count: int) -> list[str]:
    """Write enlarged stamps as JPEG files."""
    generator = random.Random(0)
    stamps = []
    for path in sorted(STAMPS.rglob("*.png")):
        with Image.open(path) as image:
            if max(image.size) >= 250:
                stamps.append(path)
    paths = []
    for number, path in enumerate(generator.sample(stamps, min(count, len(stamps)))):
        stamp = Image.open(path).convert("RGBA")
        scale = generator.randint(1000, 3000) / max(stamp.size)
        width, height = (max(1, round(side * scale)) for side in stamp.size)
        white = Image.new("RGBA", stamp.size, "white")
        photo = Image.alpha_composite(white, stamp).convert("RGB").resize((width, height))
        paths.append(str(folder / f"{number}.jpg"))
        photo.save(paths[-1], quality=(75, 85, 95)[number % 3])
    return paths


def compare(paths: list[str], size: int, oversize: int) -> dict[str, Any]:
    """Read photos reduced and in full, and return differences in grey levels and CPU times."""
    jpeg_reduction.OVERSIZE = oversize
    seconds = {"reduced": 0.0, "full": 0.0}
    means, largest, beyond = [], 0, []
    for path in paths:
        squares = []
        for jpeg in seconds:
            start = time.process_time()
            pixels = read_pixels(path, size=size, channels=3, resize="stretch", jpeg=jpeg)
            seconds[jpeg] += time.process_time() - start
            assert not isinstance(pixels, str), pixels
            squares.append(pixels.astype(int))
        difference = np.abs(squares[0] - squares[1])
        means.append(float(difference.mean()))
        beyond.append(float((difference > 2).mean()))
        largest = max(largest, int(difference.max()))
    return {
        "size": size,
        "oversize": oversize,
        "mean": float(np.mean(means)),
        "largest mean of a photo": max(means),
        "share above 2 levels": float(np.mean(beyond)),
        "largest": largest,
        "reduced ms": seconds["reduced"] / len(paths) * 1e3,
        "full ms": seconds["full"] / len(paths) * 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--small", action="store_true", help="a tenth of the photos")
    options = parser.parse_args()
    used = jpeg_reduction.OVERSIZE
    rows = []
    with tempfile.TemporaryDirectory() as name:
        paths = write_stamps(Path(name), 10 if options.small else 100)
        for size in SIZES:
            for oversize in OVERSIZES:
                row = compare(paths, size, oversize)
                rows.append(row)
                shown = ", ".join(
                    f"{key} {value:.3g}" for key, value in row.items() if key != "oversize"
                )
                print(f"oversize {oversize}{' (used)' if oversize == used else ''}: {shown}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
