"""Interrupting, killing and resuming a run; history, messages and TensorBoard."""

import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from checkpoint_files import make_state
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.cli import main
from pipeline.monitor import TrainingMonitor
from pipeline.signals import StopRequest
from pipeline.tensor_files import read_header
from pipeline.training_state import load_state
from stages.embedding.train import Step
from stages.errors import SettingsError
from stages.records import EpochLog, TrainingState

EMBED = [
    *("embed", "--epochs", "4", "--dim", "16", "--images-per-class", "8"),
    *("--precision", "fp32", "--threads", "1", "--device", "cpu"),
]


class RecordingBar:
    """Progress bar that keeps its postfixes."""

    def __init__(self):
        self.postfixes: list[str] = []

    def update(self, count: int) -> None:
        pass

    def set_postfix_str(self, text: str, refresh: bool) -> None:
        self.postfixes.append(text)


def make_monitor(
    out: Path, messages: list[str], distance: str = "euclidean", **options: object
) -> TrainingMonitor:
    arguments = {"epochs": 10, "bar": RecordingBar(), "stop": StopRequest(), "speeds": []}
    identity = {"settings": {"distance": distance}}
    return TrainingMonitor(out, identity, say=messages.append, **{**arguments, **options})


def make_step(done: int, *, last: bool = False) -> Step:
    loss, share = torch.tensor(0.5), torch.tensor(0.25)
    return Step(done=done, last=last, loss=loss, active_share=share, images=80, state=make_state)


@pytest.fixture
def embed(tmp_path, monkeypatch, capsys):
    """Function that runs `embed` in this process and returns exit status and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            main([*EMBED, *map(str, arguments)])
        return int(stop.value.code or 0), capsys.readouterr().err

    return call


def run_in(folder: Path, *arguments: str) -> None:
    """Run `embed` in a process of its own."""
    os.chdir(folder)
    sys.stderr = open("errors.txt", "w")  # noqa: SIM115  # until the end of the process
    main([*EMBED, *arguments])


def digest(folder: Path) -> str:
    return read_header(folder / "checkpoints/embedding.safetensors").digest


def flip_a_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def stop_after(embed, steps: int) -> tuple[int, str]:
    """Run `embed` and send it SIGTERM after this many steps."""
    with pytest.MonkeyPatch.context() as patch:
        on_step = TrainingMonitor.on_step

        def send_signal(self, step):
            if step.done == steps:
                os.kill(os.getpid(), signal.SIGTERM)
            return on_step(self, step)

        patch.setattr(TrainingMonitor, "on_step", send_signal)
        return embed()


def test_collapse_is_reported_once(tmp_path):
    messages: list[str] = []
    monitor = make_monitor(tmp_path / "e.safetensors", messages)
    for epoch, distance in enumerate((1.2, 0.01, 0.01, 0.9), 1):
        monitor.on_epoch(EpochLog(epoch, 0.2, 1.0, distance, 0.1, 0.5))
    assert [line[:5] for line in messages] == ["epoch", "epoch", "warni", "epoch", "epoch"]
    assert "the embedding has collapsed" in messages[2] and "--lr" in messages[2]


def test_squared_distances_have_their_own_limit(tmp_path):
    """A mean squared distance of 0.04 is a Euclidean distance of about 0.2: no collapse."""
    messages: list[str] = []
    monitor = make_monitor(tmp_path / "e.safetensors", messages, distance="squared")
    for epoch, distance in enumerate((0.04, 0.002), 1):
        monitor.on_epoch(EpochLog(epoch, 0.2, 1.0, distance, 0.1, 0.5))
    assert [line[:5] for line in messages] == ["epoch", "epoch", "warni"]


@pytest.mark.parametrize(
    ("has_validation", "printed"), [(True, ["2", "4"]), (False, ["1", "2", "3", "4"])]
)
def test_only_validated_epochs_are_printed_if_there_are_any(tmp_path, has_validation, printed):
    messages: list[str] = []
    monitor = make_monitor(tmp_path / "e.safetensors", messages, has_validation=has_validation)
    for epoch in range(1, 5):
        val_knn = 0.9 if has_validation and epoch % 2 == 0 else None
        monitor.on_epoch(EpochLog(epoch, 0.2, 1.0, 0.8, val_knn, None))
    assert [re.match(r"epoch +(\d+)/10 ", line).group(1) for line in messages] == printed
    assert len(monitor.speeds) == 4


def test_progress_bar_shows_epoch_and_loss(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.monitor.SHOW_INTERVAL", 0)
    monitor = make_monitor(tmp_path / "e.safetensors", [], speeds=[100.0, 100.0])
    monitor.on_step(make_step(5))
    monitor.on_epoch(EpochLog(3, 0.2, 1.0, 0.8, None, None))
    monitor.on_step(make_step(6))
    monitor.on_step(make_step(7))
    starts = [postfix.split(",")[0] for postfix in monitor.bar.postfixes]
    assert starts == ["epoch 3/10", "epoch 3/10", "epoch 4/10"]
    assert monitor.bar.postfixes[0] == "epoch 3/10, loss 0.5000, active 25.00%"


def test_progress_bar_reads_the_loss_of_few_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.monitor.SHOW_INTERVAL", 60)
    monitor = make_monitor(tmp_path / "e.safetensors", [])
    for done in range(1, 9):
        monitor.on_step(make_step(done))
    assert monitor.bar.postfixes == ["epoch 1/10, loss 0.5000, active 25.00%"]


def test_waiting_for_the_loss_counts_as_training_time(tmp_path):
    class SlowLoss:
        def __format__(self, spec: str) -> str:
            time.sleep(0.05)
            return "0.5"

    monitor = make_monitor(tmp_path / "e.safetensors", [])
    monitor.on_step(make_step(1)._replace(loss=SlowLoss()))
    monitor.on_epoch(EpochLog(1, 0.2, 1.0, 0.8, None, None))
    assert monitor.speeds[0] < 80 / 0.05


def test_loss_that_is_not_finite_is_no_failure_to_save(tmp_path):
    def state() -> TrainingState:
        raise SettingsError("lr", 1, "the loss is nan at step 7; use a lower learning rate")

    messages: list[str] = []
    monitor = make_monitor(tmp_path / "e.safetensors", messages)
    with pytest.raises(SettingsError, match="the loss is nan"):
        monitor.on_step(make_step(7, last=True)._replace(state=state))
    assert messages == []


def test_interrupted_run_resumes_to_the_same_result(embed, tmp_path):
    assert embed("--out", "whole.safetensors")[0] == 0
    status, errors = stop_after(embed, 20)
    assert status == 130 and "--resume" in errors
    assert Path("checkpoints/embedding.state").is_file()
    assert not Path("checkpoints/embedding.safetensors").exists()
    # A new run neither replaces an unfinished one nor continues it with other settings.
    status, errors = embed()
    assert status == 1 and "step 20 of" in errors and "--resume" in errors
    status, errors = embed("--resume", "--lr", 0.01)
    assert status == 1 and "lr" in errors and "0.003" in errors and "0.01" in errors
    status, errors = embed("--resume", "--precision", "bf16")
    assert status == 1 and "precision" in errors and "float32" in errors and "bfloat16" in errors
    status, errors = embed("--resume")
    assert status == 0 and "step 20 of" in errors
    assert digest(tmp_path) == read_header(Path("whole.safetensors")).digest
    histories = [
        pd.read_csv(path) for path in ("whole.history.csv", "checkpoints/embedding.history.csv")
    ]
    pd.testing.assert_frame_equal(*(table.drop(columns="images_per_second") for table in histories))
    assert (histories[1]["images_per_second"] > 0).all()


def test_resume_of_a_finished_run_changes_nothing(embed, tmp_path):
    assert embed()[0] == 0
    before = digest(tmp_path)
    written = Path("checkpoints/embedding.safetensors").stat().st_mtime_ns
    assert embed("--resume")[0] == 0 and digest(tmp_path) == before
    assert Path("checkpoints/embedding.safetensors").stat().st_mtime_ns == written
    # Without a saved state, the checkpoint shows that the run is finished.
    Path("checkpoints/embedding.state").unlink()
    status, errors = embed("--resume")
    assert status == 0 and "epoch" not in errors and digest(tmp_path) == before


def test_resume_without_a_saved_run_starts_one(embed):
    assert embed("--resume")[0] == 0 and Path("checkpoints/embedding.safetensors").is_file()


@pytest.mark.slow
def test_early_stopping_holds_after_a_resume(embed, tmp_path):
    assert embed("--patience", 1, "--epochs", 30)[0] == 0
    rows, before = len(pd.read_csv("checkpoints/embedding.history.csv")), digest(tmp_path)
    assert rows < 30
    Path("checkpoints/embedding.safetensors").unlink()
    assert embed("--patience", 1, "--epochs", 30, "--resume")[0] == 0
    assert len(pd.read_csv("checkpoints/embedding.history.csv")) == rows
    assert digest(tmp_path) == before


@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda _: b"nonsense", lambda content: content[:-1], flip_a_bit]
)
def test_damaged_state_is_rejected(embed, damage):
    assert stop_after(embed, 3)[0] == 130
    state = Path("checkpoints/embedding.state")
    state.write_bytes(damage(state.read_bytes()))
    for arguments in ((), ("--resume",)):
        status, errors = embed(*arguments)
        assert status == 1 and f"{state}: " in errors and "damaged" in errors
    assert embed("--force")[0] == 0


def test_full_disk_ends_neither_the_run_nor_the_saved_state(tmp_path, monkeypatch):
    messages: list[str] = []
    monitor = make_monitor(tmp_path / "e.safetensors", messages)
    state = tmp_path / "e.state"
    state.write_bytes(b"earlier state")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    monitor.save(make_step(1))
    assert len(messages) == 1 and messages[0].startswith(f"warning: {state}: ")
    assert "No space left on device" in messages[0] and "continues" in messages[0]
    assert state.read_bytes() == b"earlier state" and list(tmp_path.iterdir()) == [state]


def test_unwritable_output_is_reported_before_training(embed):
    Path("file").touch()
    status, errors = embed("--out", "file/e.safetensors")
    assert status == 1 and "file/e.safetensors: " in errors and "Not a directory" in errors
    assert "epoch" not in errors
    status, errors = embed("--tensorboard", "file")
    assert status == 1 and "file: " in errors and "Not a directory" in errors
    assert sorted(Path().iterdir()) == [Path("file")]


def test_tensorboard_is_an_extra(tmp_path, monkeypatch, embed):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    status, errors = embed("--tensorboard", "logs")
    assert status == 1 and "pip install tensorboard" in errors


def test_tensorboard_gets_every_epoch(embed):
    assert embed("--tensorboard", "logs")[0] == 0
    events = EventAccumulator("logs").Reload()
    assert {"loss", "active_share", "val_knn", "images_per_second"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_the_state_and_exits_with_130(warm_processes, tmp_path, number):
    process = warm_processes.Process(target=run_in, args=(tmp_path, "--epochs", "2000"))
    process.start()
    while not (tmp_path / "checkpoints/embedding.state").exists():
        assert process.exitcode is None, (tmp_path / "errors.txt").read_text()
        time.sleep(0.01)
    time.sleep(random.random() / 2)
    os.kill(process.pid, number)
    process.join(60)
    errors = (tmp_path / "errors.txt").read_text()
    assert process.exitcode == 130 and "--resume" in errors and "Traceback" not in errors
    state, record = load_state(tmp_path / "checkpoints/embedding.state")
    assert 0 < state.step < state.steps and not record["finished"]
