"""Opening of files that can be images."""

import os

import pytest

from pipeline.data import image_files
from pipeline.data.image_files import open_image


def test_regular_file_is_opened_at_its_start(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"content")
    with open_image(str(path)) as file:
        assert file.read() == b"content"


def test_pipe_and_large_file_are_refused_without_reading(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "large.png").write_bytes(b"12345")
    monkeypatch.setattr(image_files, "MAX_FILE_BYTES", 4)
    for name, problem in (("pipe.png", "not a file"), ("large.png", "more than an image takes")):
        with pytest.raises(ValueError, match=problem), open_image(str(tmp_path / name)):
            pass
    with pytest.raises(FileNotFoundError), open_image(str(tmp_path / "missing.png")):
        pass
