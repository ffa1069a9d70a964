"""Files of vectors hold what was written, in every format, and are complete or absent."""

import csv
import errno
import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from checkpoint_files import make_network
from factories import make_record, unit_vectors
from safetensors import safe_open
from safetensors.torch import load_file

from pipeline import vector_files
from pipeline.tensor_files import load_tensors
from pipeline.vector_files import FORMATS, VectorRows, check_format, check_ids, write_vectors
from stages.checkpoints import EmbeddingCheckpoint
from stages.errors import DataError, PipelineError
from stages.network.digest import state_digest

# Names that text formats could confuse: quotes, separators, line breaks, formulas, other alphabets.
NAMES = (
    *("photos/a.png", "b,c.png", 'd"e.png', "f\ng.png", "h\ri.png", "=1+1.png", "-2", "@j", "'k"),
    *("ネコ.png", "emoji 🐈.png", "back\\slash", " space ", "#1", "NA", "l" * 300),
)
LABELS = ("10", "2", "cat", "", "=a", "-1", "x,y", "line\nbreak", "NA")
NOT_UTF8 = os.fsdecode(b"caf\xe9.png")


@pytest.fixture(scope="module")
def embedder() -> EmbeddingCheckpoint:
    network = make_network()
    record = make_record("embedding", network)
    digest = state_digest(network.state_dict())
    return EmbeddingCheckpoint(network, ("a", "b"), record, digest)


def make_rows(count: int = 40, *, labelled: bool = True, names=NAMES) -> VectorRows:
    """Return vectors with each name at least once, some labels unknown."""
    ids = [names[row] if row < len(names) else f"{row}.png" for row in range(count)]
    labels = [LABELS[row % len(LABELS)] if labelled else "" for row in range(count)]
    vectors = unit_vectors(count, 8, seed=0)
    vectors[1] = torch.tensor([1.0, -0.0, 1e-38, -1e-7, 1 / 3, 0, 0, 0.1])
    return VectorRows(ids, labels, vectors)


def blocks_of(rows: VectorRows, size: int):
    """Divide rows into blocks, an empty one included."""
    yield VectorRows([], [], torch.empty(0, 8))
    for start in range(0, len(rows.ids), size):
        stop = start + size
        yield VectorRows(*(column[start:stop] for column in rows))


def unescaped(text: str) -> str:
    """Undo `escape_formula`."""
    return text[1:] if text[:1] == "'" and text[1:2] in tuple("=+-@") else text


def read_file(path: Path) -> tuple[list[str], list[str] | None, np.ndarray, str]:
    """Read ids, labels, vectors and the embedding's digest by other packages' readers."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        labels = arrays["labels"].tolist() if "labels" in arrays else None
        assert arrays["embedding_digest"].shape == ()
        return arrays["ids"].tolist(), labels, arrays["vectors"], str(arrays["embedding_digest"])
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = list(csv.DictReader(file))
        vectors = [[float(row[f"v{index}"]) for index in range(8)] for row in rows]
        (digest,) = {row["embedding_digest"] for row in rows}
        ids, labels = ([unescaped(row[name]) for row in rows] for name in ("id", "label"))
        return ids, labels if any(labels) else None, np.array(vectors, np.float32), digest
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        labels = ["" if label is None else label for label in table["label"].to_pylist()]
        vectors = np.array(table["vector"].to_pylist(), np.float32)
        digest = table.schema.metadata[b"embedding_digest"].decode()
        return table["id"].to_pylist(), labels if any(labels) else None, vectors, digest
    header, tensors = load_tensors(path, "gallery")
    record, labels = header.record, None
    if "labels" in tensors:
        assert tensors["labels"].dtype == torch.int64
        labels = [record["classes"][row] if row >= 0 else "" for row in tensors["labels"].tolist()]
    else:
        assert record["classes"] == []
    return record["ids"], labels, tensors["vectors"].numpy(), record["embedding_digest"]


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("ending", FORMATS)
def test_contents_are_exact(tmp_path, embedder, ending, labelled):
    rows = make_rows(labelled=labelled)
    out = tmp_path / f"v{ending}"
    assert write_vectors(out, blocks_of(rows, 7), embedder) == 40
    ids, labels, vectors, digest = read_file(out)
    assert ids == rows.ids
    assert labels == (rows.labels if labelled else None)
    assert vectors.dtype == np.float32 and vectors.shape == (40, 8)
    assert vectors.tobytes() == rows.vectors.numpy().tobytes()  # bit by bit, -0 included
    assert digest == embedder.digest
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize("ending", FORMATS)
def test_blocks_do_not_matter(tmp_path, embedder, ending, monkeypatch):
    monkeypatch.setattr(vector_files, "ROWS_PER_GROUP", 16)
    monkeypatch.setattr(vector_files, "IDS_PER_BLOCK", 6)
    monkeypatch.setattr(vector_files, "BLOCK_BYTES", 100)
    rows, contents = make_rows(), []
    for size in (1, 16, 40):
        out = tmp_path / f"{size}{ending}"
        write_vectors(out, blocks_of(rows, size), embedder)
        contents.append(out.read_bytes() if ending != ".parquet" else read_file(out)[0])
        assert read_file(out)[2].tobytes() == rows.vectors.numpy().tobytes()
    assert contents[0] == contents[1] == contents[2]


def test_a_gallery_is_a_safetensors_file_with_its_embedding(tmp_path, embedder):
    out = tmp_path / "v.safetensors"
    write_vectors(out, blocks_of(make_rows(), 7), embedder)
    tensors = load_file(out)
    header, loaded = load_tensors(out, "gallery")
    assert tensors.keys() == loaded.keys()
    for name, value in tensors.items():
        assert value.dtype == loaded[name].dtype and torch.equal(value, loaded[name])
    state = embedder.network.state_dict()
    for name, value in state.items():
        assert torch.equal(loaded[f"embedding.{name}"], value)
    assert len(loaded) == len(state) + 2
    assert header.digest == state_digest(loaded)
    classes = ["2", "10", "-1", "=a", "NA", "cat", "line\nbreak", "x,y"]  # numbers by value
    assert header.record["classes"] == classes
    assert header.record["network"] == embedder.record["network"]
    assert header.record["read"] == embedder.record["read"]
    with safe_open(out, framework="np") as file:
        assert file.get_slice("vectors").get_shape() == [40, 8]


def test_tensors_begin_at_multiples_of_their_size(tmp_path, embedder):
    out = tmp_path / "v.safetensors"
    write_vectors(out, blocks_of(make_rows(names=["x"]), 7), embedder)
    content = out.read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])
    ends = set()
    for name, entry in header.items():
        if name != "__metadata__":
            size = 8 if entry["dtype"] == "I64" else 4
            assert entry["data_offsets"][0] % size == 0
            ends.add(entry["data_offsets"][1])
    assert max(ends) == len(content) - 8 - length


@pytest.mark.parametrize("ending", FORMATS)
def test_file_names_that_are_not_utf8(tmp_path, embedder, ending):
    out = tmp_path / f"v{ending}"
    rows = make_rows(3, names=("a.png", NOT_UTF8, "b.png"))
    if ending == ".parquet":
        with pytest.raises(PipelineError, match=r"v\.parquet: .*not valid UTF-8.*format"):
            check_ids(out, rows.ids)
        with pytest.raises(PipelineError, match="UTF-8"):
            write_vectors(out, [rows], embedder)
        assert not any(tmp_path.iterdir())
    else:
        check_ids(out, rows.ids)
        write_vectors(out, [rows], embedder)
        assert read_file(out)[0] == rows.ids


def test_pandas_reads_the_csv_file(tmp_path, embedder):
    rows = make_rows()
    write_vectors(tmp_path / "v.csv", [rows], embedder)
    table = pd.read_csv(tmp_path / "v.csv")
    assert list(table)[:4] == ["id", "label", "embedding_digest", "v0"] and len(table) == 40
    read = table.filter(regex=r"^v\d+$").to_numpy(np.float32)
    np.testing.assert_allclose(read, rows.vectors.numpy(), rtol=1e-6)
    assert table["id"][5] == "'=1+1.png"


@pytest.mark.parametrize("name", ["v", "v.txt", "v.npz.gz", ".npz"])
def test_unknown_ending(tmp_path, embedder, name):
    with pytest.raises(PipelineError, match=rf"{name}: .*\.safetensors, \.npz, \.csv, \.parquet"):
        write_vectors(tmp_path / name, [make_rows()], embedder)
    assert not any(tmp_path.iterdir())
    assert check_format(Path("V.NPZ")) == ".npz"


def test_missing_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(PipelineError, match=r"v\.parquet: needs .*pyarrow; run pip install"):
        check_format(tmp_path / "v.parquet")
    check_format(tmp_path / "v.npz")


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, DataError("damaged")])
def test_an_interrupt_or_an_error_leaves_nothing(tmp_path, embedder, ending, error):
    out = tmp_path / f"v{ending}"
    out.write_bytes(b"earlier")

    def blocks():
        yield make_rows()
        raise error

    with pytest.raises(error if isinstance(error, type) else DataError):
        write_vectors(out, blocks(), embedder)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert out.read_bytes() == b"earlier"


@pytest.mark.parametrize("ending", FORMATS)
def test_full_disk_is_one_error(tmp_path, embedder, ending, monkeypatch):
    """Fail each of the first writes in turn, those to the temporary file included."""

    class Full:
        def __init__(self, file, limit):
            self.file, self.limit = file, limit

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, content):
            self.limit[0] -= len(content)
            if self.limit[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(content)

    real_spool, real_file = vector_files.tempfile.TemporaryFile, vector_files.atomic_file
    errors = 0
    for size in (0, 100, 700, 1300, 3000, 5000):
        limit, out = [size], tmp_path / f"v{ending}"
        with monkeypatch.context() as patch:

            class Spool(Full):
                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    self.file.close()

            class Atomic:
                def __init__(self, path, limit=limit):
                    self.context, self.limit = real_file(path), limit

                def __enter__(self):
                    return Full(self.context.__enter__(), self.limit)

                def __exit__(self, *arguments):
                    return self.context.__exit__(*arguments)

            spooled = lambda dir, limit=limit: Spool(real_spool(dir=dir), limit)  # noqa: E731
            patch.setattr(vector_files.tempfile, "TemporaryFile", spooled)
            patch.setattr(vector_files, "atomic_file", Atomic)
            try:
                write_vectors(out, blocks_of(make_rows(), 7), embedder)
            except PipelineError as error:
                errors += 1
                assert "No space left" in str(error) and str(error).startswith(f"{out}: ")
                assert not any(tmp_path.iterdir())
    assert errors >= 4


def test_vectors_that_are_not_finite_are_rejected(tmp_path, embedder):
    rows = make_rows()
    rows.vectors[9, 3] = float("nan")
    with pytest.raises(DataError, match=rf"^{rows.ids[9]}: .*not finite"):
        write_vectors(tmp_path / "v.npz", [rows], embedder)
    assert not any(tmp_path.iterdir())


def test_too_many_names_for_a_header(tmp_path, embedder, monkeypatch):
    monkeypatch.setattr(vector_files, "MAX_HEADER_BYTES", 2**20 + 1000)
    check_ids(tmp_path / "v.safetensors", ["short"] * 10)
    names = ["é" * 20] * 10  # \\u00e9 in the header
    with pytest.raises(PipelineError, match=r"v\.safetensors: .*10 images.*\.npz"):
        check_ids(tmp_path / "v.safetensors", names)
    check_ids(tmp_path / "v.npz", names)
    rows = VectorRows(names, [""] * 10, unit_vectors(10, 8, seed=0))
    with pytest.raises(PipelineError, match=r"\.npz"):
        write_vectors(tmp_path / "v.safetensors", [rows], embedder)
    assert not any(tmp_path.iterdir())


def test_a_link_keeps_pointing_to_the_file(tmp_path, embedder):
    (tmp_path / "there").mkdir()
    (tmp_path / "v.npz").symlink_to(tmp_path / "there" / "w.npz")
    write_vectors(tmp_path / "v.npz", [make_rows()], embedder)
    assert (tmp_path / "v.npz").is_symlink() and len(read_file(tmp_path / "v.npz")[0]) == 40
