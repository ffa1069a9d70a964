"""From one classifier file, in an empty folder: all uses of what was trained, end to end."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from factories import QUIET, TINY
from PIL import Image

from pipeline.checkpoint import load_classifier
from pipeline.commands.classify import classify
from pipeline.commands.embed import embed
from stages.settings import ClassifySettings, ReadSettings

PAGE = Path(__file__).parents[3] / "docs" / "tutorials" / "product.md"
COLOURS = {"cat": (150, 90, 40), "dog": (40, 90, 150), "vehicles": (60, 160, 60)}


def make_images(folder: Path, label: str, count: int, seed: int) -> list[Path]:
    """Write noisy images of the class's colour, 24 x 20 pixels."""
    generator, paths = np.random.default_rng(seed), []
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = generator.integers(0, 80, (20, 24, 3)) + np.array(COLOURS[label])
        paths.append(folder / f"{label} {number}.png")
        Image.fromarray(pixels.astype(np.uint8)).save(paths[-1])
    return paths


@pytest.fixture
def product(tmp_path, tmp_path_factory, monkeypatch) -> Path:
    """Return an empty folder, except for a classifier whose training images are gone."""
    root = tmp_path_factory.mktemp("training")
    for seed, label in enumerate(("cat", "dog")):
        make_images(root / "photos" / label, label, 30, seed)
    source, read = str(root / "photos"), ReadSettings()
    embedding = embed(source, read, TINY, out=root / "e.safetensors", context=QUIET)
    classify(embedding, ClassifySettings(), out=tmp_path / "c.safetensors", context=QUIET)
    shutil.rmtree(root)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_from_one_file_to_a_product(product, run_command, capsys):
    assert [path.name for path in product.iterdir()] == ["c.safetensors"]
    cats = make_images(Path("new/cat"), "cat", 4, seed=10)
    dogs = make_images(Path("new/dog"), "dog", 4, seed=11)
    make_images(Path("new-class/vehicles"), "vehicles", 5, seed=12)
    Path("truck.png").write_bytes(
        make_images(Path("later"), "vehicles", 1, seed=13)[0].read_bytes()
    )

    def run(command: str) -> str:
        status, out, errors = run_command(*command.split())
        assert status == 0, errors
        return out

    # Vectors: those of the images of a class are closer to each other than to the other class.
    run("vectors new --classifier c.safetensors --out new.npz")
    run("vectors new --classifier c.safetensors --out new.safetensors")
    with np.load("new.npz") as file:
        vectors, ids, labels = file["vectors"], file["ids"], file["labels"]
    assert ids.tolist() == [str(path) for path in (*cats, *dogs)]
    assert labels.tolist() == ["cat"] * 4 + ["dog"] * 4
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)

    # Search: an image finds itself first, then images of its class.
    for file in ("new.safetensors", "c.safetensors"):
        found = table(run(f"search new/cat --within {file} --k 3"))
        assert [row["rank"] for row in found] == ["1", "2", "3"] * 4
        assert {row["label"] for row in found} == {"cat"}
    found = table(run("search new/dog --within new.safetensors --k 8"))
    assert [row["id"] for row in found[::8]] == [str(path) for path in dogs]
    # The distances are those of the vectors in the other file.
    distances = np.linalg.norm(vectors[4] - vectors, axis=1)
    np.testing.assert_allclose(
        [float(row["distance"]) for row in found[:8]], np.sort(distances), atol=2e-6
    )

    # Enrolment: the new class is predicted, and the old ones still are.
    (before,) = table(run("predict truck.png --classifier c.safetensors"))
    run("enroll new-class --classifier c.safetensors --out enrolled.safetensors")
    enrolled = load_classifier(Path("enrolled.safetensors"))
    assert enrolled.classes == ("cat", "dog", "vehicles") and before["label"] != "vehicles"
    (after,) = table(run("predict truck.png --classifier enrolled.safetensors"))
    assert after["label"] == after["knn_label"] == "vehicles"
    rows = table(run("predict new --classifier enrolled.safetensors"))
    assert [row["label"] for row in rows] == ["cat"] * 4 + ["dog"] * 4

    # Export: onnxruntime's answers are those of `predict`.
    run("export --classifier enrolled.safetensors --out model.onnx --any-size any-size.onnx")
    for path, row in [("truck.png", after), *((row["path"], row) for row in rows)]:
        check_answers(path, row, enrolled)
    capsys.readouterr()
    (snippet,) = re.findall(r"^```py\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    exec(snippet, {})
    label, probability = capsys.readouterr().out.split()
    assert label == "vehicles" and abs(float(probability) - float(after["probability"])) < 1e-4


def check_answers(path, row, classifier) -> None:
    """Compare the exported model with a row of `predict`."""
    import onnxruntime

    session = onnxruntime.InferenceSession("any-size.onnx")
    image = np.asarray(Image.open(path).convert("RGB"))
    _, log_probabilities, nearest_distance, typicality = session.run(None, {"image": image})
    assert classifier.classes[log_probabilities[0].argmax()] == row["label"]
    probability = np.exp(log_probabilities[0].max())
    assert abs(probability - float(row["probability"])) < 1e-4
    assert abs(nearest_distance[0] - float(row["nearest_distance"])) < 1e-5
    assert abs(typicality[0] - float(row["typicality"])) < 1e-5
