"""Two trainings at once on the same cores, compared with one alone.

    python benchmarks/two_runs.py [--repeats 3] [--epochs 5] [--json FILE]

Each run is `pipeline embed` on 5,000 images of MNIST in a new process: start-up, decoding,
training and saving. GNU OpenMP lets a waiting thread occupy its core for milliseconds; the program
sets GOMP_SPINCOUNT to shorten that. The rows are the program's setting, OpenMP's default (the
program respects a setting of the user; this one is OpenMP's default number of rounds) and
OMP_WAIT_POLICY=passive. Reported are median seconds. The limit of the ratio is 2, that of one run
after the other, if one run uses all cores all the time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.image_folders import write_mnist

SETTINGS = {
    "program": {},
    "OpenMP's default": {"GOMP_SPINCOUNT": "300000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}


def seconds(folder: Path, *, runs: int, epochs: int, setting: dict[str, str]) -> float:
    """Start a number of runs at the same time and wait for all of them."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))
    }
    start = time.perf_counter()
    processes = []
    for run in range(runs):
        out = folder / f"run-{run}"
        command = [sys.executable, "-m", "pipeline", "embed", "--data", str(folder / "mnist")]
        command += ["--out", str(out / "e.safetensors"), "--cache", str(out / "cache")]
        command += ["--epochs", str(epochs), "--force", "--quiet"]
        process = subprocess.Popen(command, env=environment | setting, stdout=subprocess.DEVNULL)
        processes.append(process)
    if any(process.wait() for process in processes):
        raise SystemExit("a run has failed")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    times: dict[str, dict[int, list[float]]] = {name: {1: [], 2: []} for name in SETTINGS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_mnist(folder / "mnist")
        seconds(folder, runs=2, epochs=1, setting={})  # fills the caches
        for _ in range(options.repeats):
            for setting, variables in SETTINGS.items():
                for runs in (1, 2):
                    times[setting][runs].append(
                        seconds(folder, runs=runs, epochs=options.epochs, setting=variables)
                    )
    rows = []
    for setting, measured in times.items():
        alone, both = (statistics.median(measured[runs]) for runs in (1, 2))
        rows.append({"setting": setting, "alone": alone, "both": both, "ratio": both / alone})
        print(f"{setting:16} alone {alone:.1f} s, two at once {both:.1f} s ({both / alone:.2f} x)")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
