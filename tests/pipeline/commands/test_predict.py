"""`pipeline predict`: new images, classified from the classifier's file alone."""

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from checkpoint_files import make_gallery, make_network, make_validation
from factories import (
    QUIET,
    TINY,
    add_new_classes,
    make_classifier,
    make_record,
    random_embeddings,
)
from PIL import Image

from pipeline import image_vectors
from pipeline.checkpoint import load_classifier, save_classifier
from pipeline.commands.classify import classify
from pipeline.commands.embed import embed
from pipeline.commands.predict import describe_resolution, predict, predict_images
from pipeline.commands.report import report
from pipeline.data.folder import find_image_files
from pipeline.image_vectors import embed_files
from stages.errors import PipelineError
from stages.evaluation.typicality import smallest_typicality, typicality
from stages.network.head import Head
from stages.settings import REJECT, ClassifySettings, ReadSettings

ROOT = Path(__file__).parents[3]
COLUMNS = ["path", "label", "probability", "knn_label", "nearest_id", "nearest_distance"]
COLUMNS += ["typicality", "known"]
LABELS = dict.fromkeys(("label", "classifier_label", "knn_label"), str)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits):
    """Train on a folder of digits and write a report, then move the digits to another folder."""
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


@pytest.fixture
def classifier(trained) -> Path:
    return trained / "c.safetensors"


def run_predict(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pipeline", "predict", *arguments]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)


def test_predictions_equal_those_of_the_report(trained, tmp_path):
    shutil.copy(trained / "c.safetensors", tmp_path / "copy.safetensors")
    reported = pd.read_csv(trained / "out" / "predictions.csv", dtype=LABELS)
    files = [str(trained / "elsewhere" / name) for name in reported["id"]]
    options = ("--classifier", "copy.safetensors", "--out", "labels.csv")
    result = run_predict(tmp_path, *files, *options)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"labels.csv written: {len(files)} images\n"
    predicted = pd.read_csv(tmp_path / "labels.csv", dtype=LABELS)
    assert list(predicted) == COLUMNS
    assert list(predicted["path"]) == files
    assert list(predicted["label"]) == list(reported["classifier_label"])
    assert list(predicted["knn_label"]) == list(reported["knn_label"])
    assert list(predicted["nearest_id"]) == list(reported["nearest_id"])
    np.testing.assert_allclose(
        predicted["probability"], reported["classifier_probability"], atol=2e-6
    )
    assert len(set(predicted["label"])) > 3
    assert {path.name for path in tmp_path.iterdir()} == {"copy.safetensors", "labels.csv"}


@pytest.mark.parametrize("calibrated", [True, False])
def test_uncalibrated_probabilities_have_a_note(tmp_path, capsys, calibrated):
    network, classifier = make_network(), tmp_path / "c.safetensors"
    temperature = 1.5 if calibrated else 1.0
    changes = {"calibrated": calibrated, "temperature": temperature}
    record = make_record("classifier", network, **changes)
    head, gallery, validation = Head(8, 2), make_gallery(), make_validation()
    save_classifier(classifier, network, head, gallery, record, validation=validation)
    Image.new("L", (8, 8)).save(tmp_path / "new.png")
    context = replace(QUIET, quiet=False)
    predict([tmp_path / "new.png"], classifier, out=None, as_json=False, context=context)
    output, messages = capsys.readouterr()
    assert output.splitlines()[0] == ",".join(COLUMNS)
    assert ("uncalibrated" in messages) == (not calibrated)


def test_json_folders_and_unreadable_files(trained, classifier, tmp_path):
    new = tmp_path / "new"
    shutil.copytree(trained / "elsewhere" / "3", new / "deep")
    (new / "broken.png").write_bytes(b"no image")
    (new / "=cmd.png").write_bytes(next((new / "deep").iterdir()).read_bytes())
    (new / "notes.txt").write_text("ignored")
    (new / ".hidden.png").write_bytes(b"ignored")
    result = run_predict(tmp_path, "new", "--json", "--classifier", str(classifier))
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) == 2 + len(list((new / "deep").iterdir()))
    assert list(rows[0]) == COLUMNS and 0 < rows[0]["probability"] <= 1
    assert rows[0]["path"] == "new/=cmd.png"
    assert rows[1] == {**dict.fromkeys(COLUMNS), "path": "new/broken.png"}
    assert result.stderr.startswith("skipped: new/broken.png: ")
    assert len(result.stderr.splitlines()) == 1


def test_csv_escapes_a_path_that_is_a_formula(trained, classifier, tmp_path):
    source = next((trained / "elsewhere" / "3").iterdir())
    (tmp_path / "=cmd.png").write_bytes(source.read_bytes())
    result = run_predict(tmp_path, "=cmd.png", "--classifier", str(classifier))
    row = next(csv.DictReader(result.stdout.splitlines()))
    # The image or an exact copy is a training image.
    assert row["path"] == "'=cmd.png" and 0 <= float(row["nearest_distance"]) < 1e-3


@pytest.mark.parametrize("name", ["missing", "empty", "broken"])
def test_nothing_to_classify_is_one_message_and_status_1(classifier, run_command, name):
    Path("empty").mkdir()
    Path("broken").write_bytes(b"")
    status, _, errors = run_command("predict", name, "--classifier", classifier)
    assert status == 1 and f"error: {name}: " in errors


def test_colour_and_other_sizes_are_read_as_in_training(trained, classifier, tmp_path):
    original = next((trained / "elsewhere" / "5").iterdir())
    with Image.open(original) as image:
        image.convert("RGB").save(tmp_path / "rgb.png")
        image.convert("RGBA").resize((100, 60)).save(tmp_path / "wide.webp", lossless=True)
    files = [original, tmp_path / "rgb.png", tmp_path / "wide.webp"]
    loaded = load_classifier(classifier)
    embedded = embed_files(map(str, files), loaded, device=QUIET.start())
    blocks = predict_images(embedded, loaded)
    grey, colour, wide = next(blocks)
    assert grey[1:] == colour[1:]
    assert 0 <= wide.nearest_distance <= 2


def test_images_are_read_block_by_block(trained, classifier, monkeypatch):
    monkeypatch.setattr("pipeline.image_vectors.BLOCK_SIZE", 8)
    taken = []

    def files():
        for path in find_image_files(trained / "elsewhere"):
            taken.append(path)
            yield str(path)

    loaded = load_classifier(classifier)
    blocks = predict_images(embed_files(files(), loaded, device=QUIET.start()), loaded)
    assert len(next(blocks)) == 8 and len(taken) == 8
    assert sum(len(block) for block in blocks) == 400 - 8


@pytest.mark.parametrize("name", ["folder", "file/out.csv", "x" * 250, "c.safetensors"])
def test_output_is_checked_before_the_first_image(trained, tmp_path, monkeypatch, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("earlier")
    shutil.copy(trained / "c.safetensors", tmp_path)
    monkeypatch.setattr("pipeline.image_vectors.read_pixels", None)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(PipelineError, match=name):
        predict(
            [trained / "elsewhere"],
            tmp_path / "c.safetensors",
            out=tmp_path / name,
            as_json=False,
            context=QUIET,
        )
    assert sorted(tmp_path.rglob("*")) == before


def test_every_path_has_a_row_in_order(trained, classifier, run_command):
    good = next((trained / "elsewhere" / "3").iterdir())
    Path("text.png").write_text("no image")
    paths = [good, "missing.jpg", good, "text.png"]
    status, out, errors = run_command("predict", *paths, "--classifier", classifier)
    rows = list(csv.DictReader(out.splitlines()))
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    assert rows[0] == rows[2] and rows[0]["label"] == "3"
    for row in (rows[1], rows[3]):
        assert [row[name] for name in COLUMNS[1:]] == [""] * 7
    assert status == 1 and "skipped: missing.jpg: " in errors
    assert errors.count("error: ") == 1 and "2 of 4" in errors


def test_untypical_images_are_marked_and_keep_their_label(trained, classifier, run_command):
    images = trained / "elsewhere"
    noise = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(noise).save("noise.png")

    def rows(*options: object) -> list[dict[str, str]]:
        command = ("predict", images, "noise.png", "--classifier", classifier, *options)
        status, out, _ = run_command(*command)
        assert status == 0
        return list(csv.DictReader(out.splitlines()))

    default = rows()
    # The classifier's training images are closer to themselves than any validation image.
    calibration = load_classifier(classifier).validation_distances.numpy()
    distances = np.array([float(row["nearest_distance"]) for row in default])
    expected = typicality(distances, calibration)
    # Validation images are among them, and the distance is rounded: it may count one image more.
    tolerance = 1.1 * smallest_typicality(len(calibration))
    np.testing.assert_allclose(
        [float(row["typicality"]) for row in default], expected, atol=tolerance
    )
    assert default[-1]["known"] == "false" and default[0]["known"] == "true"
    for row in default:
        assert row["known"] == ("false" if float(row["typicality"]) < REJECT else "true")
    labels = [row["label"] for row in default]
    for share, known in ((0, {"true"}), (1, {"true", "false"})):
        changed = rows("--reject", share)
        assert {row["known"] for row in changed} == known
        assert [row["label"] for row in changed] == labels
    assert run_command("predict", "noise.png", "--classifier", classifier, "--reject", 2)[0] == 1


def test_without_validation_images_nothing_is_rejected(tmp_path, run_command):
    network = make_network()
    record = make_record("classifier", network, counts={"train": 3, "val": 0, "test": 0})
    path = tmp_path / "classifier.safetensors"
    save_classifier(path, network, Head(8, 2), make_gallery(), record)
    Image.new("L", (8, 8)).save("black.png")
    status, out, errors = run_command("predict", "black.png", "--classifier", path)
    row = next(csv.DictReader(out.splitlines()))
    assert (status, row["typicality"], row["known"]) == (0, "", "true")
    assert "no image is rejected" in errors
    status, out, _ = run_command("predict", "black.png", "--classifier", path, "--json")
    assert json.loads(out)["typicality"] is None and json.loads(out)["known"] is True


def test_interrupt_keeps_the_rows_so_far(trained, classifier, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.image_vectors.BLOCK_SIZE", 8)
    (tmp_path / "out.csv").write_text("earlier")
    embed_block, calls = image_vectors._embed_block, []

    def interrupted(paths, *arguments):
        calls.append(paths)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed_block(paths, *arguments)

    monkeypatch.setattr(image_vectors, "_embed_block", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"out\.csv\.partial"):
        predict(
            [trained / "elsewhere"],
            classifier,
            out=tmp_path / "out.csv",
            as_json=False,
            context=QUIET,
        )
    assert (tmp_path / "out.csv").read_text() == "earlier"
    assert len((tmp_path / "out.csv.partial").read_text().splitlines()) == 1 + 16
    assert {path.name for path in tmp_path.iterdir()} == {"out.csv", "out.csv.partial"}


@pytest.mark.parametrize("out", ["/dev/full", "-"])
def test_full_disk_is_one_message(trained, classifier, tmp_path, out):
    image = next((trained / "elsewhere" / "3").iterdir())
    command = f"{sys.executable} -m pipeline predict {image} --classifier {classifier} --out {out}"
    result = subprocess.run(
        ["bash", "-c", f"{command} > /dev/full"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1 and "No space left on device" in result.stderr
    assert len(result.stderr.splitlines()) == 1 and Path("/dev/full").is_char_device()


def test_path_that_is_not_valid_text_is_written_unchanged(trained, classifier, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    source = next((trained / "elsewhere" / "3").iterdir())
    shutil.copy(source, tmp_path / name)
    out = tmp_path / "deep" / "out.csv"
    assert predict([tmp_path / name], classifier, out=out, as_json=False, context=QUIET) == 1
    assert b"caf\xe9.png," in out.read_bytes()
    assert b"\r" not in out.read_bytes()


def test_closed_pipe_is_no_error(trained, classifier, tmp_path):
    images = trained / "elsewhere"
    command = f"{sys.executable} -m pipeline predict {images} --classifier {classifier}"
    result = subprocess.run(
        ["bash", "-c", f"{command} | head -n 1; exit ${{PIPESTATUS[0]}}"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert result.stdout == ",".join(COLUMNS) + "\n"
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("validation", "enrolled", "text"),
    [
        (25, None, ""),
        (25, 20, ""),
        (0, 20, "the classifier has no validation images"),
        (9, None, "no image is rejected as unknown: with 9 validation images typicality is at "),
        (
            9,
            1,
            "no image is rejected as unknown: with 9 validation images and 1 enrolled image of ",
        ),
        (9, 20, "is of an old class are not rejected as unknown: with 9 validation images typical"),
        (25, 19, "is of a new class are not rejected as unknown: with 19 enrolled images of new "),
    ],
)
def test_images_that_cannot_be_rejected_are_explained(validation, enrolled, text):
    classifier = make_classifier(random_embeddings(20, 2))
    classifier = replace(classifier, validation_distances=torch.rand(validation))
    if enrolled is not None:
        classifier = add_new_classes(classifier, (1,), torch.rand(enrolled))
    note = describe_resolution(classifier, REJECT)
    assert text in note and bool(note) == bool(text)
    assert describe_resolution(classifier, 0) == ""
