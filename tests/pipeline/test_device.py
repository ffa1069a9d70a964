"""Device settings: memory, determinism and precision."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.device import choose_precision, start_device
from stages.errors import SettingsError

ROOT = Path(__file__).parents[2]
# Prints 1 if glibc accepts the limit. Runs in its own process because the call changes the limit.
LIMIT_IS_ACCEPTED = (
    "import ctypes; print(getattr(ctypes.CDLL(None), 'mallopt', lambda *_: 0)(-3, 2**31 - 1))"
)
COUNT_PAGE_FAULTS = """
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


def run_python(program: str, *arguments: str) -> str:
    """Run a program in another process, since these settings cannot be undone; return stdout."""
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(
    sys.platform != "linux" or run_python(LIMIT_IS_ACCEPTED).strip() != "1",
    reason="needs a glibc that accepts a limit above the size of these tensors",
)
def test_freed_memory_is_reused():
    pages = 10 * 2**26 // resource.getpagesize()  # of ten tensors of 64 MB
    with_start = int(run_python(COUNT_PAGE_FAULTS, "started"))
    without_start = int(run_python(COUNT_PAGE_FAULTS, "not started"))
    assert with_start < pages / 100 < pages / 2 < without_start


def test_operation_without_deterministic_version_is_an_error_on_the_cpu():
    program = """
import torch
from pipeline.device import start_device
start_device("cpu", 1)
print(torch.get_deterministic_debug_mode(), torch.get_num_threads())
"""
    assert run_python(program) == "2 1\n"


def test_device_that_is_not_available_is_rejected(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match=r"^device cuda: .*cpu") as error:
        start_device("cuda", None)
    assert error.value.field == "device"


def test_thread_count_below_one_is_rejected():
    with pytest.raises(SettingsError, match=r"^threads 0: ") as error:
        start_device("cpu", 0)
    assert error.value.field == "threads"


def test_auto_precision_depends_on_processor_and_network(monkeypatch):
    cpu = torch.device("cpu")
    plain = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3), torch.nn.BatchNorm2d(4))
    depthwise = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, groups=4), torch.nn.BatchNorm2d(4))
    monkeypatch.setattr("pipeline.device._cpu_has_bfloat16", lambda: True)
    assert choose_precision("auto", cpu) == torch.bfloat16
    assert choose_precision("auto", cpu, plain) == torch.bfloat16
    assert choose_precision("auto", cpu, depthwise) == torch.float32
    assert choose_precision("bf16", cpu, depthwise) == torch.bfloat16
    assert choose_precision("auto", torch.device("mps")) == torch.float32
    monkeypatch.setattr("pipeline.device._cpu_has_bfloat16", lambda: False)
    assert choose_precision("auto", cpu) == torch.float32
    assert choose_precision("fp32", cpu) == torch.float32
