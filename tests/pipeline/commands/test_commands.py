"""The commands as a user runs them: from images to a report, again, and with other settings."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pipeline.checkpoint import load_classifier, load_embedding
from pipeline.cli import main
from pipeline.tensor_files import read_header

EMBEDDING = Path("checkpoints/embedding.safetensors")
CLASSIFIER = Path("checkpoints/classifier.safetensors")
METRICS = {
    "knn_accuracy",
    "triplet_accuracy",
    "classification_accuracy",
    "precision_at_1",
    "mean_average_precision",
    "majority_accuracy",
    "pixel_knn_accuracy",
    "untrained_knn_accuracy",
}
COLUMNS = ["run", "split", "value", "ci_low", "ci_high", "count", "definition"]


@pytest.fixture(scope="module")
def outputs_and_images(tmp_path_factory, write_digits) -> tuple[Path, Path]:
    """Run the three stages once on a folder of 300 digits; return the outputs and the images."""
    outputs = tmp_path_factory.mktemp("outputs")
    images = write_digits(tmp_path_factory.mktemp("images"))
    embed = ("embed", "--data", str(images), "--epochs", "8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(outputs)
        for command in (embed, ("classify",), ("report",)):
            with pytest.raises(SystemExit) as stop:
                main([*command, "--quiet"])
            assert stop.value.code == 0
    return outputs, images


@pytest.fixture
def trained(outputs_and_images, run_command, tmp_path) -> Path:
    """Copy the outputs of the three stages into the folder of the commands; return the images."""
    outputs, images = outputs_and_images
    shutil.copytree(outputs, tmp_path, dirs_exist_ok=True)
    return images


def accuracy() -> pd.DataFrame:
    table = pd.read_csv("reports/accuracy.csv")
    return table[table["split"] == "test"].set_index("metric")


def test_accuracy_table(trained):
    table = accuracy()
    assert set(table.index) >= METRICS and list(table.columns) == COLUMNS
    known = table[table["ci_low"].notna()]
    assert set(known.index) >= METRICS and table["value"].between(0, 1).all()
    assert (known["ci_low"] <= known["value"]).all() and (known["value"] <= known["ci_high"]).all()
    assert (table["run"] == "embedding").all() and (table["split"] == "test").all()
    values = table["value"]
    assert values["knn_accuracy"] > 0.8 and values["triplet_accuracy"] > 0.9
    assert values["classification_accuracy"] > 0.8 > 0.3 > values["majority_accuracy"]


def test_predictions_page_and_history(trained):
    table = accuracy()
    predictions = pd.read_csv("reports/predictions.csv", dtype=str)
    assert len(predictions) == table["count"]["knn_accuracy"]
    for column, metric in (
        ("classifier_label", "classification_accuracy"),
        ("knn_label", "knn_accuracy"),
    ):
        share = (predictions["label"] == predictions[column]).mean()
        assert share == pytest.approx(table["value"][metric], abs=1e-6)
    for name in [*predictions["id"], *predictions["nearest_id"]]:
        assert (trained / name).is_file()  # ids are paths below the source's root
    assert not set(predictions["id"]) & set(predictions["nearest_id"])
    assert all(Path(row["id"]).parent.name == row["label"] for _, row in predictions.iterrows())

    page = Path("reports/report.html").read_text(encoding="utf-8")
    outside = r"""<(script|img|link|iframe)[^>]*(src|href)\s*=\s*["'](?!data:)"""
    assert not re.search(outside, page)
    history = pd.read_csv("checkpoints/embedding.history.csv")
    assert list(history["epoch"]) == list(range(1, 9))
    assert {"loss", "active_share", "mean_distance", "val_knn"} <= set(history.columns)


def test_each_stage_can_be_rerun_from_the_files_of_the_stage_before(run_command, trained):
    embedding = EMBEDDING.read_bytes()
    before, digest = accuracy(), read_header(CLASSIFIER).digest
    assert run_command("classify")[0] == 0  # the same settings: the same file
    assert read_header(CLASSIFIER).digest == digest
    CLASSIFIER.unlink()
    shutil.rmtree("reports")
    assert run_command("classify")[0] == 0
    assert run_command("report")[0] == 0
    pd.testing.assert_frame_equal(accuracy(), before)
    assert EMBEDDING.read_bytes() == embedding


def test_classify_works_without_a_cache_of_vectors(run_command, trained):
    cache = Path("checkpoints/embedding.vectors")
    cache.unlink()
    cache.mkdir()  # no file can replace a folder
    status, _, errors = run_command("classify")
    assert status == 0
    assert "note:" in errors and str(cache) in errors and "recompute" in errors


def test_same_seed_gives_same_digest(run_command, digit_folder):
    digests = set()
    for out in ("a.safetensors", "b.safetensors"):
        status, _, _ = run_command("embed", "--data", digit_folder, "--epochs", 2, "--out", out)
        assert status == 0
        digests.add(read_header(Path(out)).digest)
    assert len(digests) == 1


def test_classifier_contains_the_unchanged_embedding(trained):
    embedding = load_embedding(EMBEDDING).network.state_dict()
    frozen = load_classifier(CLASSIFIER).network.state_dict()
    assert embedding.keys() == frozen.keys()
    assert all(torch.equal(embedding[name], frozen[name]) for name in embedding)


def test_moved_folder_has_the_same_fingerprint(run_command, digit_folder, tmp_path):
    assert run_command("embed", "--data", digit_folder, "--epochs", 1)[0] == 0
    assert run_command("classify")[0] == 0
    moved = digit_folder.rename(tmp_path / "elsewhere")
    status, _, errors = run_command("report")
    assert status == 1 and "photos" in errors
    assert run_command("report", "--data", moved)[0] == 0
    image = next(moved.glob("0/*.png"))
    image.rename(image.with_name("renamed.png"))
    status, _, errors = run_command("report", "--data", moved)
    assert status == 1 and str(moved) in errors and "fingerprint" in errors


def test_checkpoint_of_another_run_is_replaced_only_with_force(run_command, trained):
    before = EMBEDDING.read_bytes()
    status, _, errors = run_command("embed", "--data", trained, "--epochs", 2)
    assert status == 1 and "epochs 8 instead of 2" in errors and "--force" in errors
    assert EMBEDDING.read_bytes() == before
    status, _, errors = run_command("classify", "--dropout", 0.2)
    assert status == 1 and "dropout 0.5 instead of 0.2" in errors
    assert run_command("embed", "--data", trained, "--epochs", 2, "--force")[0] == 0
    # Now the classifier belongs to an embedding that no longer exists.
    status, _, errors = run_command("report")
    assert status == 1 and "pipeline classify --embedding" in errors
    status, _, errors = run_command("classify")
    assert status == 1 and "epochs 8 instead of 2" in errors
    assert run_command("classify", "--force")[0] == 0 and run_command("report")[0] == 0


@pytest.mark.parametrize(
    "options",
    [
        ("--mining", "batch-hard"),
        ("--mining", "batch-all"),
        ("--mining", "random"),
        ("--margin", "soft"),
        ("--distance", "squared"),
    ],
)
def test_mining_margin_and_distance_change_the_result(run_command, digit_folder, options):
    command = ("embed", "--data", digit_folder, "--epochs", 1, "--dim", 8, "--force")
    digests = set()
    for arguments in ((), options):
        assert run_command(*command, *arguments)[0] == 0
        digests.add(read_header(EMBEDDING).digest)
    assert len(digests) == 2


def test_squared_distance_allows_larger_margins(run_command, digit_folder):
    options = ("--epochs", 1, "--distance", "squared", "--margin", 3)
    assert run_command("embed", "--data", digit_folder, *options)[0] == 0
    settings = read_header(EMBEDDING).record["settings"]
    assert (settings["distance"], settings["margin"]) == ("squared", 3)


def test_quiet_prints_only_the_result(run_command, digit_folder):
    _, out, errors = run_command("embed", "--data", digit_folder, "--epochs", 1, "--quiet")
    assert errors == "" and len(out.splitlines()) == 1


def test_folder_with_its_own_splits_in_colour(run_command, tmp_path):
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 5)):
        for channel, name in enumerate(("red thing", "grün", "<b>bold<∕b>")):
            folder = tmp_path / "own" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 60, (20 + i % 3, 30, 3), dtype=np.uint8)  # mixed sizes
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(folder / f"{i}.JPG")
    folder = tmp_path / "own" / "train" / "red thing"
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (folder / "empty.jpg").write_bytes(b"")
    options = ("--size", 32, "--dim", 16, "--epochs", 50)
    status, _, errors = run_command("run", "--data", "own", *options)
    assert status == 0, errors
    assert "2 of 53 images skipped" in errors
    assert "train/red thing/broken.png: " in errors and "train/red thing/empty.jpg: " in errors
    record = read_header(CLASSIFIER).record
    assert (record["read"]["channels"], record["read"]["size"]) == (3, 32)
    assert record["counts"]["test"] == 15
    assert json.loads(json.dumps(record))["skipped"][0]["path"].startswith("train/red thing/")
    table = accuracy()
    assert table["count"]["knn_accuracy"] == 15 and table["value"]["knn_accuracy"] == 1
    page = Path("reports/report.html").read_text(encoding="utf-8")
    assert "<b>bold" not in page and "&lt;b&gt;bold" in page
