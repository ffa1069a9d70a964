"""The findings about good, leaked, collapsed and untrained runs."""

import dataclasses

import pandas as pd
import pytest
import torch
from factories import QUIET, TINY, make_dataset, train_both

from pipeline.checkpoint import load_embedding, save_embedding
from pipeline.commands.classify import classify
from pipeline.commands.report import evaluate_run, report
from pipeline.report.summary import summary, verdict
from pipeline.report.tables import text_table
from pipeline.report.write import write_report
from stages.network.embedding_net import EmbeddingNet
from stages.settings import ClassifySettings

CLASSES = ("cat", "dog", "newt", "owl")


def with_paired_tests(run, **changes):
    """Return the run with changed paired tests."""
    paired_tests = tuple(
        dataclasses.replace(paired, **changes) for paired in run.evaluation.paired_tests
    )
    evaluation = dataclasses.replace(run.evaluation, paired_tests=paired_tests)
    return dataclasses.replace(run, evaluation=evaluation)


def with_changed_network(data, folder, change):
    """Return a run whose embedding network was changed between the two stages."""
    embedding, _ = train_both(data, folder)
    checkpoint = load_embedding(embedding)
    change(checkpoint.network)
    save_embedding(embedding, checkpoint.network, checkpoint.record)
    classifier = classify(
        embedding,
        ClassifySettings(),
        out=folder / "c.safetensors",
        context=QUIET,
        source=data,
        force=True,
    )
    (run,) = report(embedding, classifier, out=folder / "out", context=QUIET, source=data)
    return run


def warnings_of(run) -> list[str]:
    return [finding.text for finding in verdict(run) if finding.kind == "warning"]


def test_a_run_that_beats_every_baseline_has_no_warning(good_report):
    run = with_paired_tests(good_report.runs[0], difference=0.2, p_value=1e-9)
    findings = verdict(run)
    assert [finding.kind for finding in findings] == ["answer", "note"]
    assert "No image can be rejected as unknown with 8 validation images" in findings[1].text
    text = findings[0].text
    assert text.startswith("Classification accuracy is ")
    assert "on 60 test images (95% CI " in text
    assert "the difference is significant (p < 0.001). kNN accuracy on raw pixels is" in text


@pytest.mark.parametrize(
    "changes, beginning",
    [
        ({"difference": 0.2, "p_value": 0.2}, "No significant improvement over"),
        ({"difference": -0.2, "p_value": 1e-9}, "kNN on the embedding is significantly worse than"),
    ],
)
def test_each_baseline_that_is_not_beaten_has_a_warning(good_report, changes, beginning):
    run = with_paired_tests(good_report.runs[0], **changes)
    assert [finding.kind for finding in verdict(run)] == ["answer", "note"] + 3 * ["warning"]
    baselines = ("always predicting", "kNN on the network before training", "kNN on raw pixels")
    for text, baseline in zip(warnings_of(run), baselines, strict=True):
        assert text.startswith(f"{beginning} {baseline}")


@pytest.mark.parametrize(
    "changes, knn, classifier",
    [
        (
            {"difference": 0.1, "p_value": 0.2},
            "No significant improvement over kNN on the features of the pretrained trunk (9",
            "No significant improvement of the classifier over logistic regression on the features",
        ),
        (
            {"difference": -0.1, "p_value": 1e-9},
            "kNN on the embedding is significantly worse than kNN on the features",
            "The classifier is significantly worse than logistic regression on the features",
        ),
        ({"difference": 0.1, "p_value": 1e-9}, None, None),
    ],
)
def test_a_pretrained_trunk_that_is_not_beaten_has_a_warning(good_report, changes, knn, classifier):
    run = good_report.runs[0]
    score, paired = run.evaluation.score("knn_accuracy"), run.evaluation.paired_tests[0]
    scores, tests = list(run.evaluation.scores), list(run.evaluation.paired_tests)
    for ours, baseline in (
        ("knn_accuracy", "trunk_knn_accuracy"),
        ("classification_accuracy", "trunk_logistic_accuracy"),
    ):
        scores.append(dataclasses.replace(score, metric=baseline, value=0.95))
        tests.append(dataclasses.replace(paired, metric_a=ours, metric_b=baseline))
    evaluation = dataclasses.replace(
        run.evaluation, scores=tuple(scores), paired_tests=tuple(tests)
    )
    weights = {"origin": "default", "digest": "0" * 64}
    run = dataclasses.replace(
        run, evaluation=evaluation, embedding={**run.embedding, "weights": weights}
    )
    texts = [text for text in warnings_of(with_paired_tests(run, **changes)) if "trunk" in text]
    if knn is None:
        assert texts == []
    else:
        assert texts[-2].startswith(knn) and texts[-1].startswith(classifier)
        assert "(95.0%, p " in texts[-1]


def test_duplicates_are_reported(tmp_path):
    data = make_dataset(CLASSES, train=20, test=30, leaked=50)
    assert data.leaked == tuple(range(50))
    runs = report(*train_both(data, tmp_path), out=tmp_path / "out", context=QUIET, source=data)
    (warning,) = [text for text in warnings_of(runs[0]) if "test images" in text]
    assert warning.startswith("50 of the 120 test images (41.7%)")
    assert "training or validation split" in warning
    assert warning in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    accuracy = pd.read_csv(tmp_path / "out" / "accuracy.csv").set_index(["metric", "split"])
    assert accuracy.loc[("knn_accuracy", "test-without-duplicates"), "count"] == 70
    assert "without duplicates" in text_table(runs)


def test_an_untrained_embedding_has_a_warning(tmp_path):
    def reset(network):
        torch.manual_seed(TINY.seed)
        initial = EmbeddingNet(1, 8, 16, mean=network.mean.flatten(), std=network.std.flatten())
        network.load_state_dict(initial.state_dict())

    data = make_dataset(CLASSES, train=20, test=15)
    text = " ".join(warnings_of(with_changed_network(data, tmp_path, reset)))
    assert "No significant improvement over kNN on the network before training (" in text
    assert "collapsed" not in text


def test_a_collapsed_embedding_has_a_warning(tmp_path):
    def collapse(network):
        with torch.no_grad():
            network.project.weight.zero_()

    data = make_dataset(CLASSES, train=20, test=15)
    run = with_changed_network(data, tmp_path, collapse)
    text = " ".join(warnings_of(run))
    assert "The embedding has collapsed" in text
    assert "distance between test images is 0.000" in text
    assert "No significant improvement over always predicting" in text
    assert run.evaluation.score("triplet_accuracy").value == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "has collapsed" in page


def test_runs_with_different_test_images_are_not_compared(tmp_path):
    runs = []
    for name, seed in (("a", 0), ("b", 1)):
        data = make_dataset(CLASSES, seed=seed)
        paths = train_both(data, tmp_path, name=name)
        runs.append(evaluate_run(name, *paths, context=QUIET, source=data))
    write_report(tmp_path / "out", runs)
    (finding,) = summary(runs)
    assert finding.kind == "warning"
    assert finding.text.startswith("a and b cannot be compared")
    for run in runs:
        assert run.embedding["fingerprint"][:12] in finding.text
    comparisons = pd.read_csv(tmp_path / "out" / "comparisons.csv")
    assert (comparisons["run_a"] == comparisons["run_b"]).all()
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert finding.text in page
