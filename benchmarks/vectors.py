"""Vectors of many files: `pipeline vectors` compared with a plain loop over a DataLoader.

Run from the repository: `python benchmarks/vectors.py [--json FILE] [--files N] [--photos N]
[--repeats N]`. Each contender is a new process, and its start counts. Contenders are interleaved;
scores are medians. The files have just been written, so they are read from memory, not from the
disk. The network has random weights. Peak memory is that of the largest process: workers of the
DataLoader come on top.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.data import make_row
from benchmarks.data_sources import decode_with_pillow, write_digits, write_photos

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
DIM, BATCH, WORKERS = 128, 128, 2


class Run(NamedTuple):
    """Duration and largest memory of a process."""

    seconds: float
    megabytes: float


def run_process(*arguments: object) -> Run:
    """Run Python in a new process."""
    command = [sys.executable, *map(str, arguments)]
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise RuntimeError(f"{' '.join(command)} has failed")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return Run(seconds, usage.ru_maxrss / unit)


def make_checkpoint(folder: Path, write: Callable[[Path, int], list[str]]) -> Path:
    """Train one epoch on a few images of the same kind and return the embedding."""
    write(folder / "few", 200)
    out = folder / "embedding.safetensors"
    options = ("--epochs", 1, "--dim", DIM, "--network", "conv", "--quiet", "--out", out)
    run_process(
        *("-m", "pipeline", "embed", "--data", folder / "few", "--cache", folder / "cache"),
        *options,
    )
    return out


def embed_plainly(images: Path, checkpoint: Path, out: Path) -> None:
    """Embed all images of a folder in the obvious way."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    from pipeline.checkpoint import load_embedder
    from pipeline.data.resizing import fit_to_square, to_channels

    embedder = load_embedder(checkpoint)
    read = embedder.record["read"]

    class Images(Dataset[torch.Tensor]):
        def __init__(self) -> None:
            self.paths = sorted(path for path in images.rglob("*") if path.is_file())

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> torch.Tensor:
            with Image.open(self.paths[index]) as image:
                pixels = fit_to_square(image, read["size"], read["resize"])
            return torch.from_numpy(to_channels(pixels, read["channels"]).copy())

    vectors = []
    with torch.no_grad():
        for batch in DataLoader(Images(), batch_size=BATCH, num_workers=WORKERS):
            vectors.append(embedder.network(batch).numpy())
    np.save(out, np.concatenate(vectors))


def decoding_speed(paths: list[str]) -> float:
    """Return the images per second that Pillow decodes on all cores, without a network."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    shares = [paths[start::cores] for start in range(cores or 1)]
    with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
        list(pool.map(decode_with_pillow, [share[:1] for share in shares]))  # start
        start = time.perf_counter()
        assert sum(pool.map(decode_with_pillow, shares)) == len(paths)
        return len(paths) / (time.perf_counter() - start)


def measure(
    kind: str, count: int, repeats: int, write: Callable[[Path, int], list[str]]
) -> list[Row]:
    """Measure throughput and memory on files of one kind."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = make_checkpoint(folder, write)
        paths = write(folder / "all", count)
        write(folder / "tenth", count // 10)

        def ours(images: str) -> Run:
            return run_process(
                *("-m", "pipeline", "vectors", folder / images, "--embedding", checkpoint),
                *("--out", folder / "ours.npz", "--force", "--quiet"),
            )

        def peer(images: str) -> Run:
            out = folder / "peer.npy"
            return run_process(__file__, "--plain", folder / images, checkpoint, out)

        runs: dict[str, list[Run]] = {"ours": [], "peer": [], "tenth": []}
        limits = []
        for _ in range(repeats):
            runs["tenth"].append(ours("tenth"))
            runs["peer"].append(peer("all"))
            runs["ours"].append(ours("all"))
            limits.append(decoding_speed(paths))
        with np.load(folder / "ours.npz") as file:
            difference = np.abs(file["vectors"] - np.load(folder / "peer.npy")).max()
        print(f"largest difference of the vectors: {difference:.1e}")
        # The plain loop decodes photos in full.
        assert difference < (0.01 if kind == "photos" else 1e-5)
    seconds = {key: statistics.median(run.seconds for run in each) for key, each in runs.items()}
    memory = {key: statistics.median(run.megabytes for run in each) for key, each in runs.items()}
    work = f"vectors {count} {kind}"
    return [
        make_row(
            work,
            count / seconds["ours"],
            "images/s",
            peer=count / seconds["peer"],
            peer_name="plain loop",
            limit=statistics.median(limits),
        ),
        make_row(
            f"{work}, peak memory",
            memory["ours"],
            "MB",
            peer=memory["peer"],
            peer_name="plain loop",
        ),
        make_row(f"vectors {count // 10} {kind}, peak memory", memory["tenth"], "MB"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--files", type=int, default=100_000, help="small files, 28 x 28")
    parser.add_argument("--photos", type=int, default=2000, help="photos; 0 leaves them out")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--plain", nargs=3, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        embed_plainly(*options.plain)
        return
    rows = measure("files of 28 x 28", options.files, options.repeats, write_digits)
    if options.photos:
        rows += measure("photos", options.photos, options.repeats, write_photos)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
