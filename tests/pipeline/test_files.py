"""Files are written completely or not at all."""

import os

import pytest

from pipeline.files import atomic_file, check_writable, write_atomically
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


def test_folder_that_cannot_be_written_to_is_reported(tmp_path):
    check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(PipelineError, match=rf"^{path}: .*File exists"):
        check_writable(path)
