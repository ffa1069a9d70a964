"""Errors of lost processes, and errors that another process has reported."""

from io import StringIO

import pytest
import torch.distributed as dist

from pipeline import failures
from pipeline.cli import main

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] "


@pytest.fixture
def _group(monkeypatch):
    """Pretend that there is a process group."""
    monkeypatch.setattr(failures, "_store_and_errors", lambda: (object(), dist.DistError))


@pytest.mark.usefixtures("_group")
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(f"{GLOO}Connection closed by peer [127.0.0.1]:35183"),
        RuntimeError("[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out"),
        RuntimeError("[enforce fail at D:\\gloo\\gloo\\transport\\uv\\pair.cc:9] closed"),
        dist.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:94, remote process exited"),
        dist.DistNetworkError("failed to recv, got 0 bytes"),
    ],
)
def test_lost_process(error):
    assert failures.is_lost_process(error)


@pytest.mark.usefixtures("_group")
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("connection refused: https://example.org/weights"),
        RuntimeError("photos of gloo/ and nccl: no connection"),
        RuntimeError("expected scalar type Float"),
        NotImplementedError(f"{GLOO}Connection closed by peer"),
    ],
)
def test_other_errors_are_no_lost_process(error):
    assert not failures.is_lost_process(error)


def test_without_other_processes_none_is_lost():
    assert not failures.is_lost_process(RuntimeError(f"{GLOO}Connection closed by peer"))
    assert failures.failure_of_another_rank() is None
    failures.report_failure("no other process reads this")


@pytest.mark.usefixtures("_group")
@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("ending", [RuntimeError(f"{GLOO}closed"), KeyboardInterrupt()])
@pytest.mark.parametrize("failure", ["x.png: damaged", None])
def test_error_of_another_process_is_printed_once(monkeypatch, capsys, rank, ending, failure):
    def end(*_: object, **__: object) -> None:
        raise ending

    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("pipeline.error_messages.failure_of_another_rank", lambda: failure)
    monkeypatch.setattr("pipeline.cli.report_failure", lambda _: None)
    monkeypatch.setattr("pipeline.commands.embed.embed", end)
    monkeypatch.setattr("builtins.open", lambda *_: StringIO())  # of `main`, instead of /dev/null
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr("sys.stdout", StringIO())  # `main` replaces it
        main(["embed"])
    errors = capsys.readouterr().err
    if failure:
        assert stop.value.code == 1
        assert errors.count(f"error: {failure}") == int(rank == "0")
    elif isinstance(ending, RuntimeError):
        assert stop.value.code == 1 and "another process" in errors
    else:
        assert stop.value.code == 130 and ("interrupted" in errors) == (rank == "0")


def test_error_is_reported_to_the_other_processes(monkeypatch, capsys):
    messages = []
    monkeypatch.setattr("pipeline.cli.report_failure", messages.append)
    with pytest.raises(SystemExit):
        main(["embed", "--data", "missing"])
    assert messages and capsys.readouterr().err == f"error: {messages[0]}\n"
