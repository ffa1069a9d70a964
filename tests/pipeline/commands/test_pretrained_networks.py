"""Library networks in every command."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from factories import QUIET, make_dataset, train_both
from library_networks import library_settings, make_photos, save_small_weights
from PIL import Image
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from torch import nn
from torchvision import models

from pipeline.checkpoint import load_embedding
from pipeline.commands.classify import classify
from pipeline.commands.embed import embed
from pipeline.commands.report import evaluate_run, report
from pipeline.files import default_cache
from pipeline.report.evaluated_run import EvaluatedRun
from pipeline.report.summary import verdicts
from pipeline.report.tables import text_table
from pipeline.tensor_files import read_header
from pipeline.weights import load_weights
from stages.errors import CheckpointError
from stages.evaluation.knn import knn
from stages.network.digest import state_digest
from stages.network.embedding_net import EmbeddingNet
from stages.network.inference import trunk_features
from stages.network.initialization import fit_projection, new_network
from stages.records import Split
from stages.settings import ClassifySettings

BASELINE = "untrained_knn_accuracy"


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory) -> Path:
    return save_small_weights(tmp_path_factory.mktemp("weights"))


def make_photo_folder(root: Path, *, size: tuple[int, int] = (40, 50), count: int = 12) -> None:
    """Write noisy red, green and blue images, one folder per colour."""
    generator = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 90, (*size, 3), dtype=np.uint8)
            pixels[..., channel] += 120
            Image.fromarray(pixels).save(root / name / f"{index}.png")


@pytest.fixture
def succeed(run_command):
    """Return a function that runs a command that must succeed, and returns its output."""

    def run(*arguments: object) -> str:
        status, output, errors = run_command(*arguments)
        assert status == 0, errors
        return output + errors

    return run


def save_large_weights(path: Path) -> None:
    """Save random weights with BatchNorm statistics under which features depend on colours."""
    torch.manual_seed(0)
    network = models.mobilenet_v3_large(weights=None)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # average the statistics of all batches
    with torch.no_grad():
        for _ in range(10):
            network(torch.randn(16, 3, 1, 1) + 0.2 * torch.randn(16, 3, 64, 64))
    torch.save(network.state_dict(), path)


@pytest.mark.slow
def test_frozen_network_in_every_command(succeed, tmp_path):
    save_large_weights(tmp_path / "large.pth")
    make_photo_folder(tmp_path / "photos")
    network = ("--network", "torchvision:mobilenet_v3_large", "--weights", "large.pth")
    training = ("--trunk", "frozen", "--dim", 16, "--epochs", 3)
    output = succeed("embed", "--data", "photos", *network, *training)
    assert "224 x 224" in output
    (tmp_path / "large.pth").unlink()  # a frozen trunk is in the checkpoint
    succeed("classify")
    succeed("report")
    scores = pd.read_csv(tmp_path / "reports" / "accuracy.csv").set_index("metric")
    assert scores.loc[[BASELINE], "count"].gt(0).all()
    rows = succeed("predict", "photos", "--quiet").splitlines()[1:]
    assert len(rows) == 36
    correct = 0
    for row in rows:
        path, label = row.split(",")[:2]
        correct += path.split("/")[1] == label
    assert correct > 30


@pytest.mark.slow
def test_inception_in_every_command(succeed, tmp_path):
    make_photo_folder(tmp_path / "photos", size=(150, 299), count=6)
    network = ("--network", "torchvision:inception_v3", "--size", 299, "--resize", "pad-repeat")
    training = ("--dim", 16, "--epochs", 1, "--images-per-class", 2)
    output = succeed("embed", "--data", "photos", *network, *training)
    assert "299 x 299" in output
    succeed("classify")
    output = succeed("report", "--out", "first")
    assert "kNN accuracy" in output
    succeed("classify", "--dropout", 0.2, "--force")
    succeed("report", "--out", "second")
    assert (tmp_path / "second" / "report.html").is_file()


def check_trunk_baselines(run: EvaluatedRun, initial: EmbeddingNet) -> None:
    """Compare the baselines on the pretrained trunk with features of the initial network."""

    def features(split: Split) -> torch.Tensor:
        values = trunk_features(initial, split, device=torch.device("cpu"))
        with torch.no_grad():
            computed = initial.eval().features(split.take(slice(None)))
        torch.testing.assert_close(values, computed, rtol=1e-3, atol=1e-4)
        return values

    data = run.data
    train, test, labels = features(data.train), features(data.test), data.train.labels
    true_labels = data.test.labels.numpy()
    score = run.evaluation.score("trunk_knn_accuracy")
    k = int(score.definition.split(" nearest training images")[0].split()[-1])
    predicted = knn(F.normalize(test), F.normalize(train), labels, k=k).labels
    assert score.value == pytest.approx((predicted == true_labels).mean())
    score = run.evaluation.score("trunk_logistic_accuracy")
    penalty = float(score.definition.split("C = ")[1].split()[0])
    mean, scale = train.mean(0), (train - train.mean(0)).square().mean().sqrt()
    model = LogisticRegression(C=penalty, max_iter=1000).fit((train - mean) / scale, labels)
    assert score.value == pytest.approx(model.score((test - mean) / scale, true_labels))
    for pair in (
        ("knn_accuracy", "trunk_knn_accuracy"),
        ("classification_accuracy", "trunk_logistic_accuracy"),
    ):
        paired = run.evaluation.paired_test(*pair)
        difference = run.evaluation.score(pair[0]).value - run.evaluation.score(pair[1]).value
        assert paired.difference == pytest.approx(difference)


def test_weights_are_identified_by_their_content(small_weights, tmp_path):
    data = make_dataset(("cat", "dog"), train=4, size=32, channels=3)
    settings = library_settings(weights=str(small_weights))
    moved = tmp_path / "moved.safetensors"
    save_file(torch.load(small_weights, weights_only=True), moved)
    embedding, classifier = train_both(data, tmp_path, settings=settings)
    # The same run with the weights in another file replaces the checkpoint without force.
    same_run = replace(settings, weights=str(moved))
    embed(data, data.read, same_run, out=embedding, context=QUIET)
    assert read_header(embedding).record["weights"]["origin"] == str(moved)
    with pytest.raises(CheckpointError, match=r"weights .*none"):
        embed(data, data.read, replace(settings, weights="none"), out=embedding, context=QUIET)

    def evaluate():
        return evaluate_run("run", embedding, classifier, context=QUIET, source=data)

    run = evaluate()
    assert run.evaluation.score(BASELINE).count == len(data.test)
    # The trunk was tuned: its baselines use the initial weights.
    check_trunk_baselines(run, new_network(data.train, same_run, load_weights(same_run)))
    moved.unlink()  # the untrained baseline of a tuned trunk needs the weights
    evaluation = evaluate().evaluation
    assert evaluation.score(BASELINE).count == 0
    assert evaluation.paired_test("knn_accuracy", BASELINE).count == 0
    assert evaluation.score("trunk_knn_accuracy").count == 0
    assert evaluation.score("trunk_logistic_accuracy").count == 0
    assert report(embedding, classifier, out=tmp_path / "reports", context=QUIET, source=data)


def test_untrained_baseline_is_the_initial_network(small_weights, tmp_path, monkeypatch):
    photos = make_photos()
    settings = library_settings(weights=str(small_weights), trunk="frozen")
    initial = new_network(photos.train, settings, load_weights(settings))
    fit_projection(initial, photos.train, device=torch.device("cpu"))
    embedding, classifier = tmp_path / "e.safetensors", tmp_path / "c.safetensors"
    embed(photos, photos.read, settings, out=embedding, context=QUIET)
    assert list(default_cache().glob("*.features.npy"))
    classify(embedding, ClassifySettings(), out=classifier, context=QUIET, source=photos)
    digests = set()
    forward = EmbeddingNet.forward

    def record_digest(network: EmbeddingNet, images: torch.Tensor) -> torch.Tensor:
        digests.add(state_digest(network.state_dict()))
        return forward(network, images)

    monkeypatch.setattr(EmbeddingNet, "forward", record_digest)
    run = evaluate_run("run", embedding, classifier, context=QUIET, source=photos)
    trained = load_embedding(embedding).digest
    assert digests == {trained, state_digest(initial.state_dict())}
    assert len(digests) == 2
    check_trunk_baselines(run, initial)
    name = "pretrained trunk with an untrained projection"
    assert name in run.evaluation.score(BASELINE).definition
    paired = [
        replace(paired, p_value=0.5) if paired.metric_b == BASELINE else paired
        for paired in run.evaluation.paired_tests
    ]
    run = replace(run, evaluation=replace(run.evaluation, paired_tests=tuple(paired)))
    texts = " ".join(verdicts([run]))
    assert name in texts and "before training (" not in texts + text_table([run])
