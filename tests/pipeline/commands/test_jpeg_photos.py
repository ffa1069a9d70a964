"""Commands on JPEG photos: predictions read the pixels of training, also for old checkpoints."""

import csv
import json
from io import StringIO

import numpy as np
import pytest
import torch
from checkpoint_files import change_header
from PIL import Image
from safetensors import safe_open

from pipeline.checkpoint import load_classifier
from pipeline.tensor_files import read_header

SMALL = ("--network", "conv", "--size", "8", "--epochs", "1", "--threads", "1", "--quiet")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Folder of JPEG photos of 100 x 77 pixels in two classes; one has a copy as PNG."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for label in ("a", "b"):
        (folder / label).mkdir()
        for number in range(8):
            coarse = Image.fromarray(generator.integers(0, 256, (4, 5, 3), np.uint8))
            coarse.resize((100, 77), Image.Resampling.BICUBIC).save(
                folder / label / f"{number}.jpg"
            )
    Image.open(folder / "a" / "0.jpg").save(folder / "a" / "copy.png")
    return folder


def train(run_command, photos, folder, *options):
    """Train both stages and return the classifier's path."""
    embedding, classifier = folder / "e.safetensors", folder / "c.safetensors"
    cache = ("--cache", folder / "cache")
    command = ("embed", "--data", photos, "--out", embedding, *cache, *SMALL, *options)
    assert run_command(*command)[0] == 0
    done = run_command("classify", "--embedding", embedding, "--out", classifier, *cache, "--quiet")
    assert done[0] == 0, done
    return classifier


@pytest.mark.parametrize("jpeg", ["reduced", "full"])
def test_predictions_read_the_pixels_of_training(jpeg, run_command, photos, tmp_path):
    path = train(run_command, photos, tmp_path, "--jpeg", jpeg)
    classifier = load_classifier(path)
    assert classifier.record["read"]["jpeg"] == jpeg
    names = [name for name in classifier.record["gallery_ids"] if name.endswith(".jpg")]
    status, output, _ = run_command(
        "predict", *(photos / name for name in names), "--classifier", path
    )
    assert status == 0
    for name, row in zip(names, csv.DictReader(StringIO(output)), strict=True):
        assert row["nearest_id"] == name and float(row["nearest_distance"]) < 1e-5


def test_checkpoints_of_earlier_versions_belong_to_photos_decoded_in_full(
    run_command, photos, tmp_path
):
    path = train(run_command, photos, tmp_path, "--jpeg", "full")
    embedding = tmp_path / "e.safetensors"
    for file in (path, embedding):
        with safe_open(file, framework="pt") as content:
            record = json.loads(content.metadata()["record"])
        del record["read"]["jpeg"]  # earlier versions did not have it
        change_header(file, record=json.dumps(record), record_digest=None)
        assert read_header(file).record["read"]["jpeg"] == "full"
    cache = ("--cache", tmp_path / "cache")
    again = ("--embedding", embedding, "--out", tmp_path / "again.safetensors", *cache)
    assert run_command("classify", *again)[0] == 0
    new, old = (load_classifier(file) for file in (tmp_path / "again.safetensors", path))
    assert torch.equal(new.gallery.vectors, old.gallery.vectors)
    assert new.record["read"] == old.record["read"]
    command = ("embed", "--data", photos, "--out", embedding, *cache, *SMALL)
    status, _, errors = run_command(*command)
    assert status == 1 and "jpeg full instead of reduced" in errors
    assert run_command(*command, "--jpeg", "full")[0] == 0


def test_small_images_have_the_same_record_with_both_settings(run_command, digit_folder, tmp_path):
    records = []
    for jpeg in ("reduced", "full"):
        out = tmp_path / f"{jpeg}.safetensors"
        options = ("--data", digit_folder, "--epochs", 1, "--quiet", "--jpeg", jpeg)
        assert run_command("embed", *options, "--out", out)[0] == 0
        records.append(read_header(out).record)
    for name in ("read", "fingerprint"):
        assert records[0][name] == records[1][name]
    assert records[0]["read"]["jpeg"] == "full"
