"""The machine: memory that training frees is kept for its next step."""

import ctypes
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FAULTS = """
import resource, sys, torch
from pipeline import runtime
if sys.argv[1] == "started":
    runtime.start("cpu", 1)
for step in range(20):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """New pages of memory that ten tensors of 64 MB took, one after the other."""
    return int(subprocess.run([sys.executable, "-c", FAULTS, how], cwd=ROOT, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(
    sys.platform != "linux" or not ctypes.CDLL(None).mallopt(-3, 2**31 - 1), reason="the C library has no such limit, or a low one"
)
def test_freed_memory_is_not_given_back_and_taken_again():
    pages = 10 * 2**26 // resource.getpagesize()
    assert faults("started") < pages / 100 < pages / 2 < faults("not started")
