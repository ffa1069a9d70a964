"""Files of vectors without an embedding network, edited in many ways."""

import sys
import tracemalloc
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from checkpoint_files import make_network
from factories import unit_vectors
from vector_table_files import (
    assert_not_opened,
    npy,
    replace_member,
    write_csv,
    write_npz,
    write_parquet,
)

from pipeline.open_gallery import open_gallery
from stages.network.digest import state_digest

DIGEST = state_digest(make_network().state_dict())
VECTORS = unit_vectors(5, 8, seed=0)
IDS = list("abcde")
LABELS = ["10", "", "2", "=b", "10"]


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"vectors": None}, "vectors"),
        ({"ids": None}, "ids"),
        ({"embedding_digest": None}, "embedding_digest"),
        ({"vectors": VECTORS.double()}, "float64"),
        ({"vectors": VECTORS[0]}, "(8,)"),
        ({"vectors": VECTORS[:4]}, "ids"),
        ({"vectors": VECTORS[:, :7]}, "7"),
        ({"vectors": np.asfortranarray(VECTORS)}, "rows"),
        ({"ids": np.arange(5)}, "ids"),
        ({"ids": np.array(IDS, object)}, "ids"),
        ({"ids": IDS[:4]}, "ids"),
        ({"labels": LABELS[:4]}, "labels"),
        ({"labels": np.arange(5)}, "labels"),
        ({"embedding_digest": [DIGEST]}, "embedding_digest"),
        ({"embedding_digest": ""}, "without a digest"),
        ({"vectors": VECTORS[:0], "ids": np.array([], "U1"), "labels": None}, "no vectors"),
    ],
)
def test_npz_with_other_arrays(changes, text, tmp_path, embedding):
    path = tmp_path / "v.npz"
    arrays = {"vectors": VECTORS, "ids": IDS, "labels": LABELS, "embedding_digest": DIGEST}
    write_npz(path, **{**arrays, **changes})
    assert_not_opened(path, text, embedding=embedding)


@pytest.mark.parametrize("compress", [False, True])
def test_npz_with_a_wrong_bit(compress, tmp_path, embedding):
    """The checksum of the archive finds it, also where the length of the vector hardly changes."""
    path, vectors = tmp_path / "v.npz", unit_vectors(500, 8, seed=3)
    ids = [str(row) for row in range(500)]
    write_npz(path, vectors=vectors, ids=ids, embedding_digest=DIGEST, compress=compress)
    content = bytearray(path.read_bytes())
    content[zipfile.ZipFile(path).getinfo("vectors.npy").header_offset + 3000] ^= 1
    path.write_bytes(content)
    assert_not_opened(path, "damaged", embedding=embedding)


def test_npz_with_a_header_that_promises_too_much(tmp_path, embedding):
    path = tmp_path / "v.npz"
    write_npz(path, vectors=VECTORS, ids=IDS, embedding_digest=DIGEST)
    content = path.read_bytes()
    for shape in (b"(9, 8), ", b"(5, 9), ", b"(-1, 8),", b"(5, 10**9)"):
        changed = content.replace(b"(5, 8), ", shape[:8], 1)
        assert changed != content
        path.write_bytes(changed)
        assert_not_opened(path, embedding=embedding)


NPY_HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (5, 8)}"


@pytest.mark.parametrize(
    "header",
    [
        *("", "{5L", "  x\n y\n", "'", "{[1]: 2}", "{1: 2, 'a': 3}", "()", "\0", "[" * 500),
        *("-" * 9000 + "1", "1" + "+1" * 3000),
        NPY_HEADER.replace("'<f4'", "()"),
        NPY_HEADER.replace("'<f4'", "'\\ud800'"),
        NPY_HEADER.replace("'<f4'", "{'a': 1}"),
        NPY_HEADER + " " * 20_000,
    ],
)
def test_npz_with_an_invalid_header(header, tmp_path, embedding):
    path = tmp_path / "v.npz"
    write_npz(path, vectors=VECTORS, ids=IDS, embedding_digest=DIGEST)
    replace_member(path, "vectors.npy", npy(header, VECTORS.numpy().tobytes()))
    assert_not_opened(path, "damaged", "the header of vectors", embedding=embedding)


def test_npz_of_python_2_is_read_without_a_warning(tmp_path, embedding):
    path, values = tmp_path / "v.npz", VECTORS.numpy().tobytes()
    write_npz(path, vectors=VECTORS, ids=IDS, embedding_digest=DIGEST)
    replace_member(path, "vectors.npy", npy(NPY_HEADER.replace("(5, 8)", "(5L, 8L)"), values))
    assert torch.equal(torch.cat(list(open_gallery(path, embedding)[0].blocks())), VECTORS)


def test_npz_with_a_header_of_4_gb(tmp_path, embedding):
    """It would be read into memory before it is found to be too long."""
    path = tmp_path / "v.npz"
    write_npz(path, vectors=VECTORS, ids=IDS, embedding_digest=DIGEST)
    replace_member(path, "vectors.npy", b"\x93NUMPY\x02\x00" + b"\xff" * 4 + bytes(1000))
    assert_not_opened(path, "damaged", "version", embedding=embedding)


def test_npz_with_text_that_is_not_unicode(tmp_path, embedding):
    path = tmp_path / "v.npz"
    write_npz(path, vectors=VECTORS, ids=IDS, embedding_digest=DIGEST)
    header = "{'descr': '<U1', 'fortran_order': False, 'shape': (5,)}"
    replace_member(path, "ids.npy", npy(header, b"\xff" * 20))
    assert_not_opened(path, "damaged", embedding=embedding)


def test_npz_with_a_damaged_lzma_stream(tmp_path, embedding):
    pytest.importorskip("lzma")
    path, vectors = tmp_path / "v.npz", unit_vectors(500, 8, seed=3)
    write_npz(path, vectors=vectors, ids=[str(row) for row in range(500)], embedding_digest=DIGEST)
    replace_member(path, "", b"", zipfile.ZIP_LZMA)
    open_gallery(path, embedding)
    content = bytearray(path.read_bytes())
    start = zipfile.ZipFile(path).getinfo("vectors.npy").header_offset
    for first in (60, 400):  # the start of the stream, and within it
        changed = bytearray(content)
        changed[start + first : start + first + 200] = bytes([255]) * 200
        path.write_bytes(changed)
        assert_not_opened(path, "damaged", embedding=embedding)


def test_npz_with_a_long_text_takes_no_memory(tmp_path, embedding):
    path = tmp_path / "v.npz"
    write_npz(path, vectors=VECTORS, ids=IDS, embedding_digest=DIGEST)
    header = "{'descr': '<U1000000', 'fortran_order': False, 'shape': ()}"
    digest = npy(header, DIGEST.encode("utf-32-le") + bytes(4_000_000 - 4 * len(DIGEST)))
    replace_member(path, "embedding_digest.npy", digest, zipfile.ZIP_DEFLATED)
    del digest
    tracemalloc.start()
    assert_not_opened(path, "embedding_digest", "1,000,000 characters", embedding=embedding)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    "old, new",
    [
        ("id,", "name,"),
        ("embedding_digest", "digest"),
        ("v7", "v8"),
        ("v1,", ""),
        (DIGEST, "0" * 64),
        ("\n", "\n\n\nx,y,z,1,2,3,4,5,6,7,8,9,10,11\n"),
        ("0.", "none."),
        ("0.", "nan0."),
        ("0.", "1e99"),
        ("a,", '"a,'),
        ("label", "embedding_digest"),
    ],
)
def test_edited_csv(old, new, tmp_path, embedding):
    path = tmp_path / "v.csv"
    write_csv(path, VECTORS, list("abcde"), LABELS, DIGEST)
    text = path.read_text()
    path.write_text(text.replace(old, new, 1))
    assert_not_opened(path, embedding=embedding)
    path.write_text(text.replace("\n", "\r\n\r\n"))  # other line ends, and empty lines
    open_gallery(path, embedding)
    path.write_text("\ufeff" + text)  # as Excel writes UTF-8
    open_gallery(path, embedding)


def test_parquet_with_other_columns(tmp_path, embedding):
    path = tmp_path / "v.parquet"
    write_parquet(path, VECTORS, list("abcde"), LABELS, None)
    assert_not_opened(path, "embedding_digest", embedding=embedding)
    write_parquet(path, VECTORS, ["a", None, "c", "d", "e"], LABELS, DIGEST)
    assert_not_opened(path, "id", embedding=embedding)
    for table in ({"id": ["a"]}, {"id": ["a"], "vector": [[1.0]]}, {"id": ["a"], "vector": ["x"]}):
        pd.DataFrame(table).to_parquet(path)
        assert_not_opened(path, "vector", embedding=embedding)


def test_parquet_needs_pyarrow(tmp_path, embedding, monkeypatch):
    path = tmp_path / "v.parquet"
    write_parquet(path, VECTORS, list("abcde"), LABELS, DIGEST)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert_not_opened(path, "pip install pyarrow", embedding=embedding)
