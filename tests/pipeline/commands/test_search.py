"""`pipeline search`: the most similar images, from one file."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from checkpoint_files import make_network, write_file, write_gallery
from factories import QUIET, make_record
from image_files import write_random_images
from PIL import Image
from vector_table_files import ENDINGS, write_table

from pipeline.checkpoint import load_classifier, load_embedding, save_embedding
from pipeline.commands.predict import predict
from pipeline.commands.search import search
from pipeline.image_vectors import embed_files
from stages.distance import exact_distances
from stages.errors import DataError, PipelineError, SettingsError
from stages.network.embedding_net import to_device

ROOT = Path(__file__).parents[3]
COLUMNS = ["query", "rank", "id", "label", "distance"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
CPU = torch.device("cpu")


@pytest.fixture
def photos(tmp_path, monkeypatch) -> list[str]:
    """Paths of 12 images in ``photos/``, in the current folder; the last two are copies."""
    monkeypatch.chdir(tmp_path)
    write_random_images(Path("photos"), 10)
    for number in (10, 11):
        shutil.copy("photos/00003.png", f"photos/{number:05}.png")
    return sorted(map(str, Path("photos").iterdir()))


@pytest.fixture
def embedding(photos) -> Path:
    path = Path("embedding.safetensors")
    network = make_network()
    save_embedding(path, network, make_record("embedding", network))
    return path


@pytest.fixture
def vectors(photos, embedding) -> torch.Tensor:
    checkpoint = load_embedding(embedding)
    to_device(checkpoint.network, CPU)
    (block,) = embed_files(photos, checkpoint, device=CPU)
    return block.vectors


@pytest.fixture
def gallery(photos, vectors) -> Path:
    """Write a gallery in which every third image has no label."""
    path = Path("gallery.safetensors")
    network = make_network()
    record = make_record("gallery", network, ids=photos)
    labels = torch.tensor([row % 3 - 1 for row in range(12)])
    write_gallery(path, network, vectors, record, labels=labels)
    return path


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_results_are_the_nearest_images_in_order(photos, gallery, vectors, run_command):
    status, out, err = run_command("search", "photos", "--within", gallery, "--k", 5)
    assert (status, err) == (0, "")
    distances = exact_distances(vectors, vectors).numpy()
    order = np.argsort(distances, axis=1, kind="stable")[:, :5]
    expected = [
        {
            "query": photos[query],
            "rank": str(rank + 1),
            "id": photos[row],
            "label": ["", "a", "b"][row % 3],
            "distance": f"{distances[query, row]:.6f}",
        }
        for query in range(12)
        for rank, row in enumerate(order[query])
    ]
    rows = rows_of(out)
    assert rows == expected and list(rows[0]) == COLUMNS
    # A query in the file is found at distance 0, and copies in the order of the file.
    copies = [row["id"] for row in rows if row["query"] == photos[11]]
    assert copies[:3] == [photos[3], photos[10], photos[11]]
    assert [row["distance"] for row in rows if row["query"] == photos[11]][:3] == ["0.000000"] * 3


def test_default_is_ten_results_and_few_vectors_give_fewer(photos, gallery, run_command):
    for k, count in ((), 10), (("--k", 12), 12), (("--k", 10**9), 12):
        _, out, _ = run_command("search", photos[0], "--within", gallery, *k)
        assert [int(row["rank"]) for row in rows_of(out)] == list(range(1, count + 1))


def test_json_has_the_same_values(photos, gallery, run_command):
    _, out, _ = run_command("search", *photos, "missing.png", "--within", gallery, "--json")
    table = rows_of(run_command("search", *photos, "missing.png", "--within", gallery)[1])
    objects = [json.loads(line) for line in out.splitlines()]
    assert all(list(row) == COLUMNS for row in objects)
    assert objects[-1] == {**dict.fromkeys(COLUMNS), "query": "missing.png"}
    for row, cells in zip(objects[:-1], table[:-1], strict=True):
        assert (row["query"], row["id"]) == (cells["query"], cells["id"])
        assert row["rank"] == int(cells["rank"]) and row["distance"] == float(cells["distance"])
        assert (row["label"] or "") == cells["label"] and row["label"] != ""


@pytest.mark.parametrize("ending", ENDINGS)
def test_other_formats_give_the_same_rows(ending, photos, gallery, embedding, vectors, run_command):
    path = Path(f"vectors{ending}")
    labels = [["", "a", "b"][row % 3] for row in range(12)]
    digest = load_embedding(embedding).digest
    write_table(path, vectors, photos, labels, digest)
    expected = run_command("search", "photos", "--within", gallery)
    assert run_command("search", "photos", "--within", path, "--embedding", embedding) == expected
    status, out, err = run_command("search", "photos", "--within", path)
    assert (status, out) == (1, "") and str(path) in err and "--embedding" in err


def test_nearest_image_of_a_classifier_is_that_of_predict(photos, run_command):
    write_file("classifier", Path("c.safetensors"))
    classifier = load_classifier(Path("c.safetensors"))
    assert predict(
        [Path("photos")], Path("c.safetensors"), out=Path("p.csv"), as_json=False, context=QUIET
    )
    predicted = pd.read_csv("p.csv")
    status, out, err = run_command("search", "photos", "--within", "c.safetensors", "--k", 3)
    rows = pd.read_csv(io.StringIO(out))
    assert (status, err) == (0, "") and len(rows) == 12 * 3
    nearest = rows[rows["rank"] == 1]
    assert list(nearest["query"]) == list(predicted["path"])
    assert list(nearest["id"]) == list(predicted["nearest_id"])
    assert list(nearest["distance"]) == list(predicted["nearest_distance"])
    labels = dict(zip(classifier.gallery_ids, classifier.gallery.labels.tolist(), strict=True))
    assert list(rows["label"]) == ["ab"[labels[name]] for name in rows["id"]]


def test_unreadable_queries_keep_their_place(photos, gallery, run_command):
    Path("photos/00002.png").write_bytes(b"no image")
    status, out, err = run_command("search", "photos", "--within", gallery, "--k", 1)
    assert status == 0 and "photos/00002.png" in err  # found in a folder
    assert [row["query"] for row in rows_of(out)] == photos
    assert out.splitlines()[3] == "photos/00002.png,,,,"
    status, out, err = run_command("search", photos[0], photos[2], "--within", gallery, "--k", 2)
    assert status == 1 and "00002.png" in err and len(out.splitlines()) == 4
    for query in ("missing.png", "photos/00002.png"):
        status, out, err = run_command("search", query, "--within", gallery)
        assert status == 1 and out.splitlines()[1:] == [f"{query},,,,"] and query in err


def test_many_queries_are_searched_in_blocks(photos, gallery, run_command, monkeypatch):
    expected = run_command("search", "photos", "--within", gallery)
    monkeypatch.setattr("pipeline.image_vectors.BLOCK_SIZE", 5)
    assert run_command("search", "photos", "--within", gallery) == expected


def test_texts_that_are_formulas_or_have_line_breaks(photos, vectors, run_command):
    network = make_network()
    ids = ["=1+1.png", "new\nline.png", "re\rturn.png", 'quo"te,.png', "caf\udce9.png"]
    record = make_record("gallery", network, ids=ids, classes=["@x", "b"])
    labels = torch.tensor([0, 0, 1, 1, -1])
    write_gallery(Path("g.safetensors"), network, vectors[:5], record, labels=labels)
    shutil.copy(photos[0], "=query.png")
    arguments = (Path("=query.png"),), Path("g.safetensors")
    assert search(*arguments, out=Path("rows.csv"), context=QUIET) == 1
    text = Path("rows.csv").read_bytes().decode("utf-8", "surrogateescape")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert {row["id"] for row in rows} == {"'=1+1.png", *ids[1:]}
    assert {row["label"] for row in rows} == {"'@x", "b", ""}
    assert {row["query"] for row in rows} == {"'=query.png"}
    search(*arguments, out=Path("rows.json"), as_json=True, context=QUIET)
    lines = Path("rows.json").read_text().splitlines()
    assert {json.loads(line)["id"] for line in lines} == set(ids)


def test_paths_are_read_from_standard_input(photos, gallery, run_command, monkeypatch):
    command = ("search", "-", "--within", gallery, "--k", 1)
    lines = f"{photos[5]}\n\nmissing.png\n{photos[1]}\n".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    status, out, err = run_command(*command)
    assert [row["query"] for row in rows_of(out)] == [photos[5], "missing.png", photos[1]]
    assert status == 1 and "missing.png" in err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    status, _, err = run_command(*command)
    assert status == 1 and len(err.splitlines()) == 1


def test_closed_pipe_is_no_error(photos, gallery):
    command = f"{sys.executable} -m pipeline search photos --within {gallery}"
    result = subprocess.run(
        ["bash", "-c", f"{command} | head -n 1; exit ${{PIPESTATUS[0]}}"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert result.stdout == ",".join(COLUMNS) + "\n"
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("k", [0, -3])
def test_k_must_be_positive(k, photos, gallery, run_command):
    with pytest.raises(SettingsError):
        search([Path("photos")], gallery, k=k, context=QUIET)
    status, out, err = run_command("search", "photos", "--within", gallery, "--k", k)
    assert (status, out) == (1, "") and "--k" in err and str(k) in err


def test_embedding_of_another_file(photos, gallery, run_command):
    torch.manual_seed(1)
    network = type(make_network())(1, 8, 8)
    digest = save_embedding(Path("o.safetensors"), network, make_record("embedding", network))
    arguments = ("search", "photos", "--within", gallery, "--embedding", "o.safetensors")
    status, out, err = run_command(*arguments)
    assert (status, out) == (1, "") and digest[:12] in err
    with pytest.raises(DataError, match=digest[:12]):
        search([Path("photos")], gallery, embedding=Path("o.safetensors"), context=QUIET)


@pytest.mark.parametrize(
    "out", ["gallery.safetensors", "photos/00000.png", "embedding.safetensors"]
)
def test_input_is_no_output(out, photos, gallery, embedding, run_command):
    before = Path(out).read_bytes()
    arguments = ("search", *photos, "--within", gallery, "--embedding", embedding, "--out", out)
    status, _, err = run_command(*arguments)
    assert status == 1 and out in err and Path(out).read_bytes() == before


def test_failed_search_keeps_the_earlier_file(photos, gallery):
    out = Path("rows.csv")
    assert search([Path("photos")], gallery, out=out, context=QUIET) == 12
    earlier = out.read_bytes()
    gallery.write_bytes(gallery.read_bytes()[:-5])
    with pytest.raises(PipelineError, match="gallery"):
        search([Path("photos")], gallery, out=out, context=QUIET)
    assert out.read_bytes() == earlier and not list(Path().glob("*.partial"))


def test_nothing_to_search_for(photos, gallery, run_command):
    Path("empty").mkdir()
    status, _, err = run_command("search", "empty", "--within", gallery)
    assert status == 1 and "empty" in err
    Image.new("L", (8, 8)).save("black.png")
    assert run_command("search", "black.png", "--within", gallery)[0] == 0
