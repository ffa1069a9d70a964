"""Reading images: our store beside bare decoding and torchvision's ImageFolder + DataLoader; the audit; memory.

Run from the repository: `python benchmarks/data.py [--json FILE] [--repeats N] [--small] [--only PART]`.
Contenders take turns in one run; medians. The files are written just before, so that they are read from memory, not from the disk.
"""

import argparse
import json
import multiprocessing
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.decoding_pool import file_decoder, file_state
from pipeline.data.image_store import file_signature, open_store
from stages.settings import ReadSettings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


PROCESSES = 2


def digits(root: Path, count: int) -> list[str]:
    """Strokes on black, 28 x 28, as handwriting is: PNG files in ten folders."""
    chance = np.random.default_rng(0)
    paths = []
    for index in range(count):
        path = root / str(index % 10) / f"{index:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = np.zeros((7, 7), np.uint8)
        coarse[1:6, 1:6] = chance.integers(0, 2, (5, 5)) * chance.integers(128, 256, (5, 5))
        Image.fromarray(coarse).resize((28, 28), Image.Resampling.BICUBIC).save(path)
        paths.append(str(path))
    return sorted(paths)


def photos(root: Path, count: int) -> list[str]:
    """JPEG files from 300 to 1,200 pixels a side, smooth with some noise, in ten folders."""
    chance = np.random.default_rng(0)
    paths = []
    for index in range(count):
        path = root / str(index % 10) / f"{index:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = tuple(chance.integers(300, 1200, 2).tolist())
        coarse = Image.fromarray(chance.integers(0, 256, (24, 24, 3), np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        coarse.save(path, quality=85)
        paths.append(str(path))
    return sorted(paths)


def decode_bare(paths: list[str]) -> int:
    """The least that any reader must do."""
    return sum(np.asarray(Image.open(path)).shape[0] > 0 for path in paths)


def pass_bare(pool: ProcessPoolExecutor, paths: list[str]) -> None:
    """Two processes that are there already, half of the files each."""
    assert sum(pool.map(decode_bare, [paths[half::PROCESSES] for half in range(PROCESSES)])) == len(
        paths
    )


def build(paths: list[str], cache: Path, first: list[float] | None = None) -> Any:
    """Build or open a store. first: gets the moment of the first image, when the processes are up."""

    def show(caption: str, total: int, items: Iterable[Any]) -> Iterator[Any]:
        for number, item in enumerate(items):
            if number == 0 and first is not None:
                first.append(time.perf_counter())
            yield item

    files = [(path, file_state(path)) for path in paths]
    read = ReadSettings()
    with file_decoder(files, read.resize) as outcomes:
        return open_store(cache, file_signature(files), outcomes, len(files), read, show)


def pass_loader(root: Path, size: int, grey: bool) -> None:
    """One epoch of the usual recipe."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = [
        *([transforms.Grayscale()] if grey else []),
        transforms.Resize(size),
        transforms.CenterCrop(size),
        transforms.ToTensor(),
    ]
    data = ImageFolder(root, transforms.Compose(steps))
    loader = DataLoader(data, batch_size=160, shuffle=True, num_workers=PROCESSES)
    assert sum(len(labels) for _, labels in loader) == len(data)


def pass_store(paths: list[str], root: Path, cache: Path) -> None:
    """One epoch from the store, as training reads it: random batches, as float tensors."""
    import torch

    from pipeline.data.sources import load_dataset

    data = load_dataset(str(root), ReadSettings(), cache=cache)
    order = torch.randperm(len(data.train))
    assert sum(
        len(data.train.take(order[start : start + 160]).float() / 255)
        for start in range(0, len(order), 160)
    ) == len(order)


def seconds(work: Callable[[], object]) -> float:
    """That a piece of work takes; one that returns a moment is timed from then."""
    start = time.perf_counter()
    began = work()
    return time.perf_counter() - (began if isinstance(began, float) else start)


def take_turns(contenders: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, work in contenders.items():
            times[name].append(seconds(work))
    return {name: statistics.median(found) for name, found in times.items()}


def row(
    work: str,
    ours: float,
    peer: float | None,
    peer_name: str | None,
    limit: float | None,
    unit: str,
) -> dict[str, Any]:
    better = None if peer is None else (ours / peer if unit.endswith("/s") else peer / ours)
    found = {
        "work": work,
        "ours": ours,
        "peer": peer,
        "peer_name": peer_name,
        "ratio": better,
        "limit": limit,
        "unit": unit,
    }
    told = "" if peer is None else f"  {peer_name} {peer:,.3g} (ours {better:.2f} times better)"
    bound = "" if limit is None else f"  limit {limit:,.3g}"
    print(f"{work:<48} {ours:>10,.3g} {unit}{told}{bound}", flush=True)
    return found


def small_files(
    folder: Path, count: int, repeats: int, pool: ProcessPoolExecutor
) -> list[dict[str, Any]]:
    paths = digits(folder / "digits", count)
    cache = folder / "cache"

    def ours(warm: bool) -> float | None:
        shutil.rmtree(cache, ignore_errors=True)
        first: list[float] = []
        build(paths, cache, first)
        return first[0] if warm else None

    times = take_turns(
        {
            "bare": lambda: pass_bare(pool, paths),
            "build": lambda: ours(False),
            "warm": lambda: ours(True),
            "open": lambda: build(paths, cache),
            "epoch": lambda: pass_store(paths, folder / "digits", cache),
            "again": lambda: pass_store(paths, folder / "digits", cache),
            "loader": lambda: pass_loader(folder / "digits", 28, True),
        },
        repeats,
    )
    return [
        row(
            f"build {count} files of 28 x 28",
            count / times["build"],
            count / times["loader"],
            "torchvision",
            count / times["bare"],
            "images/s",
        ),
        row(
            f"build {count} files of 28 x 28, once warm",
            count / times["warm"],
            None,
            None,
            count / times["bare"],
            "images/s",
        ),
        row(f"open {count} files of 28 x 28 again", times["open"], None, None, None, "s"),
        row(
            f"start and epoch {count} files of 28 x 28",
            times["again"],
            times["loader"],
            "torchvision",
            None,
            "s",
        ),
    ]


def large_files(
    folder: Path, count: int, repeats: int, pool: ProcessPoolExecutor
) -> list[dict[str, Any]]:
    paths = photos(folder / "photos", count)
    cache = folder / "cache of photos"

    def ours() -> None:
        shutil.rmtree(cache, ignore_errors=True)
        build(paths, cache)

    times = take_turns(
        {
            "bare": lambda: pass_bare(pool, paths),
            "build": ours,
            "first": lambda: pass_store(paths, folder / "photos", cache),
            "epoch": lambda: pass_store(paths, folder / "photos", cache),
            "loader": lambda: pass_loader(folder / "photos", 64, False),
        },
        repeats,
    )
    return [
        row(
            f"build {count} photos",
            count / times["build"],
            count / times["loader"],
            "torchvision",
            count / times["bare"],
            "images/s",
        ),
        row(
            f"start and epoch {count} photos",
            times["epoch"],
            times["loader"],
            "torchvision",
            None,
            "s",
        ),
    ]


def audits(folder: Path, repeats: int) -> list[dict[str, Any]]:
    import imagehash

    from pipeline.data.audit import audit_source
    from pipeline.data.duplicates import perceptual_hash
    from pipeline.data.sources import read_source

    count = 10_000
    paths = digits(folder / "audited", count)

    def whole() -> None:
        shutil.rmtree(folder / "cache of audits", ignore_errors=True)
        audit_source(
            read_source(str(folder / "audited"), ReadSettings(), cache=folder / "cache of audits"),
            near=True,
        )

    store = build(paths, folder / "cache for hashing").images
    times = take_turns(
        {
            "whole": whole,
            "hash": lambda: [
                perceptual_hash(store[start : start + 1024]) for start in range(0, count, 1024)
            ],
            "imagehash": lambda: [imagehash.phash(Image.open(path)) for path in paths],
        },
        repeats,
    )
    return [
        row(f"audit {count} files of 28 x 28", times["whole"], None, None, None, "s"),
        row(
            f"perceptual hash {count} images",
            count / times["hash"],
            count / times["imagehash"],
            "imagehash",
            None,
            "images/s",
        ),
    ]


def anonymous_memory(count: int) -> dict[str, float]:
    """MB of this process that no file backs, at its highest while `count` images are embedded for a few steps."""
    import torch

    from pipeline.data.sources import load_dataset
    from stages.embedding.train import train_embedding
    from stages.settings import EmbedSettings

    class Enough(Exception):
        pass

    def measure() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

    torch.set_num_threads(1)
    highest: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        chance = np.random.default_rng(0)
        for index in range(count):  # tiny files, a large store
            path = Path(name, "photos", str(index % 10), f"{index}.bmp")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(chance.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
        data = load_dataset(
            str(Path(name, "photos")), ReadSettings(size=96), cache=Path(name, "cache")
        )
        total = sum(
            int(block.sum() > 0) * len(block) for block in data.train.blocks()
        )  # every page is touched
        assert total == len(data.train)
        highest.append(measure())

        def on_step(_: Any) -> None:
            highest.append(measure())
            if len(highest) > 6:
                raise Enough

        try:
            settings = EmbedSettings(classes_per_batch=5, images_per_class=4, epochs=2)
            train_embedding(
                data.train,
                None,
                settings,
                device=torch.device("cpu"),
                precision=torch.float32,
                on_step=on_step,
                on_epoch=lambda _: None,
            )
        except Enough:
            pass
        assert len(highest) > 6
        return {"store": data.train.store.numel() / 2**20, "anonymous": max(highest)}


def memory() -> list[dict[str, Any]]:
    found = []
    for count in (1000, 20_000):
        done = subprocess.run(
            [sys.executable, __file__, "--memory", str(count)],
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(json.loads(done.stdout))
    return [
        row(
            f"anonymous memory {result['store']:.0f} MB store, training",
            result["anonymous"],
            None,
            None,
            None,
            "MB",
        )
        for result in found
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a tenth of the files")
    parser.add_argument("--only", choices=("digits", "photos", "audit", "memory"))
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(anonymous_memory(options.memory)))
        return
    share = 10 if options.small else 1
    with (
        tempfile.TemporaryDirectory() as name,
        ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool,
    ):
        folder = Path(name)
        parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
            "digits": lambda: small_files(folder, 60_000 // share, options.repeats, pool),
            "photos": lambda: large_files(folder, 3000 // share, options.repeats, pool),
            "audit": lambda: audits(folder, options.repeats),
            "memory": lambda: memory() if sys.platform == "linux" else [],
        }
        rows = [
            found
            for name, part in parts.items()
            if options.only in (None, name)
            for found in part()
        ]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
