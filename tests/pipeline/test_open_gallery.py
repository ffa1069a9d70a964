"""Files to search: every format, and files that are damaged, edited or of another embedding."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from checkpoint_files import (
    assert_rejected,
    change_header,
    make_network,
    write_file,
    write_gallery,
)
from factories import make_record, unit_vectors
from safetensors.torch import load_file
from vector_table_files import ENDINGS, write_csv, write_npz, write_parquet, write_table

import pipeline.vector_blocks
from pipeline.checkpoint import save_embedding
from pipeline.checkpoint_header import make_header
from pipeline.open_gallery import open_gallery
from pipeline.tensor_files import read_header
from stages.errors import CheckpointError, DataError, PipelineError
from stages.gallery import UNLABELLED
from stages.network.digest import state_digest

NETWORK = make_network()
DIGEST = state_digest(NETWORK.state_dict())
VECTORS = unit_vectors(5, 8, seed=0)
# A line break, a formula, bytes that are not UTF-8, a space at the end and a quote.
IDS = ["new\nline.png", "=1+1.png", "caf\udce9.png", 'q"uote .png ', "'=x.png"]
LABELS = ["10", "", "2", "=b", "10"]


@pytest.fixture
def embedding(tmp_path) -> Path:
    path = tmp_path / "embedding.safetensors"
    save_embedding(path, NETWORK, make_record("embedding", NETWORK))
    return path


def gallery_file(path: Path, vectors: torch.Tensor = VECTORS, **changes: Any) -> Path:
    """Write a gallery; changes of the record and ``labels``."""
    labels = {"labels": changes.pop("labels")} if "labels" in changes else {}
    ids = {"ids": [f"{row}.png" for row in range(len(vectors))]}
    record = make_record("gallery", NETWORK, **{**ids, **changes})
    write_gallery(path, NETWORK, vectors, record, **labels)
    return path


def rejects(path: Path, *texts: str, embedding: Path | None = None) -> None:
    """Assert one error that names the file and contains the texts."""
    with pytest.raises(PipelineError) as error:
        open_gallery(path, embedding)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and ";" in message
    for text in texts:
        assert text in message


def test_gallery_brings_its_embedding(tmp_path):
    labels = torch.tensor([1, UNLABELLED, 0, 1, 1])
    path = gallery_file(tmp_path / "g.safetensors", labels=labels, classes=["2", "10"], ids=IDS)
    gallery, embedder = open_gallery(path, None)
    assert torch.equal(torch.cat(list(gallery.blocks())), VECTORS)
    assert torch.equal(torch.cat(list(gallery.blocks())), VECTORS)  # it can be read again
    assert gallery.ids == tuple(IDS) and gallery.classes == ("2", "10")
    assert torch.equal(gallery.labels, labels)
    assert [gallery.class_name(row) for row in range(3)] == ["10", "", "2"]
    assert gallery.embedding_digest == DIGEST == state_digest(embedder.network.state_dict())
    assert embedder.record["read"] == make_record("gallery", NETWORK)["read"]
    assert not embedder.network.training


def test_gallery_without_labels(tmp_path):
    gallery, _ = open_gallery(gallery_file(tmp_path / "g.safetensors", classes=[]), None)
    assert gallery.labels.tolist() == [UNLABELLED] * 5 and gallery.class_name(0) == ""


def test_classifier_is_a_gallery(tmp_path):
    path = tmp_path / "c.safetensors"
    write_file("classifier", path)
    gallery, embedder = open_gallery(path, None)
    assert gallery.ids == ("x", "y", "z") and gallery.class_name(1) == "b"
    assert torch.equal(torch.cat(list(gallery.blocks())), torch.eye(8)[:3])
    assert gallery.embedding_digest == DIGEST and embedder.record["network"]["dim"] == 8


@pytest.mark.parametrize("ending", ENDINGS)
def test_tables(ending, tmp_path, embedding):
    path = tmp_path / f"vectors{ending}"
    is_parquet = ending == ".parquet"
    ids = [name.replace("\udce9", "é") for name in IDS] if is_parquet else IDS
    write_table(path, VECTORS, ids, LABELS, DIGEST)
    gallery, embedder = open_gallery(path, embedding)
    assert torch.equal(torch.cat(list(gallery.blocks())), VECTORS)
    assert torch.equal(torch.cat(list(gallery.blocks())), VECTORS)
    expected = [name if ending != ".csv" else name.replace("'=", "=") for name in ids]
    assert list(gallery.ids) == expected  # the one ambiguous text in CSV is the last
    assert gallery.classes == ("2", "10", "=b")  # in natural order
    assert [gallery.class_name(row) for row in range(5)] == LABELS
    assert embedder.digest == gallery.embedding_digest == DIGEST


def test_tables_without_labels(tmp_path, embedding):
    write_npz(tmp_path / "v.npz", vectors=VECTORS, ids=IDS, embedding_digest=DIGEST)
    write_csv(tmp_path / "v.csv", VECTORS, IDS, LABELS, DIGEST)
    text = (tmp_path / "v.csv").read_bytes().replace(b",label,", b",other,", 1)
    (tmp_path / "v.csv").write_bytes(text)
    write_parquet(tmp_path / "v.parquet", VECTORS, list("abcde"), [""] * 5, DIGEST)
    for ending in ENDINGS:
        gallery, _ = open_gallery(tmp_path / f"v{ending}", embedding)
        assert gallery.classes == () and set(gallery.labels.tolist()) == {UNLABELLED}


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 100])
def test_vectors_are_read_in_blocks(compress, rows, tmp_path, embedding, monkeypatch):
    vectors = unit_vectors(7, 8, seed=1)
    ids = [f"{row:0100}" for row in range(7)]
    npz = tmp_path / "v.npz"
    write_npz(npz, vectors=vectors, ids=ids, embedding_digest=DIGEST, compress=compress)
    monkeypatch.setattr(pipeline.vector_blocks, "BLOCK_BYTES", rows * 32)
    monkeypatch.setattr(pipeline.vector_tables, "TEXT_BYTES", rows * 400)
    for path in (npz, gallery_file(tmp_path / "g.safetensors", vectors)):
        gallery, _ = open_gallery(path, embedding)
        blocks = list(gallery.blocks())
        assert [len(block) for block in blocks] == [min(rows, 7)] * (7 // min(rows, 7)) + (
            [1] if rows == 2 else []
        )
        assert torch.equal(torch.cat(blocks), vectors)
    assert open_gallery(npz, embedding)[0].ids == tuple(ids)


@pytest.mark.parametrize("ending", ENDINGS)
def test_table_needs_its_embedding(ending, tmp_path, embedding):
    path, other = tmp_path / f"v{ending}", tmp_path / "other.safetensors"
    write_table(path, VECTORS, list("abcde"), LABELS, DIGEST)
    rejects(path, "--embedding")
    torch.manual_seed(1)
    network = type(NETWORK)(1, 8, 8)
    digest = save_embedding(other, network, make_record("embedding", network))
    rejects(path, DIGEST[:12], digest[:12], "other.safetensors", embedding=other)
    for kind in ("gallery", "classifier"):
        write_file(kind, tmp_path / kind)
        open_gallery(tmp_path / kind, embedding)
        rejects(tmp_path / kind, DIGEST[:12], digest[:12], embedding=other)
    with pytest.raises(CheckpointError, match="no such file"):
        open_gallery(path, tmp_path / "missing.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, 1.5])
@pytest.mark.parametrize("ending", [*ENDINGS, ".safetensors"])
def test_invalid_vector(ending, value, tmp_path, embedding):
    path, vectors = tmp_path / f"v{ending}", VECTORS.clone()
    vectors[3] *= value
    if ending == ".safetensors":
        gallery_file(path, vectors, ids=list("abcde"))
    else:
        write_table(path, vectors, list("abcde"), LABELS, DIGEST)
    rejects(path, "row 4", "d", embedding=embedding)


@pytest.mark.parametrize("ending", [*ENDINGS, ".safetensors"])
@pytest.mark.parametrize("share", [0, 0.3, 0.6, 0.95])
def test_truncated_file(ending, share, tmp_path, embedding):
    path = tmp_path / f"v{ending}"
    vectors = unit_vectors(50, 8, seed=2)
    if ending == ".safetensors":
        gallery_file(path, vectors)
    else:
        write_table(path, vectors, [f"{row}" for row in range(50)], ["a"] * 50, DIGEST)
    content = path.read_bytes()
    end = int(share * len(content))
    if content[:end].endswith(b"\n"):
        end -= 1  # complete rows are a valid table
    path.write_bytes(content[:end])
    rejects(path, embedding=embedding)


@pytest.mark.parametrize("path", ["v.npz", "v.csv", "v.parquet", "v.safetensors", "photos"])
@pytest.mark.parametrize("found", ["missing", "a folder", "of zeros", "notes"])
def test_other_files(path, found, tmp_path, embedding):
    path = tmp_path / path
    if found == "a folder":
        path.mkdir()
    elif found != "missing":
        path.write_bytes(bytes(5000) if found == "of zeros" else b"These are notes.\nNo table.\n")
    rejects(path, embedding=embedding)
    if path.suffix == ".csv" and found == "notes":
        path.write_text("path,label\na.png,cat\n")
        rejects(path, "v0", embedding=embedding)


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
    rejects(path, text, embedding=embedding)


@pytest.mark.parametrize("compress", [False, True])
def test_npz_with_a_wrong_bit(compress, tmp_path, embedding):
    """The checksum of the archive finds it, also where the length of the vector hardly changes."""
    path, vectors = tmp_path / "v.npz", unit_vectors(500, 8, seed=3)
    ids = [str(row) for row in range(500)]
    write_npz(path, vectors=vectors, ids=ids, embedding_digest=DIGEST, compress=compress)
    content = bytearray(path.read_bytes())
    content[zipfile.ZipFile(path).getinfo("vectors.npy").header_offset + 3000] ^= 1
    path.write_bytes(content)
    rejects(path, "damaged", embedding=embedding)


def test_npz_with_a_header_that_promises_too_much(tmp_path, embedding):
    path = tmp_path / "v.npz"
    write_npz(path, vectors=VECTORS, ids=IDS, embedding_digest=DIGEST)
    content = path.read_bytes()
    for shape in (b"(9, 8), ", b"(5, 9), ", b"(-1, 8),", b"(5, 10**9)"):
        changed = content.replace(b"(5, 8), ", shape[:8], 1)
        assert changed != content
        path.write_bytes(changed)
        rejects(path, embedding=embedding)


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
    rejects(path, embedding=embedding)
    path.write_text(text.replace("\n", "\r\n\r\n"))  # other line ends, and empty lines
    open_gallery(path, embedding)
    path.write_text("\ufeff" + text)  # as Excel writes UTF-8
    open_gallery(path, embedding)


def test_parquet_with_other_columns(tmp_path, embedding):
    path = tmp_path / "v.parquet"
    write_parquet(path, VECTORS, list("abcde"), LABELS, None)
    rejects(path, "embedding_digest", embedding=embedding)
    write_parquet(path, VECTORS, ["a", None, "c", "d", "e"], LABELS, DIGEST)
    rejects(path, "id", embedding=embedding)
    for table in ({"id": ["a"]}, {"id": ["a"], "vector": [[1.0]]}, {"id": ["a"], "vector": ["x"]}):
        pd.DataFrame(table).to_parquet(path)
        rejects(path, "vector", embedding=embedding)


def test_parquet_needs_pyarrow(tmp_path, embedding, monkeypatch):
    path = tmp_path / "v.parquet"
    write_parquet(path, VECTORS, list("abcde"), LABELS, DIGEST)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    rejects(path, "pip install 'embedding-pipeline[parquet]'", embedding=embedding)


@pytest.mark.parametrize("kind", ["embedding", "state", "vectors"])
def test_other_kinds_of_checkpoints(kind, tmp_path):
    write_file(kind, tmp_path / "file")
    rejects(tmp_path / "file", kind, "pipeline vectors")


def test_edited_gallery(tmp_path):
    path = tmp_path / "g.safetensors"
    labels = torch.tensor([0, 1, 1, 0, UNLABELLED])
    for changes, text in (
        ({"vectors": VECTORS.double()}, "F64"),
        ({"vectors": VECTORS[:, :7].contiguous()}, "(5, 7)"),
        ({"ids": list("abcd")}, "(4, 8)"),
        ({"ids": []}, "(0, 8)"),
        ({"vectors": VECTORS[:0], "ids": []}, "no vectors"),
        ({"labels": labels.int()}, "int32"),
        ({"labels": labels[:4]}, "(4,)"),
        ({"labels": labels + 1}, "labels"),
        ({"labels": labels - 1}, "labels"),
        ({"labels": labels, "classes": []}, "labels"),
        ({"embedding_digest": "0" * 64}, "digest"),
    ):
        gallery_file(path, **changes)
        rejects(path, text)


def test_gallery_with_other_tensors(tmp_path):
    path, valid = tmp_path / "g.safetensors", gallery_file(tmp_path / "valid.safetensors")
    record, tensors = read_header(valid).record, load_file(valid)
    for name, value, text in (
        ("unknown", torch.ones(1), "unknown"),
        ("embedding.unknown", torch.ones(1), "digest"),
        ("embedding.project.bias", torch.full((8,), torch.nan), "not finite"),
        ("embedding.project.bias", None, "digest"),
        ("vectors", None, "missing"),
    ):
        changed = {**tensors, name: value}
        if value is None:
            del changed[name]
        write_tensors(path, changed, record)
        rejects(path, text)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
    """Write tensors with a correct digest of the file."""
    from safetensors.torch import save_file

    save_file(tensors, path, make_header("gallery", state_digest(tensors), record))


def test_wrong_bits_and_digests(tmp_path):
    path = gallery_file(tmp_path / "g.safetensors")
    content = path.read_bytes()
    for place in (0.3, 0.9, 0.9999):
        damaged = bytearray(content)
        damaged[int(place * len(content))] ^= 1
        path.write_bytes(damaged)
        rejects(path, "damaged")
    path.write_bytes(content)
    change_header(path, digest="0" * 64)
    assert_rejected(path, "digest", load=lambda path: open_gallery(path, None))


@pytest.mark.parametrize("ending", [".safetensors", ".npz"])
@pytest.mark.parametrize("change", ["removed", "replaced", "shortened"])
def test_file_that_changes_after_it_was_opened(ending, change, tmp_path, embedding):
    path = tmp_path / f"v{ending}"
    for file in (path, tmp_path / f"other{ending}"):
        if ending == ".npz":
            write_npz(file, vectors=VECTORS, ids=IDS, embedding_digest=DIGEST)
        else:
            gallery_file(file)
    gallery, _ = open_gallery(path, embedding)
    if change == "removed":
        path.unlink()
    elif change == "replaced":
        (tmp_path / f"other{ending}").replace(path)
    else:
        path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"v\."):
        list(gallery.blocks())
