"""Files are written completely or not at all."""

import os
from pathlib import Path

import pytest

from pipeline.files import (
    atomic_file,
    check_output_file,
    check_output_folder,
    write_atomically,
)
from stages.errors import PipelineError


@pytest.fixture
def full_disk(monkeypatch):
    """Make every write fail when it reaches the disk."""

    def fail(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)


def test_file_is_replaced(tmp_path):
    path = tmp_path / "folder" / "file"
    for content in (b"first", b"second"):
        write_atomically(path, content)
        assert path.read_bytes() == content
        assert list(path.parent.iterdir()) == [path]


def test_failed_write_keeps_the_earlier_file_and_leaves_no_other(tmp_path, full_disk):
    path = tmp_path / "file"
    path.write_bytes(b"earlier")
    with pytest.raises(PipelineError, match=rf"^{path}: .*No space left on device"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"earlier" and list(tmp_path.iterdir()) == [path]


def test_error_while_writing_keeps_the_earlier_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"earlier")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"earlier" and list(tmp_path.iterdir()) == [path]


def test_temporary_file_is_hidden_and_marked_as_partial(tmp_path):
    path = tmp_path / "file.csv"
    with atomic_file(path):
        (name,) = (entry.name for entry in tmp_path.iterdir())
    assert name.startswith(".file.csv.") and name.endswith(".partial")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_umask_decides_who_can_read_a_file(tmp_path, umask, mode):
    earlier = os.umask(umask)
    try:
        write_atomically(tmp_path / "file", b"")
    finally:
        os.umask(earlier)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_writing_does_not_change_the_umask_of_other_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("changed for the whole process"))
    write_atomically(tmp_path / "file", b"")


def test_target_of_a_link_is_replaced(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"earlier")
    link.symlink_to(target)
    write_atomically(link, b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"


def test_devices_are_written_to_and_not_replaced():
    write_atomically(Path("/dev/null"), b"content")
    with pytest.raises(PipelineError, match=r"^/dev/full: .*No space left on device"):
        write_atomically(Path("/dev/full"), b"content")
    assert Path("/dev/full").is_char_device() and Path("/dev/null").is_char_device()


def link_to_itself(folder: Path) -> Path:
    path = folder / "loop"
    path.symlink_to(path)
    return path


UNWRITABLE = {
    "folder": lambda folder: folder,
    "below a file": lambda folder: folder / "file" / "out.csv",
    "long name": lambda folder: folder / ("x" * 250),
    "null byte": lambda folder: folder / "a\0b",
    "link to itself": link_to_itself,
    "below a link to itself": lambda folder: link_to_itself(folder) / "out.csv",
    "no file system for files": lambda folder: Path("/proc/out.csv"),
    "device": lambda folder: Path("/dev/null"),
    "empty": lambda folder: Path(),
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_unwritable_files_are_reported_and_nothing_is_created(tmp_path, name):
    (tmp_path / "file").touch()
    path = UNWRITABLE[name](tmp_path)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(PipelineError) as error:
        check_output_file(path)
    assert str(error.value).startswith(f"{path}: ") and "; " in str(error.value)
    assert set(tmp_path.rglob("*")) == before


def test_new_files_and_folders_are_accepted_and_not_created(tmp_path):
    check_output_file(tmp_path / "a" / "b" / "out.csv")
    check_output_folder(tmp_path / "a" / "b")
    check_output_file(Path("/dev/null"), allow_special=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file", "file/below", "y" * 300])
def test_unwritable_folders_are_reported(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(PipelineError, match=name):
        check_output_folder(tmp_path / name)
