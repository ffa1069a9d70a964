"""Run a case in a new folder and return the outcome.

The folder holds:

=========================  =====================================================================
``photos/``                3 classes of 8 grey images, 12 x 12
``checkpoints/``           a trained embedding and classifier; another embedding, ``other``; and
                           ``unfinished.state`` of an interrupted run (see ``UNFINISHED``)
``reports/``, ``folds/``   the report of the trained run, and one of its cross-validation
``notes.txt``              a text file
=========================  =====================================================================
"""

import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile.case import Case, Outcome
from PIL import Image

from pipeline.cli import main

ROOT = Path(__file__).parents[2]
UNFINISHED = "embed --data photos --out checkpoints/unfinished.safetensors --dim 8 --epochs 2"
SECONDS = 10  # longest time of a case; errors come before the work
SHELL_SECONDS = 120
MEMORY = 4 * 2**30  # bytes that a case may add to the address space
SHELL = 'set -u; pipeline() { "$PYTHON" -m pipeline "$@"; }\n'


class TooSlow(BaseException):
    """A case has not ended in time. Not an `Exception`, which decoders catch."""


def write_workspace(folder: Path) -> None:
    """Write the files that every case starts with."""
    generator = np.random.default_rng(0)
    for index, name in enumerate(("ash", "birch", "cedar")):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(8):
            pixels = generator.normal(60 + 60 * index, 20, (12, 12)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{number}.png")
    (folder / "notes.txt").write_text("These are notes.\n")
    embed = ["embed", "--data", "photos", "--dim", "8", "--quiet"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        succeed(*embed, "--epochs", "1")
        succeed(*embed, "--epochs", "1", "--seed", "1", "--out", "checkpoints/other.safetensors")
        succeed("classify", "--quiet")
        succeed("report", "--quiet")
        options = ("--epochs", "1", "--dim", "8", "--folds", "2", "--out", "folds")
        succeed("run", "--data", "photos", "--quiet", *options)
        patch.setattr("pipeline.monitor.any_rank", lambda _: True)  # stop after the first step
        with pytest.raises(SystemExit, match="130"):
            main(UNFINISHED.split())
    for name in ("embedding.state", "other.state"):  # large, and only needed to resume
        (folder / "checkpoints" / name).unlink()


def succeed(*arguments: str) -> None:
    """Run a command that must succeed."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 0, arguments


def prepare_case(case: Case, template: Path, folder: Path) -> Path:
    """Copy the workspace and prepare the case in it."""
    shutil.copytree(template, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        case.prepare()
    return folder


def run_here(case: Case, folder: Path) -> Outcome:
    """Run a command in this process, within limits of time and memory."""
    before = snapshot(folder)
    status: Any = None
    failure = ""
    # As strict as real ones. pytest's own cannot hold what is not UTF-8.
    streams = {name: io.TextIOWrapper(io.BytesIO(), "utf-8") for name in ("stdout", "stderr")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, stream in streams.items():
            patch.setattr(sys, name, stream)
        for name, value in case.environment.items():
            patch.delenv(name, raising=False) if value is None else patch.setenv(name, value)
        try:
            with limits():
                main(case.arguments)
        except SystemExit as stop:
            status = stop.code or 0
        except (Exception, TooSlow):
            failure = traceback.format_exc()
    out, err = (read_stream(stream) for stream in streams.values())
    return Outcome(status, out, err + failure, changes(before, folder))


def read_stream(stream: io.TextIOWrapper) -> str:
    """Return what was written to a stream."""
    stream.flush()
    return stream.detach().getvalue().decode(errors="backslashreplace")


def run_shell(case: Case, folder: Path) -> Outcome:
    """Run a bash script in a separate process. In it `pipeline` is the program."""
    before = snapshot(folder)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONFAULTHANDLER": "1"}
    process = subprocess.Popen(
        ["bash", "-c", SHELL + case.command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=SHELL_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        err += b"Traceback: the script did not end\n"
    texts = [text.decode(errors="backslashreplace") for text in (out, err)]
    return Outcome(process.returncode, *texts, changes(before, folder))


@contextmanager
def limits() -> Iterator[None]:
    """Bound time and memory of this process. A lack of memory then raises a MemoryError."""

    def stop(*_: Any) -> None:
        raise TooSlow(f"no end after {SECONDS} seconds")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    bound = pages * resource.getpagesize() + MEMORY
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGALRM, signal.SIGTERM)]
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, 5)  # again if a destructor swallows the error
    resource.setrlimit(resource.RLIMIT_AS, (bound, hard))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for number, handler in handlers:
            signal.signal(number, handler)


def snapshot(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Return kind, size, time and content of everything in a folder but ``cache/``."""
    seen = {}
    for parent, folders, files in os.walk(folder):
        if Path(parent) == folder and "cache" in folders:
            folders.remove("cache")
        for name in folders + files:
            path = Path(parent, name)
            seen[str(path.relative_to(folder))] = describe(path)
    return seen


def describe(path: Path) -> tuple[Any, ...]:
    """Return what identifies the content of a path."""
    state = path.lstat()
    kind = state.st_mode
    if path.is_symlink():
        return kind, path.readlink()
    if path.is_file():
        content = path.read_bytes() if state.st_size < 2**24 else b""
        return kind, state.st_size, state.st_mtime_ns, state.st_ino, content
    return kind, state.st_rdev


def changes(before: dict[str, tuple[Any, ...]], folder: Path) -> frozenset[str]:
    """Return the paths that differ from a snapshot."""
    after = snapshot(folder)
    paths = before.keys() | after.keys()
    return frozenset(path for path in paths if before.get(path) != after.get(path))
