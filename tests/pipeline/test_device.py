"""The machine: memory that training frees is kept for its next step."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Asked in another process, which alone is changed by asking; 0 without such a function.
ACCEPTED = (
    "import ctypes; print(getattr(ctypes.CDLL(None), 'mallopt', lambda *_: 0)(-3, 2**31 - 1))"
)
FAULTS = """
import resource, sys, torch
from pipeline.device import start_device
if sys.argv[1] == "started":
    start_device("cpu", 1)
for step in range(20):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """New pages of memory that ten tensors of 64 MB took, one after the other."""
    return int(
        subprocess.run(
            [sys.executable, "-c", FAULTS, how],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    )


@pytest.mark.skipif(
    sys.platform != "linux"
    or subprocess.check_output([sys.executable, "-c", ACCEPTED]).strip() != b"1",
    reason="only glibc has this limit, and an older one doesn't let it be as high as these tensors need",
)
def test_freed_memory_is_not_given_back_and_taken_again():
    pages = 10 * 2**26 // resource.getpagesize()
    assert faults("started") < pages / 100 < pages / 2 < faults("not started")
