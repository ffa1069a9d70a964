"""Sets larger than memory: what training holds does not grow with the store."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "data.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures RssAnon, which only Linux reports")
def test_anonymous_memory_does_not_grow_with_the_store() -> None:
    small, large = (
        json.loads(
            subprocess.run(
                [sys.executable, BENCHMARK, "--memory", count],
                capture_output=True,
                check=True,
                timeout=120,
            ).stdout
        )
        for count in ("1000", "20000")
    )
    assert large["store"] == 20 * small["store"]
    # What grows is the list of names, labels and hashes: a few percent of the pixels.
    assert large["anonymous"] - small["anonymous"] < 0.1 * (large["store"] - small["store"])
