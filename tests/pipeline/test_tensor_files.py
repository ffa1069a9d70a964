"""Tensors that are written in blocks are read by safetensors, like those that it has written."""

import numpy as np
import pytest
import torch
from factories import make_record
from safetensors import safe_open

from pipeline import tensor_files
from pipeline.tensor_files import DTYPE_NAMES, load_tensors, save_tensors, write_tensors
from stages.errors import PipelineError
from stages.network.digest import TensorBytes, tensor_bytes


def make_tensors() -> dict[str, torch.Tensor]:
    """Return a tensor of every type, with odd sizes, and an empty one and a scalar."""
    tensors = {name: (torch.arange(7) % 2).to(dtype) for dtype, name in DTYPE_NAMES.items()}
    images = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    return {**tensors, "empty": torch.empty(0, 3), "scalar": torch.tensor(7), "images": images}


def test_written_tensors_are_read_again(tmp_path):
    tensors, record = make_tensors(), make_record("vectors")
    path, saved = tmp_path / "written", tmp_path / "saved"
    streamed = {name: tensor_bytes(value) for name, value in tensors.items()}
    content = np.arange(1000, dtype="<f4")
    tensors["long"] = torch.from_numpy(content).reshape(10, 100)
    blocks = [content[:333].tobytes(), content[333:].tobytes()]
    streamed["long"] = TensorBytes(torch.float32, (10, 100), lambda: blocks)
    with path.open("wb") as file:
        digest = write_tensors(file, "vectors", streamed, record)
    assert digest == save_tensors(saved, "vectors", tensors, record)
    header, read = load_tensors(path, "vectors")
    assert header == load_tensors(saved, "vectors")[0]
    assert read.keys() == tensors.keys()
    for name, value in tensors.items():
        assert read[name].dtype == value.dtype and torch.equal(read[name], value), name
    assert path.stat().st_size <= saved.stat().st_size + 100
    with safe_open(path, framework="np") as file:
        assert np.array_equal(file.get_slice("long")[3:5], content.reshape(10, 100)[3:5])


def test_header_that_is_too_long(tmp_path, monkeypatch):
    record = make_record("vectors")
    monkeypatch.setattr(tensor_files, "MAX_HEADER_BYTES", 500)
    with (
        (tmp_path / "written").open("wb") as file,
        pytest.raises(PipelineError, match=r"header .* more than the 500"),
    ):
        write_tensors(file, "vectors", {"a": tensor_bytes(torch.zeros(1))}, record)
    assert (tmp_path / "written").stat().st_size == 0


def test_limit_is_that_of_safetensors(tmp_path):
    """One byte more and safetensors refuses the file."""
    limit = tensor_files.MAX_HEADER_BYTES
    for size, opens in ((limit, True), (limit + 8, False)):
        text = b'{"__metadata__":{"a":"'
        text += b"x" * (size - len(text) - 3) + b'"}}'
        (tmp_path / "file").write_bytes(size.to_bytes(8, "little") + text)
        try:
            with safe_open(tmp_path / "file", framework="np") as file:
                assert list(file.keys()) == []
            opened = True
        except Exception as error:
            assert "too large" in str(error).lower()
            opened = False
        assert opened == opens
