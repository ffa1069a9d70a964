"""Reading images: our store compared with Pillow and torchvision; the audit; memory.

Run from the repository: `python benchmarks/data.py [--json FILE] [--repeats N] [--small]
[--only PART]`. Contenders are interleaved; scores are medians. The files have just been written,
so they are read from memory, not from the disk.
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
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.data_sources import (
    PROCESSES,
    build_store,
    decode_in_pool,
    read_from_store,
    read_with_torchvision,
    write_digits,
    write_photos,
    write_tiny_images,
)
from stages.settings import ReadSettings

Row = dict[str, Any]


def measure_seconds(work: Callable[[], object]) -> float:
    """Return the duration of a function; one that returns a time is measured from that time on."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - (result if isinstance(result, float) else start)


def interleave(contenders: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Run all contenders in each repeat and return the median seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, work in contenders.items():
            times[name].append(measure_seconds(work))
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def make_row(
    work: str,
    ours: float,
    unit: str,
    *,
    peer: float | None = None,
    peer_name: str | None = None,
    limit: float | None = None,
) -> Row:
    """Print a result and return it as a row of the JSON file."""
    ratio = None
    line = f"{work:<48} {ours:>10,.3g} {unit}"
    if peer is not None:
        ratio = ours / peer if unit.endswith("/s") else peer / ours
        line += f"  {peer_name} {peer:,.3g} (ours {ratio:.2f} times better)"
    if limit is not None:
        line += f"  limit {limit:,.3g}"
    print(line, flush=True)
    return {
        "work": work,
        "ours": ours,
        "peer": peer,
        "peer_name": peer_name,
        "ratio": ratio,
        "limit": limit,
        "unit": unit,
    }


def measure_digits(folder: Path, count: int, repeats: int, pool: ProcessPoolExecutor) -> list[Row]:
    """Measure many small files."""
    root, cache = folder / "digits", folder / "cache"
    paths = write_digits(root, count)

    def rebuild(from_first_image: bool) -> float | None:
        shutil.rmtree(cache, ignore_errors=True)
        first: list[float] = []
        build_store(paths, cache, first)
        return first[0] if from_first_image else None

    times = interleave(
        {
            "pillow": lambda: decode_in_pool(pool, paths),
            "build": lambda: rebuild(from_first_image=False),
            "warm build": lambda: rebuild(from_first_image=True),
            "open": lambda: build_store(paths, cache),
            "first epoch": lambda: read_from_store(root, cache),
            "epoch": lambda: read_from_store(root, cache),
            "torchvision": lambda: read_with_torchvision(root, 28, grey=True),
        },
        repeats,
    )
    speeds = {name: count / seconds for name, seconds in times.items()}
    peer: dict[str, Any] = {"peer_name": "torchvision"}
    return [
        make_row(
            f"build {count} files of 28 x 28",
            speeds["build"],
            "images/s",
            peer=speeds["torchvision"],
            limit=speeds["pillow"],
            **peer,
        ),
        make_row(
            f"build {count} files of 28 x 28, once warm",
            speeds["warm build"],
            "images/s",
            limit=speeds["pillow"],
        ),
        make_row(f"open {count} files of 28 x 28 again", times["open"], "s"),
        make_row(
            f"start and epoch {count} files of 28 x 28",
            times["epoch"],
            "s",
            peer=times["torchvision"],
            **peer,
        ),
    ]


def measure_photos(folder: Path, count: int, repeats: int, pool: ProcessPoolExecutor) -> list[Row]:
    """Measure large files."""
    root, cache = folder / "photos", folder / "cache of photos"
    paths = write_photos(root, count)

    def rebuild() -> None:
        shutil.rmtree(cache, ignore_errors=True)
        build_store(paths, cache)

    times = interleave(
        {
            "pillow": lambda: decode_in_pool(pool, paths),
            "build": rebuild,
            "first epoch": lambda: read_from_store(root, cache),
            "epoch": lambda: read_from_store(root, cache),
            "torchvision": lambda: read_with_torchvision(root, 64, grey=False),
        },
        repeats,
    )
    return [
        make_row(
            f"build {count} photos",
            count / times["build"],
            "images/s",
            peer=count / times["torchvision"],
            peer_name="torchvision",
            limit=count / times["pillow"],
        ),
        make_row(
            f"start and epoch {count} photos",
            times["epoch"],
            "s",
            peer=times["torchvision"],
            peer_name="torchvision",
        ),
    ]


def measure_audit(folder: Path, repeats: int) -> list[Row]:
    """Measure the audit and its perceptual hash."""
    import imagehash

    from pipeline.data.audit import audit_source
    from pipeline.data.duplicates import perceptual_hash
    from pipeline.data.sources import read_source

    count = 10_000
    root, cache = folder / "audited", folder / "cache of audits"
    paths = write_digits(root, count)

    def audit() -> None:
        shutil.rmtree(cache, ignore_errors=True)
        audit_source(read_source(str(root), ReadSettings(), cache=cache), near=True)

    store = build_store(paths, folder / "cache for hashing").images
    times = interleave(
        {
            "audit": audit,
            "hash": lambda: [
                perceptual_hash(store[start : start + 1024]) for start in range(0, count, 1024)
            ],
            "imagehash": lambda: [imagehash.phash(Image.open(path)) for path in paths],
        },
        repeats,
    )
    return [
        make_row(f"audit {count} files of 28 x 28", times["audit"], "s"),
        make_row(
            f"perceptual hash {count} images",
            count / times["hash"],
            "images/s",
            peer=count / times["imagehash"],
            peer_name="imagehash",
        ),
    ]


def anonymous_megabytes() -> float:
    """Return the memory of this process that is not backed by a file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no RssAnon")


def measure_training_memory(count: int) -> dict[str, float]:
    """Return the size of a store and the anonymous memory of a few training steps, in MB."""
    import torch

    from pipeline.data.sources import load_dataset
    from stages.embedding.train import train_embedding
    from stages.settings import EmbedSettings

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        write_tiny_images(Path(name, "photos"), count)
        # Small files, resized to a large store.
        read = ReadSettings(size=128)
        data = load_dataset(str(Path(name, "photos")), read, cache=Path(name, "cache"))
        # Touch every page of the memory-mapped file.
        touched = sum(len(block) for block in data.train.blocks() if block.sum() > 0)
        assert touched == len(data.train)
        memory = [anonymous_megabytes()]

        def on_step(_: Any) -> bool:
            memory.append(anonymous_megabytes())
            return len(memory) > 6  # stops training

        train_embedding(
            data.train,
            None,
            EmbedSettings(classes_per_batch=5, images_per_class=4, epochs=2),
            device=torch.device("cpu"),
            precision=torch.float32,
            on_step=on_step,
        )
        assert len(memory) > 6
        return {"store": data.train.store.numel() / 2**20, "anonymous": max(memory)}


def measure_memory() -> list[Row]:
    """Measure the memory of training with a small and a large store, each in its own process."""
    rows = []
    for count in (250, 5000):
        command = [sys.executable, __file__, "--memory", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        result = json.loads(done.stdout)
        work = f"anonymous memory {result['store']:.0f} MB store, training"
        rows.append(make_row(work, result["anonymous"], "MB"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a tenth of the files")
    parser.add_argument("--only", choices=("digits", "photos", "audit", "memory"))
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(measure_training_memory(options.memory)))
        return
    divisor = 10 if options.small else 1
    repeats, only = options.repeats, options.only
    rows: list[Row] = []
    with (
        tempfile.TemporaryDirectory() as name,
        ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool,
    ):
        folder = Path(name)
        if only in (None, "digits"):
            rows += measure_digits(folder, 60_000 // divisor, repeats, pool)
        if only in (None, "photos"):
            rows += measure_photos(folder, 3000 // divisor, repeats, pool)
        if only in (None, "audit"):
            rows += measure_audit(folder, repeats)
        if only in (None, "memory") and sys.platform == "linux":
            rows += measure_memory()
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
