"""New images, labelled from the one file."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from factories import QUIET, TINY
from PIL import Image

from pipeline.checkpoint import load_classifier
from pipeline.cli import main
from pipeline.commands.classify import classify
from pipeline.commands.embed import embed
from pipeline.commands.predict import find_images, predict, predict_images
from pipeline.commands.report import report
from stages.errors import DataError
from stages.settings import ClassifySettings, ReadSettings

ROOT = Path(__file__).parents[3]
HEADER = ["path", "label", "probability", "knn_label", "nearest_id", "nearest_distance"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits):
    """A run on a folder of digits, its report, and the folder, moved away before anybody predicts."""
    root = tmp_path_factory.mktemp("run")
    photos = root / "photos"
    for index, (image, label) in enumerate(zip(digits[0][:400], digits[1], strict=False)):
        (photos / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(photos / str(label) / f"{index}.png")
    embedding = embed(str(photos), ReadSettings(), TINY, out=root / "e.safetensors", context=QUIET)
    classifier = classify(embedding, ClassifySettings(), out=root / "c.safetensors", context=QUIET)
    report(embedding, classifier, out=root / "out", context=QUIET)
    shutil.move(photos, root / "elsewhere")
    return root


def _predict(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pipeline", "predict", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_from_one_file_in_an_empty_folder_it_says_what_the_report_says(trained, tmp_path):
    shutil.copy(trained / "c.safetensors", tmp_path / "copy.safetensors")
    reported = pd.read_csv(
        trained / "out" / "predictions.csv",
        dtype={"label": str, "classifier_label": str, "knn_label": str},
    )
    files = [str(trained / "elsewhere" / name) for name in reported["id"]]
    result = _predict(tmp_path, *files, "--classifier", "copy.safetensors", "--out", "labels.csv")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"labels.csv written: {len(files)} images\n"
    found = pd.read_csv(tmp_path / "labels.csv", dtype={"label": str, "knn_label": str})
    assert list(found) == HEADER
    assert list(found["path"]) == files
    assert list(found["label"]) == list(reported["classifier_label"])
    assert list(found["knn_label"]) == list(reported["knn_label"])
    assert list(found["nearest_id"]) == list(reported["nearest_id"])
    np.testing.assert_allclose(found["probability"], reported["classifier_probability"], atol=2e-6)
    assert len(set(found["label"])) > 3  # it tells images apart at all
    assert {path.name for path in tmp_path.iterdir()} == {"copy.safetensors", "labels.csv"}


def test_json_folders_and_unreadable_files(trained, tmp_path):
    shutil.copytree(trained / "elsewhere" / "3", tmp_path / "new" / "deep")
    (tmp_path / "new" / "broken.png").write_bytes(b"no image")
    (tmp_path / "new" / "=cmd.png").write_bytes(
        (next((tmp_path / "new" / "deep").iterdir())).read_bytes()
    )
    (tmp_path / "new" / "notes.txt").write_text("passed over")
    (tmp_path / "new" / ".hidden.png").write_bytes(b"passed over")
    result = _predict(tmp_path, "new", "--json", "--classifier", str(trained / "c.safetensors"))
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) == 1 + len(list((tmp_path / "new" / "deep").iterdir()))
    assert list(rows[0]) == HEADER and 0 < rows[0]["probability"] <= 1
    assert rows[0]["path"] == "new/=cmd.png"
    assert result.stderr.strip() == "skipped: new/broken.png: not an image that can be read"
    inside = _predict(tmp_path / "new", "=cmd.png", "--classifier", str(trained / "c.safetensors"))
    row = next(csv.DictReader(inside.stdout.splitlines()))
    assert (
        row["path"] == "'=cmd.png" and 0 <= float(row["nearest_distance"]) < 1e-3
    )  # it was trained on, or its copy was


@pytest.mark.parametrize("what", ["missing", "empty", "broken"])
def test_nothing_to_label_is_one_message_and_status_1(trained, tmp_path, what, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        main(["predict", what, "--classifier", str(trained / "c.safetensors")])
    assert stop.value.code == 1
    assert f"error: {what}: " in capsys.readouterr().err


def test_colour_and_other_sizes_are_read_as_in_training(trained, tmp_path):
    original = next((trained / "elsewhere" / "5").iterdir())
    with Image.open(original) as image:
        image.convert("RGB").save(tmp_path / "rgb.png")
        image.convert("RGBA").resize((100, 60)).save(tmp_path / "wide.webp", lossless=True)
    classifier = load_classifier(trained / "c.safetensors")
    files = [original, tmp_path / "rgb.png", tmp_path / "wide.webp"]
    grey, colour, wide = next(predict_images(files, classifier, device=QUIET.start()))
    assert grey[1:] == colour[1:]
    assert 0 <= wide.nearest_distance <= 2


def test_it_streams(trained, monkeypatch):
    """A block is labelled before the next one is read."""
    monkeypatch.setattr("pipeline.commands.predict.BLOCK", 8)
    taken = []

    def files():
        for path in find_images([trained / "elsewhere"]):
            taken.append(path)
            yield path

    blocks = predict_images(
        files(), load_classifier(trained / "c.safetensors"), device=QUIET.start()
    )
    assert len(next(blocks)) == 8 and len(taken) == 8
    assert sum(len(block) for block in blocks) == 400 - 8


def test_a_failed_write_leaves_no_file(trained, tmp_path):
    with pytest.raises(DataError):
        predict(
            [tmp_path / "missing.png"],
            trained / "c.safetensors",
            out=tmp_path / "out.csv",
            as_json=False,
            context=QUIET,
        )
    assert not list(tmp_path.iterdir())


def test_a_reader_who_has_enough_is_no_error(trained, tmp_path):
    command = f"{sys.executable} -m pipeline predict {trained / 'elsewhere'} --classifier {trained / 'c.safetensors'} | head -n 1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout == ",".join(HEADER) + "\n" and "Traceback" not in result.stderr
