"""Fixtures that the tests of the commands share."""

from pathlib import Path

import pytest
from checkpoint_files import write_file

from pipeline.cli import main


@pytest.fixture
def run_command(tmp_path, monkeypatch, capsys):
    """Return a function that runs a command in an empty folder.

    It returns the exit status, standard output and standard error.
    """
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture(params=["embedding", "classifier"])
def kind(request):
    """Kind of the checkpoint, each in turn."""
    return request.param


@pytest.fixture
def checkpoint(kind, tmp_path):
    """Path of a checkpoint."""
    path = tmp_path / f"{kind}.safetensors"
    write_file(kind, path)
    return path


@pytest.fixture
def embedding(tmp_path) -> Path:
    """Path of the embedding with the network of `write_file`."""
    path = tmp_path / "embedding.safetensors"
    write_file("embedding", path)
    return path
