"""Preparations of cases: files, links, and edited checkpoints and states.

Each function returns a function without arguments, for ``Case.prepare``.
"""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.tensor_files import load_tensors, save_tensors

Step = Callable[[], Any]
EMBEDDING = "checkpoints/embedding.safetensors"
CLASSIFIER = "checkpoints/classifier.safetensors"
STATE = "checkpoints/unfinished.state"


def steps(*parts: Step) -> Step:
    """Do several things in order."""
    return lambda: [part() for part in parts]


def file(path: str | bytes, content: str | bytes = "") -> Step:
    """Write a file, and the folders above it."""

    def write() -> None:
        target = Path(os.fsdecode(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def folder(path: str) -> Step:
    """Create a folder."""
    return lambda: Path(path).mkdir(parents=True)


def link(path: str, target: str) -> Step:
    """Create a symbolic link."""

    def write() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).symlink_to(target)

    return write


def fifo(path: str) -> Step:
    """Create a named pipe that nothing writes to."""
    return lambda: os.mkfifo(path)


def device(path: str, name: str, minor: int) -> Step:
    """Create a node of a memory device such as ``full``; without the right to, link to it.

    Never name devices of the machine as outputs: as root, a wrong program would replace them.
    """

    def create() -> None:
        try:
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
            Path(path).open("rb").close()
        except OSError:
            Path(path).unlink(missing_ok=True)
            Path(path).symlink_to(f"/dev/{name}")

    return create


def copy(source: str, target: str | bytes) -> Step:
    """Copy a file or a folder."""

    def run() -> None:
        path = Path(os.fsdecode(target))
        path.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if Path(source).is_dir() else shutil.copy)(source, path)

    return run


def move(source: str, target: str) -> Step:
    """Rename a file or a folder."""

    def run() -> None:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(source).rename(target)

    return run


def remove(*paths: str) -> Step:
    """Remove files and folders."""

    def run() -> None:
        for path in paths:
            shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()

    return run


def image(path: str, size: tuple[int, int] = (12, 12), mode: str = "L", **options: Any) -> Step:
    """Save an image of one colour."""

    def save() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, 99 if mode == "L" else 0).save(path, **options)

    return save


def manifest(text: str, encoding: str = "utf-8") -> Step:
    """Write ``list.csv``."""
    return file("list.csv", text.encode(encoding))


def truncated(path: str, share: float = 0.5) -> Step:
    """Cut off the end of a file."""
    return lambda: os.truncate(path, int(Path(path).stat().st_size * share))


def flipped(path: str, share: float) -> Step:
    """Flip a bit at a relative position of a file."""

    def flip() -> None:
        content = bytearray(Path(path).read_bytes())
        content[int(len(content) * share)] ^= 16
        Path(path).write_bytes(content)

    return flip


def header(path: str, **values: str | None) -> Step:
    """Change entries of a checkpoint's header; ``None`` removes one."""

    def edit() -> None:
        with safe_open(path, framework="pt") as content:
            metadata = content.metadata() | values
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        save_file(
            tensors, path, {name: text for name, text in metadata.items() if text is not None}
        )

    return edit


def record(path: str, changes: dict[str, Any], *, digest: bool = True) -> Step:
    """Change fields of a checkpoint's record.

    Args:
        path: Checkpoint.
        changes: New values. A key such as ``read.size`` is a nested field; ``...`` removes a field.
        digest: Update the record's digest too, as someone would who hides the change.
    """

    def edit() -> None:
        with safe_open(path, framework="pt") as content:
            metadata = content.metadata()
        values = json.loads(metadata["record"])
        for key, value in changes.items():
            *parents, name = key.split(".")
            target = values
            for parent in parents:
                target = target[parent]
            if value is ...:
                del target[name]
            else:
                target[name] = value
        text = json.dumps(values)
        new = {"record": text}
        if digest and "record_digest" in metadata:
            new["record_digest"] = hashlib.sha256(text.encode()).hexdigest()
        header(path, **new)()

    return edit


def tensors(path: str, kind: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Step:
    """Change the tensors of a checkpoint, with the digest that they then have."""

    def edit() -> None:
        content, values = load_tensors(Path(path), kind)
        change(values)
        save_tensors(Path(path), kind, values, content.record)

    return edit


def state(change: Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]) -> Step:
    """Change the record and the tensors of a training state, with the digests they then have."""

    def edit() -> None:
        content, values = load_tensors(Path(STATE), "state")
        changed = dict(content.record)
        change(changed, values)
        save_tensors(Path(STATE), "state", values, changed)

    return edit


def pickled(content: Any) -> Step:
    """Write a training state with any content that torch can pickle."""
    return lambda: torch.save(content, STATE)
