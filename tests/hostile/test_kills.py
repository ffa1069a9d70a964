"""Commands that are killed at random moments lose no earlier file, and can be run again."""

import os
import random
import shutil
import sys
import time
from collections.abc import Iterable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import pipeline.monitor
from pipeline.checkpoint import load_classifier, load_embedding
from pipeline.cli import main
from pipeline.tensor_files import read_header
from pipeline.training_state import load_state

KILLS = 100 if os.environ.get("HOSTILE") == "full" else 10
EMBEDDING, CLASSIFIER = "checkpoints/embedding.safetensors", "checkpoints/classifier.safetensors"
STAGE_ONE = (EMBEDDING, "checkpoints/embedding.state", "checkpoints/embedding.history.csv")
CPU = ("--device", "cpu", "--threads", "1", "--quiet")
SOURCE = ("--data", "photos", "--cache", "cache")
TRAINING = (*SOURCE, *CPU, "--dim", "8", "--images-per-class", "4", "--precision", "fp32")


class Command(NamedTuple):
    """A command, and the files that are removed before it for a run from the beginning."""

    arguments: tuple[str, ...]
    outputs: tuple[str, ...]


COMMANDS = {
    "embed": Command(("embed", *TRAINING, "--epochs", "8", "--resume"), STAGE_ONE),
    "folds": Command(
        ("run", *TRAINING, "--epochs", "2", "--folds", "2", "--out", "folds", "--force"),
        ("folds",),
    ),
    "store": Command(("data", "photos", "--cache", "cache", "--quiet"), ("cache",)),
    "classify": Command(("classify", *SOURCE, *CPU), (CLASSIFIER, "checkpoints/embedding.vectors")),
    "report": Command(("report", *SOURCE, *CPU), ("reports",)),
    "predict": Command(("predict", "photos", "--out", "labels.csv", *CPU), ("labels.csv",)),
}


def run_in(folder: Path, arguments: Iterable[str]) -> None:
    """Run a command in a process of its own."""
    os.chdir(folder)
    sys.stdout = sys.stderr = open("messages.txt", "w")  # noqa: SIM115  # until the process ends
    pipeline.monitor.SAVE_TIME_SHARE = 10  # saves after every epoch, so that kills hit saves
    main(arguments)


def start(context: ForkServerContext, folder: Path, command: Command) -> BaseProcess:
    process = context.Process(target=run_in, args=(folder, command.arguments))
    process.start()
    return process


def run(context: ForkServerContext, folder: Path, command: Command) -> None:
    process = start(context, folder, command)
    process.join(100)
    assert process.exitcode == 0, (folder / "messages.txt").read_text()


@pytest.fixture(scope="module")
def whole(warm_processes, tmp_path_factory) -> tuple[Path, dict[str, float]]:
    """Return a folder in which every command has run, and each command's duration."""
    folder = tmp_path_factory.mktemp("whole")
    digits = load_digits()
    for index in range(240):
        path = folder / "photos" / str(digits.target[index]) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[index] * 15).astype("uint8")).save(path)
    seconds = {}
    for name in ("store", "embed", "classify", "report", "predict", "folds"):
        begin = time.monotonic()
        run(warm_processes, folder, COMMANDS[name])
        seconds[name] = time.monotonic() - begin
    return folder, seconds


def content(path: Path) -> Any:
    """Load a file completely and return what is the same in every run."""
    if path.name == "embedding.state":
        state, record = load_state(path)
        return state.step, record["finished"]
    if path.suffix == ".safetensors":
        return (load_embedding if path.match("embedding.*") else load_classifier)(path).digest
    if path.suffix == ".vectors":
        return read_header(path).digest  # the order of the header's entries differs between runs
    if path.suffix == ".csv":
        return pd.read_csv(path).drop(columns="images_per_second", errors="ignore").to_csv()
    if path.suffix == ".html":
        return path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    return path.read_bytes()


def contents(folder: Path) -> dict[str, Any]:
    """Return the content of all files by their relative paths, temporary files excepted."""
    return {
        path.relative_to(folder).as_posix(): content(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name != "messages.txt" and not is_temporary(path)
    }


def is_temporary(path: Path) -> bool:
    return path.suffix == ".lock" or ".partial" in (path.suffix, path.parent.suffix)


def wait_for_write(process: BaseProcess, folder: Path) -> None:
    """Wait until the process writes a file, or ends."""
    while process.is_alive():
        for pattern in ("*.partial", "[cfr]*/*.partial"):  # not in photos/
            if any(folder.glob(pattern)):
                return
        time.sleep(0.001)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="starts processes by a fork")
def test_killed_commands(whole, warm_processes, tmp_path):
    complete, seconds = whole
    expected = contents(complete)
    generator = random.Random(0)
    interrupted = 0
    for number in range(KILLS):
        name = list(COMMANDS)[number % len(COMMANDS)]
        command, folder = COMMANDS[name], tmp_path / str(number)
        shutil.copytree(complete, folder, copy_function=os.link)
        if number % 3 < 2:  # otherwise the command replaces its complete outputs
            for output in command.outputs:
                remove(folder / output)
        before = contents(folder)
        process = start(warm_processes, folder, command)
        time.sleep(generator.uniform(0, 1) * seconds[name])
        if number % 2:
            wait_for_write(process, folder)
            time.sleep(generator.uniform(0, 0.02))
        process.kill()
        process.join()
        interrupted += process.exitcode != 0
        after = contents(folder)  # loads every file
        assert before == {path: after[path] for path in before}, name
        for partial in (folder / "cache").glob("*.partial*"):  # as an hour later
            for path in (*partial.glob("*"), partial):
                os.utime(path, (0, 0))
        run(warm_processes, folder, command)
        assert contents(folder) == expected, name
        left = [path.name for path in folder.rglob("*") if is_temporary(path)]
        # `embed` removes this file; several `classify` may write it at once.
        assert [path for path in left if not path.startswith(".embedding.vectors.")] == [], name
        shutil.rmtree(folder)
    assert interrupted >= KILLS / 4  # the others had finished
