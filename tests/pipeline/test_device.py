"""Device settings: memory, determinism and precision."""

import resource
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from factories import QUIET

from pipeline.commands.classify import classify
from pipeline.commands.data import audit_data
from pipeline.commands.embed import embed
from pipeline.commands.folds import run_folds
from pipeline.commands.predict import predict
from pipeline.commands.report import evaluate_run, report
from pipeline.commands.run import run
from pipeline.context import RunContext
from pipeline.device import choose_precision, restore_torch_settings, start_device
from stages.errors import DataError, SettingsError
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings

ROOT = Path(__file__).parents[2]
# Prints 1 if glibc accepts the limit. Runs in its own process because the call changes the limit.
LIMIT_IS_ACCEPTED = (
    "import ctypes; print(getattr(ctypes.CDLL(None), 'mallopt', lambda *_: 0)(-3, 2**31 - 1))"
)
COUNT_PAGE_FAULTS = """
import resource, sys, torch
from pipeline.device import keep_freed_memory, start_device
start_device("cpu", 1)
if sys.argv[1] == "keep":
    keep_freed_memory("cpu")
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
    kept = int(run_python(COUNT_PAGE_FAULTS, "keep"))
    returned = int(run_python(COUNT_PAGE_FAULTS, "return"))
    assert kept < pages / 100 < pages / 2 < returned


def test_only_the_command_line_keeps_freed_memory(run_command, monkeypatch, tmp_path):
    devices = []
    monkeypatch.setattr("pipeline.device.keep_freed_memory", devices.append)
    with pytest.raises(DataError):
        audit_data(str(tmp_path / "missing"), ReadSettings(), context=QUIET)
    with pytest.raises(DataError):
        embed("missing", ReadSettings(), EmbedSettings(), out=tmp_path / "e", context=QUIET)
    assert devices == []
    assert run_command("embed", "--data", "missing", "--device", "cpu")[0] == 1
    assert devices == ["cpu"]


def torch_settings() -> tuple[object, ...]:
    """Return the settings of the whole process that a command changes while it runs."""
    return (
        torch.get_deterministic_debug_mode(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.get_num_threads(),
        list(warnings.filters),
    )


def test_commands_restore_the_settings_of_torch(monkeypatch, tmp_path):
    during = []

    def prepare(*_: object) -> None:
        warnings.filterwarnings("ignore", message="as on a GPU")
        during.append(torch_settings())
        raise DataError("no images")

    for command in ("embed", "run"):
        monkeypatch.setattr(f"pipeline.commands.{command}.prepare_inputs", prepare)
    monkeypatch.setattr("pipeline.commands.folds.load_data", prepare)
    for command in ("classify", "report"):
        monkeypatch.setattr(f"pipeline.commands.{command}.load_embedding", prepare)
    monkeypatch.setattr("pipeline.commands.predict.load_classifier", prepare)
    context = RunContext(device="cpu", threads=3, quiet=True)
    read, stage_two = ReadSettings(), ClassifySettings()
    stage_one = EmbedSettings(network="conv")  # `auto` would look at the images first
    path = tmp_path / "file"
    image = path.with_suffix(".png")
    image.touch()
    out = tmp_path / "new"
    checkpoints = {"embedding": path, "classifier": out}
    calls = [
        lambda: embed("a", read, stage_one, out=path, context=context),
        lambda: classify(path, stage_two, out=out, context=context),
        lambda: report(path, path, out=tmp_path, context=context),
        lambda: evaluate_run("a", path, path, context=context),
        lambda: run("a", read, stage_one, stage_two, out=tmp_path, context=context, **checkpoints),
        lambda: run_folds("a", read, stage_one, stage_two, folds=3, out=tmp_path, context=context),
        lambda: predict([image], path, out=None, as_json=False, context=context),
    ]
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    with restore_torch_settings():
        torch.set_deterministic_debug_mode("default")
        torch.set_num_threads(2)
        before = torch_settings()
        for number, call in enumerate(calls, 1):
            with pytest.raises(DataError):
                call()
            assert torch_settings() == before
            assert len(during) == number and during[-1][:3] == (2, False, 3)


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


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32")])
def test_emulated_bfloat16_is_not_chosen_on_a_gpu(monkeypatch, native, expected):
    def is_supported(including_emulation: bool = True) -> bool:
        return including_emulation or native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    gpu = torch.device("cuda")
    assert choose_precision("auto", gpu) == choose_precision(expected, gpu)


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
