"""Memory of a training process does not depend on the size of the data set."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "data.py"


def measure_memory(images: int) -> dict[str, Any]:
    """Return the bytes of the image store and of anonymous memory in a new process."""
    command = [sys.executable, BENCHMARK, "--memory", str(images)]
    output = subprocess.run(command, capture_output=True, check=True, timeout=300).stdout
    measured: dict[str, Any] = json.loads(output)
    return measured


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures RssAnon, which only Linux reports")
def test_anonymous_memory_does_not_grow_with_the_store():
    small = measure_memory(250)
    # The allocator keeps more freed memory in some runs than in others.
    large = min((measure_memory(7500) for _ in range(2)), key=lambda memory: memory["anonymous"])
    assert large["store"] == 30 * small["store"]
    # A copy of the pixels would add the whole difference, 340 MB, in every run.
    assert large["anonymous"] - small["anonymous"] < 0.5 * (large["store"] - small["store"])
