"""`pipeline export`: ONNX files that give the results of `pipeline predict`."""

import csv
import json
import logging
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import make_gallery, make_network
from factories import QUIET, TINY, make_record
from PIL import Image

from pipeline.checkpoint import load_classifier, save_classifier
from pipeline.commands.classify import classify
from pipeline.commands.embed import embed
from pipeline.commands.export import export, sample_photos
from pipeline.data.decode import decode_files
from stages.errors import DataError, PipelineError
from stages.network.classifier_graph import OUTPUTS
from stages.network.embedding_net import EmbeddingNet
from stages.network.head import Head
from stages.records import Embeddings
from stages.settings import RESIZES, ClassifySettings, ReadSettings

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

OWN_NETWORKS = [("conv", 8, 1), ("conv", 100, 3), ("conv-deep", 33, 3), ("conv-deep", 70, 1)]
LIBRARY_NETWORKS = [
    "torchvision:resnet18",
    "torchvision:inception_v3",
    "torchvision:convnext_tiny",
    "torchvision:vit_b_16",
    "efficientnet-lite0",
]


def save_rotated(photo: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(path, exif=exif)


def save_transparent(photo: Image.Image, path: Path) -> None:
    photo.putalpha(photo.convert("L"))
    photo.save(path)


def save_16_bits(photo: Image.Image, path: Path) -> None:
    values = np.asarray(photo.convert("L")).astype(np.uint16) * 250 + 77
    Image.fromarray(values).save(path)


# Ways of saving an image that need care when it is read.
IMAGES = {
    "colour": lambda photo, path: photo.save(path),
    "grey": lambda photo, path: photo.convert("L").save(path),
    "grey as colour": lambda photo, path: photo.convert("L").convert("RGB").save(path),
    "black and white": lambda photo, path: photo.convert("1").save(path),
    "palette": lambda photo, path: photo.quantize(16).save(path),
    "transparent colour": lambda photo, path: photo.quantize(16).save(path, transparency=3),
    "transparent": save_transparent,
    "transparent grey": lambda photo, path: photo.convert("LA").save(path),
    "orientation": save_rotated,
    "16 bits": save_16_bits,
}


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


@pytest.fixture
def classifier(tmp_path) -> Path:
    """Write an untrained classifier of two classes."""
    return write_classifier(tmp_path / "c.safetensors", make_network())


def write_classifier(path: Path, network: EmbeddingNet, **changes: object) -> Path:
    """Write a classifier with a network and random heads."""
    dim = network.config["dim"]
    vectors = torch.nn.functional.normalize(torch.randn(3, dim), dim=1)
    gallery = Embeddings(vectors, torch.tensor([0, 1, 1]), ("a", "b"))
    validation = Embeddings(vectors[:1].roll(1, 1), torch.tensor([0]), ("a", "b"))
    record = make_record("classifier", network, **changes)
    save_classifier(path, network, Head(dim, 2), gallery, record, validation=validation)
    return path


def session(path: Path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(path: Path, values: np.ndarray) -> dict[str, np.ndarray]:
    """Run an ONNX file with one input."""
    loaded = session(path)
    (given,) = loaded.get_inputs()
    return dict(zip(OUTPUTS, loaded.run(list(OUTPUTS), {given.name: values}), strict=True))


def test_results_equal_those_of_predict(trained, run_command, tmp_path):
    """Compare with the CSV file of `predict`, on images that are read here."""
    shutil.copy(trained / "c.safetensors", tmp_path / "c.safetensors")
    folder = trained / "photos"
    options = ("--classifier", "c.safetensors")
    status, out, errors = run_command(
        "export", *options, "--out", "new/model.onnx", "--any-size", "any.onnx", folder
    )
    assert (status, errors) == (0, ""), errors
    assert "400 images in batches of 1, 3, 64: equal labels" in out
    assert out.endswith("new/model.onnx and any.onnx written\n")
    assert {path.name for path in tmp_path.iterdir()} == {"c.safetensors", "new", "any.onnx"}
    assert run_command("predict", folder, *options, "--out", "rows.csv")[0] == 0
    with Path("rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    # An image alone and many at once.
    images = np.stack([np.asarray(Image.open(row["path"]))[None] for row in rows])
    batches = [run(Path("new/model.onnx"), part) for part in (images[:1], images[1:])]
    outputs = {name: np.concatenate([batch[name] for batch in batches]) for name in OUTPUTS}
    metadata = session(Path("new/model.onnx")).get_modelmeta().custom_metadata_map
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
        single = run(Path("any.onnx"), pixels)
        np.testing.assert_allclose(
            single["nearest_distance"][0], float(row["nearest_distance"]), atol=5e-6
        )


def test_metadata_and_shapes(classifier, tmp_path):
    out, any_size = tmp_path / "model.onnx", tmp_path / "any.onnx"
    text = export(classifier, out=out, context=QUIET, any_size=any_size)
    assert f"{out}: " in text and "64 images" in text
    checkpoint = load_classifier(classifier)
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
        assert json.loads(metadata["class_names"]) == ["a", "b"]
        assert json.loads(metadata["record"]) == checkpoint.record
        assert float(metadata["temperature"]) == 1.5 and metadata["k"] == "3"
        assert metadata["embedding_digest"] == checkpoint.embedding_digest
        assert metadata["digest"] == checkpoint.digest
        read = [metadata[key] for key in ("size", "channels", "resize")]
        assert read == ["8", "1", "pad-repeat"]
        assert metadata["program"].startswith("embedding-pipeline")
        content = path.read_bytes()
        assert str(Path(torch.__file__).parent).encode() not in content  # no stack traces
        onnx.checker.check_model(onnx.load(path), full_check=True)


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


@pytest.mark.parametrize(("name", "size", "channels"), OWN_NETWORKS)
def test_own_networks(name, size, channels, tmp_path):
    check_network(tmp_path, name, size, channels)


@pytest.mark.parametrize("resize", RESIZES)
def test_images_of_any_size(resize, tmp_path):
    check_network(tmp_path, "conv", 30, 1, resize=resize, any_size=tmp_path / "any.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARY_NETWORKS)
def test_library_networks(name, tmp_path):
    check_network(tmp_path, name, 32, 3)


@pytest.mark.slow
def test_library_network_on_grey_images_of_any_size(tmp_path):
    any_size = tmp_path / "any.onnx"
    check_network(tmp_path, "torchvision:resnet18", 20, 1, any_size=any_size)


def check_network(
    folder: Path,
    name: str,
    size: int,
    channels: int,
    *,
    resize: str = "pad-repeat",
    any_size: Path | None = None,
) -> None:
    """Export an untrained network, and compare its vector of a photograph."""
    torch.manual_seed(0)
    network = EmbeddingNet(channels, size, 8, name=name).eval()
    read = asdict(ReadSettings(size=size, channels=channels, resize=resize))
    classifier = write_classifier(folder / "c.safetensors", network, read=read)
    photo, out = folder / "photo.png", folder / "model.onnx"
    sample_photos()[0].save(photo)
    export(classifier, [photo], out=out, context=QUIET, any_size=any_size)
    (decoded,) = decode_files([str(photo)], size=size, channels=channels, resize=resize)
    square = np.frombuffer(decoded.pixels, np.uint8).reshape(1, *decoded.shape)
    with torch.no_grad():
        vector = network(torch.from_numpy(square.copy())).numpy()
    np.testing.assert_allclose(run(out, square)["vector"], vector, atol=1e-5)
    if any_size:
        single = run(any_size, np.array(Image.open(photo)))
        np.testing.assert_allclose(single["vector"], vector, atol=1e-5)


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
        "images": {"naïve \udcff\n": 2},
        "new_classes": ["naïve \udcff\n"],
        "copies": 0,
        "distances": 9,
        "skipped": [],
    }
    classes = ["naïve \udcff\n"]
    record = make_record("classifier", network, classes=classes, enrolled=[enrolment])
    gallery = Embeddings(torch.eye(8)[:3], torch.zeros(3).long(), tuple(classes))
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
    assert (outputs["typicality"] > 9 / 11).all()
    metadata = session(out).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == classes


def test_failing_parity_writes_nothing(classifier, tmp_path, monkeypatch):
    out = tmp_path / "deep" / "model.onnx"
    # All distances in the file are 0.
    monkeypatch.setattr("stages.network.classifier_graph.ZERO_DISTANCE", 5.0)
    with pytest.raises(PipelineError, match="nearest_distance differs by"):
        export(classifier, out=out, context=QUIET)
    assert {path.name for path in tmp_path.iterdir()} == {"c.safetensors"}


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
    assert out.stat().st_size > 1000


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_extra_is_reported_before_any_work(package, run_command, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    status, _, errors = run_command("export", "--classifier", "missing.safetensors")
    assert status == 1 and "embedding-pipeline[onnx]" in errors
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


def test_unreadable_images(classifier, tmp_path, monkeypatch):
    out, folder = tmp_path / "model.onnx", tmp_path / "new"
    folder.mkdir()
    with monkeypatch.context() as patch:  # found before the network is translated
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


def test_other_checkpoints_are_rejected(tmp_path, trained):
    with pytest.raises(PipelineError, match=r"e\.safetensors: holds a checkpoint of kind"):
        export(trained / "e.safetensors", out=tmp_path / "model.onnx", context=QUIET)
    assert list(tmp_path.iterdir()) == []


def test_sample_photos_are_of_many_shapes():
    photos = sample_photos()
    assert len(photos) == 64 and {photo.mode for photo in photos} == {"RGB"}
    assert len({photo.size for photo in photos}) > 60
    assert [photo.tobytes() for photo in photos] == [photo.tobytes() for photo in sample_photos()]


PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "export.md"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", sorted(IMAGES))
def test_the_documented_preparation_gives_the_same_pixels(kind, channels, tmp_path):
    block = next(
        text
        for text in PAGE.read_text(encoding="utf-8").split("```python\n")
        if "def prepare" in text
    )
    names: dict[str, object] = {}
    exec(block.split("```")[0], names)
    for number, photo in enumerate(sample_photos()[:6]):
        path = tmp_path / f"{number}.{'jpg' if kind == 'orientation' else 'png'}"
        IMAGES[kind](photo, path)
        for size in (8, 64, 300):
            (decoded,) = decode_files(
                [str(path)], size=size, channels=channels, resize="pad-repeat"
            )
            expected = np.frombuffer(decoded.pixels, np.uint8).reshape(decoded.shape)
            assert np.array_equal(names["prepare"](path, size, channels), expected)
