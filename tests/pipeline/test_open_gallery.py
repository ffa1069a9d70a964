"""Files to search: every format, and files that are damaged, edited or of another embedding."""

from pathlib import Path
from typing import Any

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
from vector_table_files import (
    ENDINGS,
    assert_not_opened,
    write_csv,
    write_npz,
    write_parquet,
    write_table,
)

import pipeline.vector_blocks
from pipeline.checkpoint import save_embedding
from pipeline.checkpoint_header import make_header
from pipeline.open_gallery import open_gallery
from pipeline.tensor_files import read_header
from stages.errors import CheckpointError, DataError
from stages.gallery import UNLABELLED
from stages.network.digest import state_digest

NETWORK = make_network()
DIGEST = state_digest(NETWORK.state_dict())
VECTORS = unit_vectors(5, 8, seed=0)
# A line break, a formula, bytes that are not UTF-8, a space at the end and a quote.
IDS = ["new\nline.png", "=1+1.png", "caf\udce9.png", 'q"uote .png ', "'=x.png"]
LABELS = ["10", "", "2", "=b", "10"]


def gallery_file(path: Path, vectors: torch.Tensor = VECTORS, **changes: Any) -> Path:
    """Write a gallery; changes of the record and ``labels``."""
    labels = {"labels": changes.pop("labels")} if "labels" in changes else {}
    ids = {"ids": [f"{row}.png" for row in range(len(vectors))]}
    record = make_record("gallery", NETWORK, **{**ids, **changes})
    write_gallery(path, NETWORK, vectors, record, **labels)
    return path


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
    assert_not_opened(path, "--embedding")
    torch.manual_seed(1)
    network = type(NETWORK)(1, 8, 8)
    digest = save_embedding(other, network, make_record("embedding", network))
    assert_not_opened(path, DIGEST[:12], digest[:12], "other.safetensors", embedding=other)
    for kind in ("gallery", "classifier"):
        write_file(kind, tmp_path / kind)
        open_gallery(tmp_path / kind, embedding)
        assert_not_opened(tmp_path / kind, DIGEST[:12], digest[:12], embedding=other)
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
    assert_not_opened(path, "row 4", "d", embedding=embedding)


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
    assert_not_opened(path, embedding=embedding)


@pytest.mark.parametrize("path", ["v.npz", "v.csv", "v.parquet", "v.safetensors", "photos"])
@pytest.mark.parametrize("found", ["missing", "a folder", "of zeros", "notes"])
def test_other_files(path, found, tmp_path, embedding):
    path = tmp_path / path
    if found == "a folder":
        path.mkdir()
    elif found != "missing":
        path.write_bytes(bytes(5000) if found == "of zeros" else b"These are notes.\nNo table.\n")
    assert_not_opened(path, embedding=embedding)
    if path.suffix == ".csv" and found == "notes":
        path.write_text("path,label\na.png,cat\n")
        assert_not_opened(path, "v0", embedding=embedding)


@pytest.mark.parametrize("kind", ["embedding", "state", "vectors"])
def test_other_kinds_of_checkpoints(kind, tmp_path):
    write_file(kind, tmp_path / "file")
    assert_not_opened(tmp_path / "file", kind, "pipeline vectors")


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
        assert_not_opened(path, text)


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
        assert_not_opened(path, text)


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
        assert_not_opened(path, "damaged")
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
