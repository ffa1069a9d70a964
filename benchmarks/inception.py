r"""Measure time and memory of InceptionV3 at 299 pixels, with padding by repetition.

    python -m benchmarks.inception --json inception.json
    python -m benchmarks.inception --epochs 1 --threads 1

Photos of seven classes from Debian's package tuxpaint-stamps-default go through `pipeline embed`,
`classify`, `report` and `predict`, one new process per command: once with a frozen trunk and once
with all layers trained. The weights are random, in a file like those of ImageNet, so only time and
memory mean something, not the accuracy. Per command: seconds, CPU seconds, which other programs on
the machine influence less, and the peak memory of its largest process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torchvision import models

from benchmarks.defaults import PHOTOS, STAMPS

NETWORK = "torchvision:inception_v3"


def link_photos(folder: Path) -> int:
    """Link to the photos, one folder per class, and return their number. Drawings are left out."""
    count = 0
    for category in PHOTOS:
        target = folder / category.rpartition("/")[2]
        target.mkdir(parents=True)
        for path in sorted((STAMPS / category).glob("*.png")):
            if not path.with_suffix(".svg").exists():
                (target / path.name).symlink_to(path)
                count += 1
    return count


def save_weights(path: Path) -> None:
    """Save random weights whose features depend on the image."""
    torch.manual_seed(0)
    network = models.inception_v3(weights=None, init_weights=True)
    with torch.no_grad():
        for _ in range(3):  # for the statistics of BatchNorm
            network(torch.randn(4, 3, 299, 299))
    torch.save(network.state_dict(), path)


class Cost(NamedTuple):
    """Seconds, CPU seconds, and peak memory in MB."""

    seconds: float
    cpu: float
    memory: float


def measure(arguments: Sequence[object], folder: Path) -> Cost:
    """Run a command in a folder and return its cost."""
    root = Path(__file__).resolve().parents[1]
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))}: status {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    seconds = time.perf_counter() - start
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e6)


def measure_commands(
    trunk: str, epochs: int, folder: Path, options: Sequence[object]
) -> Iterator[tuple[str, Cost]]:
    """Yield the name and the cost of each command."""
    network = ("--network", NETWORK, "--weights", "inception.pth", "--trunk", trunk)
    reading = ("--data", "photos", "--resize", "pad-repeat", "--cache", f"cache-{trunk}")
    commands = {
        "embed": (*reading, *network, "--epochs", epochs, "--force"),
        "classify": ("--cache", f"cache-{trunk}", "--force"),
        "report": ("--cache", f"cache-{trunk}"),
        "predict": ("photos", "--out", f"{trunk}.csv"),
    }
    for name, arguments in commands.items():
        yield name, measure([name, *arguments, *options, "--quiet"], folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2, help="with all layers trained")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = link_photos(folder / "photos")
        save_weights(folder / "inception.pth")
        options = ("--threads", arguments.threads)
        print(f"{count} photos, {arguments.threads} threads")
        for trunk, epochs in (("frozen", 20), ("tune", arguments.epochs)):
            for command, cost in measure_commands(trunk, epochs, folder, options):
                work = f"{command} {count} photos 299 {trunk}"
                print(
                    f"{work:36} {cost.seconds:7.1f} s {cost.cpu:7.1f} CPU s {cost.memory:6.0f} MB",
                    flush=True,
                )
                rows.append(make_row(work, cost.seconds, "s"))
                rows.append(make_row(f"{work} CPU", cost.cpu, "s"))
                rows.append(make_row(f"{work} memory", cost.memory, "MB"))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def make_row(work: str, value: float, unit: str) -> dict[str, object]:
    """Return a row of the results; no peer does the same work."""
    peer = dict.fromkeys(("peer", "peer_name", "ratio", "limit"))
    return {"work": work, "ours": value, **peer, "unit": unit}


if __name__ == "__main__":
    main()
