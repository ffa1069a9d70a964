"""Outputs are checked and locked before a command begins."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from pipeline.files import atomic_file
from pipeline.outputs import reserve_outputs
from stages.errors import PipelineError


def hold(path: Path, connection) -> None:
    """Reserve an output in another process until the process is killed."""
    with reserve_outputs([path]):
        connection.send("reserved")
        signal.pause()


@pytest.fixture
def holder(tmp_path):
    """Return another process that has reserved `out/file`."""
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("fork")
    process = context.Process(target=hold, args=(tmp_path / "out" / "file", there))
    process.start()
    assert here.poll(20) and here.recv() == "reserved"
    yield process
    process.kill()
    process.join()


@pytest.mark.filterwarnings("ignore:.*fork")
def test_second_run_is_refused_until_the_first_is_killed(holder, tmp_path):
    path = tmp_path / "out" / "file"
    with pytest.raises(PipelineError, match=rf"^{path}: another run"), reserve_outputs([path]):
        pass
    with reserve_outputs([tmp_path / "out" / "other"]):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with reserve_outputs([path]):
        pass
    assert not any(path.parent.iterdir())  # the lock file of the killed process is removed


def test_temporary_files_of_a_killed_process_are_removed(tmp_path):
    kept = [
        tmp_path / "e.state",
        tmp_path / ".other.state.abcdefgh.partial",
        tmp_path / ".e.b.state.abcdefgh.partial",  # of e.b.state
    ]
    for path in kept:
        path.touch()
    with atomic_file(tmp_path / "e.state"):
        (stale,) = set(tmp_path.iterdir()) - set(kept)
    stale.touch()
    with reserve_outputs([tmp_path / "e.state"]):
        assert not stale.exists()
    assert set(tmp_path.iterdir()) == set(kept)


def test_a_command_may_reserve_the_outputs_of_its_caller(tmp_path):
    path, folder = tmp_path / "file", tmp_path / "reports"
    with reserve_outputs([path], folders=[folder]):
        with reserve_outputs([path], folders=[folder]):
            assert sorted(entry.name for entry in tmp_path.iterdir()) == [".file.lock", "reports"]
        assert (tmp_path / ".file.lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_folders_of_a_failed_command_are_removed_and_results_are_kept(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    with pytest.raises(KeyboardInterrupt), reserve_outputs([path], folders=[tmp_path / "c"]):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with reserve_outputs([path], folders=[tmp_path / "c"]):
        path.touch()
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "a", path.parent, path]


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_link_to_a_reserved_output_is_refused(holder, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "out" / "file")
    with pytest.raises(PipelineError, match=f"^{link}: another run"), reserve_outputs([link]):
        pass


@pytest.mark.parametrize("second", ["file", "folder/../file", "link"])
def test_an_output_is_neither_used_twice_nor_an_input(tmp_path, second):
    path = tmp_path / "file"
    path.touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(path)
    same = tmp_path / second
    with pytest.raises(PipelineError, match=f"^{same}: "), reserve_outputs([path, same]):
        pass
    with pytest.raises(PipelineError, match=f"^{same}: "), reserve_outputs([same], inputs=[path]):
        pass
