"""Training seen from outside: interrupts, kills and resumes, a full disk, history, the collapse alarm."""

import hashlib
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

import pipeline.monitor
from pipeline.checkpoint import read_header
from pipeline.cli import main
from pipeline.files import write_atomically
from pipeline.monitor import TrainingMonitor
from pipeline.signals import StopRequest
from pipeline.training_state import load_state
from stages.errors import PipelineError
from stages.records import EpochLog, TrainingState

ROOT = Path(__file__).parents[2]
EMBED = [
    "embed",
    "--epochs",
    "4",
    "--dim",
    "16",
    "--images-per-class",
    "8",
    "--precision",
    "fp32",
    "--threads",
    "1",
    "--device",
    "cpu",
]


def watch(out: Path, said: list[str], **identity: object) -> TrainingMonitor:
    bar = tqdm(total=10, disable=True)
    return TrainingMonitor(
        out, identity, epochs=10, bar=bar, say=said.append, stop=StopRequest(), speeds=[]
    )


@pytest.fixture
def embed(tmp_path, monkeypatch, capsys):
    """Runs `embed` in this process; gives its exit status and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            main([*EMBED, *map(str, arguments)])
        return int(stop.value.code or 0), capsys.readouterr().err

    return call


def start(folder: Path, *arguments: str, seed: int = 0) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pipeline", *EMBED, "--seed", str(seed), *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def digest(folder: Path) -> str:
    return read_header(folder / "checkpoints/embedding.safetensors").digest


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def flip_a_bit(whole: bytes) -> bytes:
    middle = len(whole) // 2
    return whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :]


def test_a_collapse_is_said_plainly_and_once(tmp_path):
    said: list[str] = []
    seen = watch(tmp_path / "e.safetensors", said)
    for epoch, distance in enumerate((1.2, 0.01, 0.01, 0.9), 1):
        seen.on_epoch(EpochLog(epoch, 0.2, 1.0, distance, 0.1, 0.5))
    assert [line[:5] for line in said] == ["epoch", "epoch", "warni", "epoch", "epoch"]
    assert "the embedding has collapsed" in said[2] and "--lr" in said[2]


def test_an_interrupted_run_goes_on_to_the_same_result(embed, tmp_path):
    assert embed("--out", "whole.safetensors")[0] == 0
    status, errors = stop_after(embed, 20)
    assert status == 130 and "--resume" in errors
    assert (
        Path("checkpoints/embedding.state").is_file()
        and not Path("checkpoints/embedding.safetensors").exists()
    )
    # An unfinished run is not lost to one that starts anew, nor mixed with other settings.
    status, errors = embed()
    assert status == 1 and "an unfinished run, at step 20 of" in errors and "--resume" in errors
    status, errors = embed("--resume", "--lr", 0.01)
    assert status == 1 and "lr 0.003, not 0.01" in errors
    status, errors = embed("--resume", "--precision", "bf16")
    assert status == 1 and "precision torch.float32, not torch.bfloat16" in errors
    status, errors = embed("--resume")
    assert status == 0 and "going on after step 20" in errors
    assert digest(tmp_path) == read_header(Path("whole.safetensors")).digest
    histories = [
        pd.read_csv(path) for path in ("whole.history.csv", "checkpoints/embedding.history.csv")
    ]
    pd.testing.assert_frame_equal(*(table.drop(columns="images_per_second") for table in histories))
    assert (histories[1]["images_per_second"] > 0).all()
    # Finished: resuming changes nothing; without the state too.
    before = digest(tmp_path)
    assert embed("--resume")[0] == 0 and digest(tmp_path) == before
    Path("checkpoints/embedding.state").unlink()
    status, errors = embed("--resume")
    assert status == 0 and "nothing to resume" in errors and digest(tmp_path) == before


def stop_after(embed, steps: int) -> tuple[int, str]:
    """Runs `embed` and sends it SIGTERM after so many steps."""
    with pytest.MonkeyPatch.context() as patch:
        on_step = TrainingMonitor.on_step

        def signalled(self, step):
            if step.done == steps:
                os.kill(os.getpid(), signal.SIGTERM)
            return on_step(self, step)

        patch.setattr(TrainingMonitor, "on_step", signalled)
        return embed()


def test_resume_starts_where_there_is_nothing(embed):
    assert embed("--resume")[0] == 0 and Path("checkpoints/embedding.safetensors").is_file()


def test_a_lost_patience_is_kept_over_a_resume(embed, tmp_path):
    assert embed("--patience", 1, "--epochs", 30)[0] == 0
    rows, before = len(pd.read_csv("checkpoints/embedding.history.csv")), digest(tmp_path)
    assert rows < 30
    Path("checkpoints/embedding.safetensors").unlink()
    assert embed("--patience", 1, "--epochs", 30, "--resume")[0] == 0
    assert (
        len(pd.read_csv("checkpoints/embedding.history.csv")) == rows and digest(tmp_path) == before
    )


@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda _: b"nonsense", lambda whole: whole[:-1], flip_a_bit]
)
def test_a_damaged_state_is_refused(embed, damage):
    assert stop_after(embed, 3)[0] == 130
    state = Path("checkpoints/embedding.state")
    state.write_bytes(damage(state.read_bytes()))
    for arguments in ((), ("--resume",)):
        status, errors = embed(*arguments)
        assert status == 1 and "not a training state that can be read" in errors
    assert embed("--force")[0] == 0


def test_a_full_disk_costs_neither_the_run_nor_the_last_state(tmp_path, monkeypatch):
    said: list[str] = []
    seen = watch(tmp_path / "e.safetensors", said)
    (tmp_path / "e.state").write_bytes(b"the last good one")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    state = TrainingState(**{**dict.fromkeys(TrainingState.__dataclass_fields__, 0), "history": ()})
    seen.save(SimpleNamespace(state=lambda: state, last=False))
    assert "No space left on device" in said[0] and "Training goes on" in said[0]
    assert (tmp_path / "e.state").read_bytes() == b"the last good one" and len(
        list(tmp_path.iterdir())
    ) == 1
    with pytest.raises(PipelineError, match="No space left"):
        write_atomically(tmp_path / "x", b"1")


def test_a_state_holds_no_code(tmp_path):
    class Bad:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/ran",))

    torch.save({"state": Bad(), "record": "{}"}, tmp_path / "bad")
    content = (tmp_path / "bad").read_bytes()
    (tmp_path / "bad").write_bytes(hashlib.sha256(content).digest() + content)
    with pytest.raises(pickle.UnpicklingError):
        load_state(tmp_path / "bad")
    assert not (tmp_path / "ran").exists()


def test_what_can_not_be_written_to_is_told_at_once(embed):
    Path("file").touch()
    status, errors = embed("--out", "file/e.safetensors")
    assert status == 1 and "file: can't be written to" in errors and "epoch" not in errors
    status, errors = embed("--tensorboard", "file")
    assert status == 1 and "--tensorboard file: can't be written to" in errors


def test_tensorboard_is_an_extra(tmp_path, monkeypatch, embed):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    status, errors = embed("--tensorboard", "logs")
    assert status == 1 and "pip install 'embedding-pipeline[tensorboard]'" in errors


def test_tensorboard_gets_every_epoch(embed):
    assert embed("--tensorboard", "logs")[0] == 0
    found = EventAccumulator("logs").Reload()
    assert {"loss", "active_share", "val_knn", "images_per_second"} <= set(found.Tags()["scalars"])
    assert [event.step for event in found.Scalars("loss")] == [1, 2, 3, 4]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends_with_130(tmp_path, number):
    process = start(tmp_path, "--epochs", "2000")
    wait_for(tmp_path / "checkpoints/embedding.state", process)
    time.sleep(random.random() / 2)
    process.send_signal(number)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "--resume" in errors and "Traceback" not in errors
    state, record = load_state(tmp_path / "checkpoints/embedding.state")
    assert 0 < state.step < state.steps and not record["finished"]


def run_in(folder: Path, *arguments: str) -> None:
    """A child's whole life; its parent has imported what takes long."""
    os.chdir(folder)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # until the end of the process
    pipeline.monitor.SHARE = 10  # every epoch is saved, so that kills fall into saves
    main([*EMBED, "--epochs", "25", "--val", "0.05", "--test", "0.8", *arguments])


@pytest.mark.slow
def test_thirty_kills(tmp_path):
    """Killed at random moments, saves included, a run still ends as if nothing had happened."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "torch",
            "torchvision",
            "pandas",
            "pytest",
            "sklearn.datasets",
            "scipy.stats",
            "matplotlib",
            "bokeh",
        ]
    )

    def start_in(folder: Path) -> multiprocessing.process.BaseProcess:
        folder.mkdir(exist_ok=True)
        process = context.Process(target=run_in, args=(folder, "--resume"))
        process.start()
        return process

    start_in(tmp_path / "warm").join()
    began = time.monotonic()
    start_in(tmp_path / "whole").join()
    took, moments, kills, runs = time.monotonic() - began, random.Random(0), 0, 0
    while kills < 30:
        folder = tmp_path / str(runs)
        process = start_in(folder)
        while kills < 30:
            process.join(timeout=moments.uniform(0.1, 0.9) * took)
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            kills += 1
            process = start_in(folder)
        process.join()
        assert process.exitcode == 0
        assert digest(folder) == digest(tmp_path / "whole")
        assert len(pd.read_csv(folder / "checkpoints/embedding.history.csv")) == 25
        assert sorted(path.suffix for path in (folder / "checkpoints").iterdir()) == [
            ".csv",
            ".safetensors",
            ".state",
        ]
        runs += 1
    assert runs >= 2
