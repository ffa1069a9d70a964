"""`pipeline export`: ONNX files that give the results of `pipeline predict`."""

import csv
import json
import logging
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from checkpoint_files import make_gallery, make_network
from factories import QUIET, TINY, make_record
from onnx_files import run, session, write_classifier
from PIL import Image

from pipeline.checkpoint import load_classifier, save_classifier
from pipeline.commands.classify import classify
from pipeline.commands.embed import embed
from pipeline.commands.export import _photos, export, sample_photos
from pipeline.onnx_parity import compare_batches
from stages.errors import DataError, PipelineError
from stages.network.classifier_graph import OUTPUTS, ClassifierGraph
from stages.network.head import Head
from stages.records import Embeddings
from stages.settings import ClassifySettings, ReadSettings


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits) -> Path:
    """Train on a folder of digits; return the folder with the classifier and the images."""
    root = tmp_path_factory.mktemp("run")
    photos = root / "photos"
    for index, (image, label) in enumerate(zip(digits[0][:400], digits[1], strict=False)):
        (photos / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(photos / str(label) / f"{index}.png")
    embedding = embed(str(photos), ReadSettings(), TINY, out=root / "e.safetensors", context=QUIET)
    classify(embedding, ClassifySettings(), out=root / "c.safetensors", context=QUIET)
    return root


@pytest.fixture(scope="module")
def exported(trained) -> str:
    """Export the trained classifier; return the text for the terminal."""
    return export(
        trained / "c.safetensors",
        [trained / "photos"],
        out=trained / "new" / "model.onnx",
        any_size=trained / "any.onnx",
        context=QUIET,
    )


@pytest.fixture
def classifier(tmp_path) -> Path:
    """Write an untrained classifier of two classes."""
    return write_classifier(tmp_path / "c.safetensors", make_network())


@pytest.fixture
def no_translation(monkeypatch):
    """Replace the slow parts of the command: the files are empty and give PyTorch's results."""

    def compare(_run, checkpoint, blocks):
        graph = ClassifierGraph(checkpoint)

        def run(images):
            with torch.no_grad():
                values = graph(torch.from_numpy(images))
            return dict(zip(OUTPUTS, (value.numpy() for value in values), strict=True))

        return compare_batches(run, checkpoint, blocks)

    monkeypatch.setattr("pipeline.commands.export.to_onnx", lambda *_, **__: b"translated")
    monkeypatch.setattr("pipeline.commands.export.run_onnx", lambda *_: None)
    monkeypatch.setattr("pipeline.commands.export.compare_batches", compare)


def test_results_equal_those_of_predict(trained, exported, run_command):
    """Compare with the CSV file of `predict`, on images that are read here."""
    folder, out, any_size = (trained / name for name in ("photos", "new/model.onnx", "any.onnx"))
    assert "400 images in batches of 1, 3, 64: equal labels" in exported
    assert "64 images with equal pixels: equal labels" in exported
    options = ("--classifier", trained / "c.safetensors")
    assert run_command("predict", folder, *options, "--out", "rows.csv")[0] == 0
    with Path("rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    # An image alone and many at once.
    images = np.stack([np.asarray(Image.open(row["path"]))[None] for row in rows])
    batches = [run(out, part) for part in (images[:1], images[1:])]
    outputs = {name: np.concatenate([batch[name] for batch in batches]) for name in OUTPUTS}
    metadata = session(out).get_modelmeta().custom_metadata_map
    classes = json.loads(metadata["class_names"])
    chosen = outputs["log_probabilities"].argmax(axis=1)
    assert [classes[label] for label in chosen] == [row["label"] for row in rows]
    assert len(set(chosen)) == 10
    largest = np.exp(outputs["log_probabilities"].max(axis=1))
    np.testing.assert_allclose(largest, [float(row["probability"]) for row in rows], atol=5e-6)
    distances = [float(row["nearest_distance"]) for row in rows]
    np.testing.assert_allclose(outputs["nearest_distance"], distances, atol=5e-6)
    # The training images are at distance 0, and the validation images tie with themselves.
    shares = np.array([float(row["typicality"]) for row in rows])
    assert np.abs(outputs["typicality"] - shares).max() < 1.5 / 40
    assert (np.abs(outputs["typicality"] - shares) < 1e-5).mean() > 0.9
    for row in rows[:5]:
        pixels = np.array(Image.open(row["path"]).convert("RGB"))
        single = run(any_size, pixels)
        np.testing.assert_allclose(
            single["nearest_distance"][0], float(row["nearest_distance"]), atol=5e-6
        )


def test_metadata_and_shapes(trained, exported):
    out, any_size = trained / "new" / "model.onnx", trained / "any.onnx"
    assert f"{out}: " in exported and f"{any_size}: " in exported
    checkpoint = load_classifier(trained / "c.safetensors")
    for path, name, shape in (
        (out, "images", ["batch", 1, 8, 8]),
        (any_size, "image", ["height", "width", 3]),
    ):
        loaded = session(path)
        (given,) = loaded.get_inputs()
        assert (given.name, given.type, given.shape) == (name, "tensor(uint8)", shape)
        assert [output.name for output in loaded.get_outputs()] == list(OUTPUTS)
        assert {output.type for output in loaded.get_outputs()} == {"tensor(float)"}
        metadata = loaded.get_modelmeta().custom_metadata_map
        assert json.loads(metadata["class_names"]) == [str(digit) for digit in range(10)]
        assert json.loads(metadata["record"]) == checkpoint.record
        assert float(metadata["temperature"]) == checkpoint.temperature
        assert metadata["k"] == str(checkpoint.k)
        assert metadata["embedding_digest"] == checkpoint.embedding_digest
        assert metadata["digest"] == checkpoint.digest
        read = [metadata[key] for key in ("size", "channels", "resize")]
        assert read == ["8", "1", "pad-repeat"]
        assert metadata["program"].startswith("embedding-pipeline")
        content = path.read_bytes()
        assert str(Path(torch.__file__).parent).encode() not in content  # no stack traces
        onnx.checker.check_model(onnx.load(path), full_check=True)


@pytest.mark.slow
def test_two_exports_are_equal_and_settings_are_restored(classifier, tmp_path):
    torch.use_deterministic_algorithms(False)
    try:
        level, threads = logging.root.manager.disable, torch.get_num_threads()
        for name in ("1.onnx", "2.onnx"):
            export(classifier, out=tmp_path / name, context=QUIET)
        assert (tmp_path / "1.onnx").read_bytes() == (tmp_path / "2.onnx").read_bytes()
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.is_grad_enabled() and torch.get_num_threads() == threads
        assert logging.root.manager.disable == level
    finally:
        torch.use_deterministic_algorithms(True)


@pytest.mark.slow
def test_without_validation_images_typicality_is_nan(tmp_path):
    network, path = make_network(), tmp_path / "c.safetensors"
    record = make_record("classifier", network, counts={"train": 3, "val": 0, "test": 0})
    save_classifier(path, network, Head(8, 2), make_gallery(), record)
    export(path, out=tmp_path / "model.onnx", context=QUIET)
    images = np.zeros((2, 1, 8, 8), np.uint8)
    assert np.isnan(run(tmp_path / "model.onnx", images)["typicality"]).all()


def test_one_class_and_an_enrolled_classifier(tmp_path):
    network, path = make_network(), tmp_path / "c.safetensors"
    enrolment = {
        "source": "new/",
        "classifier_digest": "d",
        "images": {"naïve \udcff\n": 9},
        "new_classes": ["naïve \udcff\n"],
        "copies": 0,
        "distances": 9,
        "skipped": [],
    }
    classes = ["naïve \udcff\n"]
    record = make_record(
        "classifier", network, classes=classes, enrolled=[enrolment], gallery_ids=["x"] * 10
    )
    gallery = Embeddings(torch.eye(8)[:1].repeat(10, 1), torch.zeros(10).long(), tuple(classes))
    validation = Embeddings(torch.eye(8)[3:4], torch.tensor([0]), tuple(classes))
    far = torch.full((9,), 2.0)
    save_classifier(
        path,
        network,
        Head(8, 1),
        gallery,
        record,
        validation=validation,
        enrolled_distances=far,
    )
    out = tmp_path / "model.onnx"
    export(path, out=out, context=QUIET)
    outputs = run(out, np.zeros((2, 1, 8, 8), np.uint8))
    assert (outputs["log_probabilities"] == 0).all()
    assert (outputs["typicality"] == 1).all()  # the only class is an enrolled one
    metadata = session(out).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == classes


def test_failing_parity_writes_nothing(classifier, tmp_path, monkeypatch):
    out = tmp_path / "deep" / "model.onnx"
    # All distances in the file are 0.
    monkeypatch.setattr("stages.network.classifier_graph.SQUARED_RESOLUTION", 5.0)
    with pytest.raises(PipelineError, match="nearest_distance differs by"):
        export(classifier, out=out, context=QUIET)
    assert {path.name for path in tmp_path.iterdir()} == {"c.safetensors"}


@pytest.mark.usefixtures("no_translation")
def test_existing_file_is_kept_without_force(classifier, tmp_path, monkeypatch):
    out = tmp_path / "model.onnx"
    out.write_text("kept")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.commands.export.load_classifier", pytest.fail)
        with pytest.raises(PipelineError, match=r"model\.onnx: exists; .* --force"):
            export(classifier, out=out, context=QUIET)
        with pytest.raises(PipelineError, match=r"model\.onnx: exists; .* --force"):
            export(classifier, out=tmp_path / "x.onnx", context=QUIET, any_size=out)
    assert out.read_text() == "kept"
    export(classifier, out=out, context=QUIET, force=True)
    assert out.read_bytes() == b"translated"


@pytest.mark.usefixtures("no_translation")
def test_command_line(classifier, run_command, tmp_path):
    options = ("export", "--classifier", classifier, "--out", "a.onnx")
    status, out, errors = run_command(*options)
    assert (status, errors) == (0, "")
    assert "64 images in batches of 1, 3, 64: equal labels" in out
    assert out.endswith("a.onnx written\n")
    assert {path.name for path in tmp_path.iterdir()} == {"c.safetensors", "a.onnx"}
    Path("b.onnx").write_text("kept")
    status, out, errors = run_command(*options, "--any-size", "b.onnx")
    assert (status, out) == (1, "") and "a.onnx: exists; use another path" in errors
    Path("a.onnx").unlink()
    status, out, errors = run_command(*options, "--any-size", "b.onnx")
    assert (status, out) == (1, "") and "b.onnx: exists; use another path" in errors
    assert not Path("a.onnx").exists() and Path("b.onnx").read_text() == "kept"
    status, out, errors = run_command(*options, "--any-size", "./a.onnx")
    assert (status, out) == (1, "") and "a.onnx: is also an input or another output" in errors
    status, out, errors = run_command(*options, "--quiet")
    assert (status, errors) == (0, "") and out.endswith("a.onnx written\n")
    assert run_command("export", "--unknown")[0] == 2


def test_images_in_their_size_for_the_comparison(tmp_path, monkeypatch):
    for number in range(70):
        Image.new("RGB", (3, number + 1)).save(tmp_path / f"{number:02}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert [photo.height for photo in _photos([tmp_path])] == list(range(1, 65))
    monkeypatch.setattr("pipeline.commands.export.MAX_COMPARED_PIXELS", 6)
    assert [photo.height for photo in _photos([tmp_path])] == [1, 2]
    monkeypatch.setattr("pipeline.commands.export.MAX_COMPARED_PIXELS", 2)
    assert len(list(_photos([tmp_path]))) == len(list(_photos([]))) == 64


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_extra_is_reported_before_any_work(package, run_command, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    status, _, errors = run_command("export", "--classifier", "missing.safetensors")
    assert status == 1 and "pip install onnx onnxscript onnxruntime" in errors
    assert len(errors.splitlines()) == 1


def test_unwritable_outputs_and_inputs(classifier, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "model.onnx", tmp_path, Path("/proc/nowhere/model.onnx")):
        with pytest.raises(PipelineError, match=r"use another path|give the path of a file"):
            export(classifier, out=out, context=QUIET)
    content = classifier.read_bytes()
    for options in (
        {"out": classifier},
        {"out": tmp_path / "a.onnx", "any_size": classifier},
        {"out": tmp_path / "a.onnx", "any_size": tmp_path / "a.onnx"},
    ):
        with pytest.raises(PipelineError, match="is also an input or another output"):
            export(classifier, context=QUIET, force=True, **options)
    assert classifier.read_bytes() == content
    assert {path.name for path in tmp_path.iterdir()} == {"c.safetensors", "file"}


@pytest.mark.usefixtures("no_translation")
def test_unreadable_images(classifier, tmp_path, monkeypatch):
    out, folder = tmp_path / "model.onnx", tmp_path / "new"
    folder.mkdir()
    with monkeypatch.context() as patch:  # before the network is translated
        patch.setattr("pipeline.commands.export.to_onnx", pytest.fail)
        with pytest.raises(DataError, match="contains no image"):
            export(classifier, [folder], out=out, context=QUIET)
        (folder / "broken.png").write_bytes(b"no image")
        with pytest.raises(DataError, match="could not be read"):
            export(classifier, [folder], out=out, context=QUIET)
        Image.new("L", (9, 5)).save(folder / "good.png")
        for images in ([folder / "broken.png", folder / "good.png"], [folder / "missing.png"]):
            with pytest.raises(DataError, match="could not be read, and nothing was written"):
                export(classifier, images, out=out, context=QUIET)
    assert not out.exists()
    assert "on 1 image in" in export(classifier, [folder], out=out, context=QUIET)


def test_several_processes_are_rejected(classifier, tmp_path, monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.setenv(name, "2")
    with pytest.raises(PipelineError, match="without torchrun"):
        export(classifier, out=tmp_path / "model.onnx", context=QUIET)


def test_other_checkpoints_are_rejected(tmp_path, trained):
    with pytest.raises(PipelineError, match=r"e\.safetensors: holds a checkpoint of kind"):
        export(trained / "e.safetensors", out=tmp_path / "model.onnx", context=QUIET)
    assert list(tmp_path.iterdir()) == []


def test_sample_photos_are_of_many_shapes():
    photos = sample_photos()
    assert len(photos) == 64 and {photo.mode for photo in photos} == {"RGB"}
    assert len({photo.size for photo in photos}) > 60
    assert [photo.tobytes() for photo in photos] == [photo.tobytes() for photo in sample_photos()]
