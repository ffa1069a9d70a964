"""Search nearest neighbours exactly, next to faiss, and in a file of a million vectors.

    python benchmarks/search.py [--json FILE] [--quick]

The vectors have 128 dimensions, float32. Half of the 100,000 vectors in memory are random; the
others are in 500 clusters, and a fifth of these are copies. The peer is faiss's ``IndexFlatL2``,
which is exact up to the rounding of float32. We count the neighbours in which both differ, and
compare their distances in float64. The limit is the time to read the vectors once. Times are
medians of 5 interleaved runs, with as many threads for both.

Then a gallery file of a million vectors is searched in a new process: the time to open and
check it, seconds per query and per 128 queries, and the peak of memory above the interpreter with
its imports. The file is in the system's cache. The limit is the time to read its vectors once.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.checkpoint_header import make_header
from stages.gallery import gallery_of
from stages.network.digest import TensorBytes, state_digest, streamed_digest, tensor_bytes
from stages.network.embedding_net import EmbeddingNet
from stages.search import search
from stages.settings import ReadSettings

DIM, K, REPEATS = 128, 10, 5
BLOCK = 65_536
IN_FILE = 1_000_000


def mixed_vectors(count: int) -> Tensor:
    """Return random unit vectors, clusters, and copies, in random order."""
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(count // 2, DIM, generator=generator)
    centres = torch.randn(500, DIM, generator=generator)
    members = torch.randint(500, (count - len(random),), generator=generator)
    noise = 0.2 * torch.randn(len(members), DIM, generator=generator)
    clustered = centres[members] + noise
    copies = len(clustered) // 5
    clustered[:copies] = clustered[copies : 2 * copies]
    vectors = torch.cat([random, clustered])
    return F.normalize(vectors[torch.randperm(count, generator=generator)], dim=1)


def median_seconds(contenders: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the median seconds of interleaved runs, after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(REPEATS + 1):
        for name, work in contenders.items():
            start = time.perf_counter()
            work()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def compare_in_memory(count: int) -> list[dict[str, Any]]:
    """Return the rows of the comparison with faiss."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    vectors = mixed_vectors(count)
    gallery = gallery_of(vectors, ("",) * count, embedding_digest="")
    index = faiss.IndexFlatL2(DIM)
    index.add(vectors.numpy())
    noise = 0.05 * torch.randn(128, DIM, generator=torch.Generator().manual_seed(1))
    queries = F.normalize(vectors[:128] + noise * (torch.arange(128) % 2)[:, None], dim=1)
    ours, theirs = search(queries, gallery, k=K), index.search(queries.numpy(), K)[1]
    describe_differences(queries, vectors, ours.rows.numpy(), theirs)
    rows = []
    for number in (1, 128):
        part = queries[:number].contiguous()
        seconds = median_seconds(
            {
                "ours": lambda part=part: search(part, gallery, k=K),
                "peer": lambda part=part: index.search(part.numpy(), K),
                "limit": lambda: float(vectors.sum()),
            }
        )
        work = f"search {count} with {number} {'query' if number == 1 else 'queries'}"
        rows.append(
            {
                "work": work,
                "ours": seconds["ours"],
                "peer": seconds["peer"],
                "peer_name": "faiss-cpu",
                "ratio": seconds["peer"] / seconds["ours"],
                "limit": seconds["limit"],
                "unit": "s",
            }
        )
    return rows


def describe_differences(
    queries: Tensor, vectors: Tensor, ours: np.ndarray, theirs: np.ndarray
) -> None:
    """Print how many neighbours differ from faiss's, and by how much their distances do."""
    rows = np.arange(len(queries))[:, None]
    q, v = queries.double().numpy(), vectors.double().numpy()
    distances = [np.linalg.norm(q[rows] - v[neighbours], axis=2) for neighbours in (ours, theirs)]
    differ = ours != theirs
    # Where the order differs, the distance at this rank must be the same up to float32 rounding
    # of squared distances near 2; ours must never be the larger one.
    excess = np.abs(distances[0] - distances[1])
    print(f"neighbours in which faiss differs: {differ.sum()} of {differ.size}")
    sets = sum(set(a) != set(b) for a, b in zip(ours.tolist(), theirs.tolist(), strict=True))
    print(f"queries with another set of {K} neighbours: {sets} of {len(ours)}")
    print(f"largest difference of the distances at one rank: {excess.max():.1e}")
    last = distances[0][:, -1] - distances[1][:, -1]
    assert last.max() <= 1e-7, "faiss has found nearer neighbours"
    assert excess.max() < 2e-3


def random_blocks(count: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(2)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        yield F.normalize(torch.randn(size, DIM, generator=generator), dim=1)


def write_gallery(path: Path, count: int) -> None:
    """Write a gallery of random vectors in blocks, with paths as ids and 100 classes."""
    network = EmbeddingNet(channels=3, size=64, dim=DIM)
    record = {
        "network": network.config,
        "read": asdict(ReadSettings(size=64, channels=3)),
        "classes": [str(index) for index in range(100)],
        "embedding_digest": state_digest(network.state_dict()),
        "ids": [f"photos/class {row % 100}/image-{row:08d}.jpg" for row in range(count)],
        "versions": {},
    }
    tensors = {
        "vectors": TensorBytes(
            torch.float32,
            (count, DIM),
            lambda: (block.numpy().tobytes() for block in random_blocks(count)),
        ),
        "labels": tensor_bytes(torch.arange(count) % 100),
    }
    for name, value in network.state_dict().items():
        tensors[f"embedding.{name}"] = tensor_bytes(value)
    header: dict[str, Any] = {
        "__metadata__": make_header("gallery", streamed_digest(tensors), record)
    }
    position = 0
    for name, tensor in tensors.items():
        dtype = {torch.float32: "F32", torch.int64: "I64"}[tensor.dtype]
        end = position + int(np.prod(tensor.shape)) * tensor.dtype.itemsize
        header[name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            for block in tensor.blocks():
                file.write(block)


def peak_memory() -> float:
    """Return the peak memory of this process in MB, from Linux.

    ``getrusage`` would also count the memory of the parent process before ``exec``.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1e3


def print_cost(path: str) -> None:
    """Print the cost of searching a file as JSON; to be run in a separate process."""
    import pipeline.commands.search  # noqa: F401  # the imports of the command
    from pipeline.open_gallery import open_gallery

    before = peak_memory()
    start = time.perf_counter()
    gallery, _ = open_gallery(Path(path), None)
    cost = {"open": time.perf_counter() - start}
    queries = F.normalize(torch.randn(128, DIM), dim=1)
    seconds = median_seconds(
        {
            "1 query": lambda: search(queries[:1], gallery, k=K),
            "128 queries": lambda: search(queries, gallery, k=K),
            "read": lambda: [None for _ in gallery.blocks()],
        }
    )
    print(json.dumps({**cost, **seconds, "memory": peak_memory() - before}))


def measure_file(count: int) -> list[dict[str, Any]]:
    """Return the rows of a gallery file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "gallery.safetensors")
        write_gallery(path, count)
        process = subprocess.run(
            [sys.executable, "-c", f"import benchmarks.search as b; b.print_cost({str(path)!r})"],
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            check=True,
        )
    cost = json.loads(process.stdout)
    works = (
        (f"open-file {count}", "open", None, "s"),
        (f"search-file {count} with 1 query", "1 query", cost["read"], "s"),
        (f"search-file {count} with 128 queries", "128 queries", cost["read"], "s"),
        (f"search-file {count}, memory", "memory", None, "MB"),
    )
    empty = {"peer": None, "peer_name": None, "ratio": None}
    return [
        {"work": work, "ours": cost[name], **empty, "limit": limit, "unit": unit}
        for work, name, limit, unit in works
    ]


def print_rows(rows: list[dict[str, Any]]) -> None:
    print(f"{'work':44}{'ours':>9}{'peer':>9}{'ratio':>8}{'limit':>9}  unit")
    for row in rows:
        line = f"{row['work']:44}"
        for key, width in (("ours", 9), ("peer", 9), ("ratio", 8), ("limit", 9)):
            value = "-" if row[key] is None else f"{row[key]:.4g}"
            line += f"{value:>{width}}"
        print(f"{line}  {row['unit']}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file for the rows as JSON")
    parser.add_argument("--quick", action="store_true", help="a tenth of the vectors")
    options = parser.parse_args()
    share = 10 if options.quick else 1
    rows = compare_in_memory(100_000 // share) + measure_file(IN_FILE // share)
    print_rows(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
