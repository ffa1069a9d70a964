"""`pipeline enroll`: from files to a classifier that predicts the enrolled classes."""

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from enrolled_files import NEW, OLD, enrol, train_on_old_classes, write_new_images
from factories import QUIET, make_classifier, make_record
from short_reports import QUICK

from pipeline.checkpoint import load_classifier, save_classifier
from pipeline.commands.classify import classify
from pipeline.commands.embed import embed
from pipeline.commands.enroll import enroll
from pipeline.commands.enrolment_text import _changed_k
from pipeline.commands.report import report
from pipeline.identity import classifier_identity, refuse_to_replace
from pipeline.tensor_files import read_header
from stages.classifier.enrolment import EnrolledGallery
from stages.classifier.train import TrainedClassifier
from stages.errors import CheckpointError, DataError, PipelineError
from stages.evaluation.knn import nearest_distances
from stages.network.embedding_net import EmbeddingNet
from stages.network.head import Head
from stages.records import Embeddings
from stages.settings import ClassifySettings, ReadSettings


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    return train_on_old_classes(tmp_path_factory.mktemp("enroll"))


@pytest.fixture
def source(workspace, tmp_path):
    """Return a function that writes a folder with some images per class."""
    return lambda name="new", **counts: write_new_images(workspace, tmp_path / name, **counts)


def test_new_and_known_classes(workspace, source, tmp_path):
    start, out = workspace / "c.safetensors", tmp_path / "out.safetensors"
    folder = source(oak=4, yew=1, birch=2)
    text = enrol(folder, start, out)
    before, after = load_classifier(start), load_classifier(out)
    assert after.classes == (*OLD, "oak", "yew")
    assert len(after.gallery) == len(before.gallery) + 7
    assert torch.equal(after.gallery.vectors[:30], before.gallery.vectors)
    files = ["birch/0", "birch/1", "oak/0", "oak/1", "oak/2", "oak/3", "yew/0"]
    assert after.gallery_ids[30:] == tuple(f"{folder}/{name}.png" for name in files)
    labels = [after.classes[label] for label in after.gallery.labels[30:].tolist()]
    assert labels == ["birch"] * 2 + ["oak"] * 4 + ["yew"]
    (item,) = after.record["enrolled"]
    assert item == {
        "source": str(folder.resolve()),
        "classifier_digest": before.digest,
        "images": {"birch": 2, "oak": 4, "yew": 1},
        "new_classes": ["oak", "yew"],
        "copies": 0,
        "distances": 4,
        "skipped": [],
    }
    assert len(after.enrolled_distances) == 4  # neither of birch, nor of the only yew
    assert after.new_classes == (3, 4)
    changed = {"classes", "gallery_ids", "k", "temperature", "calibrated", "epoch", "history"}
    for name, value in before.record.items():
        assert name in changed or after.record[name] == value, name
    assert after.embedding_digest == before.embedding_digest
    expected = nearest_distances(before.validation.vectors, after.gallery.vectors)
    torch.testing.assert_close(after.validation_distances, expected)
    assert after.k == 1  # yew has one image
    assert "also chose k" not in text
    for part in ("5 images of 2 new classes: oak (4), yew (1)", "of 1 known class: birch (2)"):
        assert part in text
    assert "24 validation images" in text and "6 new images, each left out" in text
    assert "unknown for 1 new image" in text
    assert text.splitlines()[-2].startswith(
        "rejected as unknown (typicality below 0.05), each left"
    )
    assert "of 6 new images" in text.splitlines()[-1]


def test_predict_returns_the_new_class_from_the_file_alone(
    workspace, source, tmp_path, run_command
):
    start = workspace / "c.safetensors"
    status, out, _ = run_command("enroll", source(oak=4, yew=4), "--classifier", start,
                                 "--out", "only/out.safetensors", "--device", "cpu")  # fmt: skip
    assert status == 0 and "predict IMAGE..." in out
    shutil.rmtree(tmp_path / "new")
    images = [workspace / "pool" / label / f"{i}.png" for label in NEW for i in range(5, 8)]
    arguments = ("--classifier", "only/out.safetensors", "--out", "rows.csv", "--device", "cpu")
    assert run_command("predict", *images, *arguments)[0] == 0
    rows = pd.read_csv("rows.csv")
    assert rows["knn_label"].tolist() == ["oak"] * 3 + ["yew"] * 3
    assert (rows["label"] == rows["knn_label"]).sum() >= 5
    knn_lines = [line for line in out.splitlines() if line.startswith("  kNN")]
    assert [line.endswith("these images also chose k") for line in knn_lines] == [False, True]


def test_enrolling_again_adds_to_the_record(workspace, source, tmp_path):
    start = workspace / "c.safetensors"
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    enrol(source("one", oak=1, yew=2), start, first)
    text = enrol(source("two", oak=3, ash=2), first, second)
    assert "left out 1 copy of images that the classifier has" in text
    once, twice = load_classifier(first), load_classifier(second)
    assert [item["distances"] for item in once.record["enrolled"]] == [2]
    items = twice.record["enrolled"]
    # The first image of oak has another one of its class now.
    assert [item["distances"] for item in items] == [3, 2]
    assert [item["new_classes"] for item in items] == [["oak", "yew"], []]
    assert items[1]["images"] == {"ash": 2, "oak": 2} and items[1]["copies"] == 1
    assert items[1]["classifier_digest"] == once.digest
    assert len(twice.validation_distances) == 24 and len(twice.enrolled_distances) == 5
    with pytest.raises(DataError, match="nothing to enrol"):
        enrol(source("three", oak=3, ash=2), second, tmp_path / "3.safetensors")
    assert not (tmp_path / "3.safetensors").exists()


def test_copies_in_the_source_count_once(workspace, source, tmp_path):
    folder = source(oak=3)
    shutil.copy(folder / "oak" / "0.png", folder / "oak" / "copy.png")
    shutil.copy(workspace / "photos" / "val" / "ash" / "0.png", folder)
    (folder / "ash").mkdir()
    shutil.move(folder / "0.png", folder / "ash")
    (folder / "oak" / "bad.png").write_text("no image")
    out = tmp_path / "out.safetensors"
    text = enrol(folder, workspace / "c.safetensors", out)
    (item,) = read_header(out).record["enrolled"]
    assert item["images"] == {"oak": 3} and item["copies"] == 2
    assert [Path(skipped["path"]).name for skipped in item["skipped"]] == ["bad.png"]
    assert "1 copy of other new images" in text and "skipped 1 image" in text
    assert "1 copy of images that the classifier has already" in text  # of a validation image
    before, after = load_classifier(workspace / "c.safetensors"), load_classifier(out)
    assert torch.equal(before.validation.vectors, after.validation.vectors)
    assert after.validation_distances.min() > 1e-5


def test_validation_images_are_not_enrolled(workspace, tmp_path):
    folder = shutil.copytree(workspace / "photos" / "val", tmp_path / "new")
    with pytest.raises(DataError, match=r"nothing to enrol.* 24 images"):
        enrol(folder, workspace / "c.safetensors", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("k", "size", "before", "has_validation", "limit"),
    [
        (3, 3, 5, True, True),
        (1, 3, 5, True, False),
        (1, 3, 5, False, False),
        (9, 6, 5, True, False),
    ],
)
def test_reason_for_another_k(k, size, before, has_validation, limit):
    labels = torch.tensor([0] * 20 + [1] * size)
    embeddings = Embeddings(torch.eye(20 + size), labels, ("a", "b"))
    gallery = EnrolledGallery(embeddings, enrolled=size, added=size, new_classes=(1,))
    classifier = make_classifier(embeddings, validation=embeddings, k=before)
    classifier = replace(classifier, validation=embeddings if has_validation else None)
    trained = TrainedClassifier(classifier.head, 1, (), 1.0, True, k)
    text = _changed_k(classifier, gallery, trained)
    assert f"{k} instead of {before}" in text
    assert (f"has {size} images" in text) == limit
    assert ("validation" in text) == (has_validation and not limit)


@pytest.mark.parametrize("split", ["train", "val", "source"])
def test_one_image_under_two_classes_is_an_error(workspace, source, tmp_path, split):
    folder = source(oak=2, yew=1)
    other = folder / "oak" / "1.png" if split == "source" else (
        workspace / "photos" / split / "cedar" / "3.png"
    )  # fmt: skip
    shutil.copy(other, folder / "yew" / "same.png")
    with pytest.raises(DataError) as error:
        enrol(folder, workspace / "c.safetensors", tmp_path / "out.safetensors")
    message = str(error.value)
    assert "same.png" in message and "yew" in message
    assert ("oak" if split == "source" else "cedar") in message
    assert {"source": "1.png", "train": "cedar/3.png", "val": "validation"}[split] in message


def test_names_in_another_form(workspace, source, tmp_path):
    folder = source(oak=2)
    (folder / "oak").rename(folder / "Ash")
    with pytest.raises(DataError, match=r"Ash.*ash.*case"):
        enrol(folder, workspace / "c.safetensors", tmp_path / "out.safetensors")


def test_splits_of_a_table_are_ignored(workspace, tmp_path, run_command):
    rows = [(workspace / "pool" / "oak" / f"{i}.png", "oak", ("train", "test")[i]) for i in (0, 1)]
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv("new.csv", index=False)
    start = ("--classifier", workspace / "c.safetensors", "--device", "cpu")
    status, out, err = run_command("enroll", "new.csv", *start, "--out", "out.safetensors")
    assert status == 0 and "2 images" in out and "splits" in err


@pytest.mark.parametrize("name", ["nowhere", "digits", "notes.txt", "empty"])
def test_sources_that_cannot_be_used(workspace, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("x")
    Path("empty/oak").mkdir(parents=True)
    with pytest.raises(DataError, match=name):
        enroll(name, workspace / "c.safetensors", out=Path("out"), context=QUIET)
    assert not Path("out").exists()


def test_nothing_readable(workspace, tmp_path):
    (tmp_path / "new" / "oak").mkdir(parents=True)
    (tmp_path / "new" / "oak" / "0.png").write_text("no image")
    with pytest.raises(DataError, match="none of the 1 image"):
        enrol(tmp_path / "new", workspace / "c.safetensors", tmp_path / "out.safetensors")


def test_existing_files_are_kept(workspace, source, tmp_path):
    start, out = tmp_path / "c.safetensors", tmp_path / "out.safetensors"
    shutil.copy(workspace / "c.safetensors", start)
    out.write_text("notes")
    folder = source(oak=2)
    with pytest.raises(PipelineError, match=r"out\.safetensors: exists.*--force"):
        enrol(folder, start, out)
    assert out.read_text() == "notes"
    with pytest.raises(PipelineError, match="input"):
        enrol(folder, start, start, force=True)
    enrol(folder, start, out, force=True)
    assert load_classifier(out).classes[-1] == "oak"


def test_stage_two_does_not_replace_enrolled_images(workspace, source, tmp_path):
    out = tmp_path / "out.safetensors"
    enrol(source(oak=2), workspace / "c.safetensors", out)
    identity = classifier_identity(
        read_header(workspace / "e.safetensors").record, ClassifySettings()
    )
    refuse_to_replace(workspace / "c.safetensors", "classifier", identity, force=False)
    with pytest.raises(CheckpointError, match=r"2 images of 1 new class \(oak\).*--force"):
        classify(workspace / "e.safetensors", ClassifySettings(), out=out, context=QUIET)
    refuse_to_replace(out, "classifier", identity, force=True)


def test_without_validation_images_the_cost_is_unknown(workspace, source, tmp_path):
    paths = tmp_path / "e.safetensors", tmp_path / "c.safetensors"
    photos = shutil.copytree(workspace / "photos" / "train", tmp_path / "photos")
    read = ReadSettings(val=0.0)
    embed(str(photos), read, replace(QUICK, epochs=1), out=paths[0], context=QUIET)
    classify(paths[0], ClassifySettings(), out=paths[1], context=QUIET)
    text = enrol(source(oak=2), paths[1], tmp_path / "out.safetensors")
    assert "cost for the old classes is unknown" in text
    enrolled = load_classifier(tmp_path / "out.safetensors")
    assert not enrolled.calibrated and len(enrolled.validation_distances) == 0
    assert "rejected" not in text
    report(paths[0], tmp_path / "out.safetensors", out=tmp_path / "r", context=QUIET)


def test_a_collapsed_embedding_is_an_error(source, tmp_path):
    """All images have one vector, so no image is new."""
    network = EmbeddingNet(1, 8, 8).eval()
    with torch.no_grad():
        network.project.weight.zero_()
        network.project.bias.fill_(1.0)
    vector = network(torch.zeros(1, 1, 8, 8, dtype=torch.uint8)).detach()
    gallery = Embeddings(vector.repeat(3, 1), torch.tensor([0, 1, 1]), ("a", "b"))
    record = make_record("classifier", network, counts={"train": 3, "val": 0, "test": 0})
    path = tmp_path / "c.safetensors"
    save_classifier(path, network, Head(8, 2), gallery, record)
    with pytest.raises(DataError, match="collapsed"):
        enrol(source(oak=1), path, tmp_path / "out.safetensors")
