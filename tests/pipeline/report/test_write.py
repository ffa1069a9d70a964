"""The files of the report: pictures, determinism, untrusted names and many classes."""

import csv
import dataclasses
import html
import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from factories import QUIET, TINY, make_dataset, train_both
from matplotlib.colors import to_rgba
from PIL import Image

from pipeline.commands.report import report
from pipeline.escape import escape_formula
from pipeline.report.evaluated_run import compare_runs_pairwise
from pipeline.report.plots import PALETTE, draw_map
from pipeline.report.write import write_report

CSV_FILES = ("accuracy.csv", "comparisons.csv", "predictions.csv", "classes.csv", "suspects.csv")
UNTRUSTED_NAMES = (
    "<script>alert(1)</script>",
    "=cmd|' /C calc'!A0",
    "$x_{",
    "@SUM(A1)",
    "\u540d\u524d",
    "-1",
    'quo"te, and\nline',
)


def test_figures_are_written_as_png_and_svg(good_report):
    figures = good_report.folder / "figures"
    names = {path.stem for path in figures.iterdir()}
    assert {"comparison", "confusion", "distances", "map", "reliability", "training-loss"} <= names
    for name in names:
        with Image.open(figures / f"{name}.png") as image:
            assert min(image.size) > 300
        svg = (figures / f"{name}.svg").read_text(encoding="utf-8")
        assert svg.startswith("<?xml")
        assert "</svg>" in svg


def test_the_matrix_of_many_classes_is_not_drawn(good_report, monkeypatch, tmp_path):
    (run,) = good_report.runs
    predicted = run.evaluation.prediction.classifier.copy()
    predicted[:3], predicted[3] = 1, 2  # cats that are classified as dogs, and one as a newt
    prediction = dataclasses.replace(run.evaluation.prediction, classifier=predicted)
    run = dataclasses.replace(
        run, evaluation=dataclasses.replace(run.evaluation, prediction=prediction)
    )
    assert set(run.images.labels[:4].tolist()) == {0}
    monkeypatch.setattr("pipeline.report.figures.MATRIX_CLASSES", 3)
    write_report(tmp_path, [run], figures=tmp_path)
    assert not (tmp_path / "confusion.png").exists() and (tmp_path / "map.png").exists()
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The matrix of 4 classes is not drawn" in page
    rows = re.findall(r"<tr><td>cat</td><td>(\w+)</td><td class=\"number\">(\d+)</td></tr>", page)
    assert rows[:2] == [("dog", "3"), ("newt", "1")]


def test_the_map_of_many_classes_has_a_colour_per_class():
    points = np.random.default_rng(0).normal(size=(60, 2))
    labels = np.arange(60) % 30
    (axes,) = draw_map(points, labels, [str(number) for number in range(30)]).axes
    (scatter,) = axes.collections
    np.testing.assert_array_equal(scatter.get_offsets(), points)
    expected = [to_rgba(PALETTE[label % len(PALETTE)]) for label in labels]
    np.testing.assert_allclose(scatter.get_facecolors(), expected)


def test_the_same_run_writes_the_same_bytes(good_report, tmp_path):
    folder = good_report.folder
    paths = folder / "embedding.safetensors", folder / "embedding-classifier.safetensors"
    report(*paths, out=tmp_path, context=QUIET, source=good_report.data)
    for name in CSV_FILES:
        assert (tmp_path / name).read_bytes() == (folder / "out" / name).read_bytes()


def test_the_page_defines_each_score_in_a_footnote(good_report):
    page = (good_report.folder / "out" / "report.html").read_text(encoding="utf-8")
    scores = [score for score in good_report.runs[0].evaluation.scores if score.split == "test"]
    for number in range(1, len(scores) + 1):
        assert page.count(f'href="#definition-{number}"') == 1
        assert page.count(f'id="definition-{number}"') == 1
    assert f'id="definition-{len(scores) + 1}"' not in page


def test_untrusted_names_are_escaped_and_can_be_read_back(tmp_path):
    data = make_dataset(UNTRUSTED_NAMES)
    out = tmp_path / "out"
    figures = tmp_path / "figures"
    report(*train_both(data, tmp_path), out=out, context=QUIET, source=data, figures=figures)
    for name in CSV_FILES:
        with (out / name).open(newline="", encoding="utf-8") as file:
            for row in csv.reader(file):
                for cell in row:
                    assert escape_formula(cell) == cell  # a spreadsheet runs none of them
    predictions = pd.read_csv(out / "predictions.csv", dtype=str, keep_default_na=False)
    labels = [data.test.classes[label] for label in data.test.labels]
    assert list(predictions["label"].str.removeprefix("'")) == labels
    assert len(predictions) == len(data.test)


def test_names_that_are_not_valid_text_leave_the_page_valid(tmp_path):
    """A byte that is not UTF-8 in a file name, and control characters in class names."""
    data = make_dataset(("a\udcffb", "x\x1b[31m\x00y", "right\u202eleft"))
    out, figures = tmp_path / "out", tmp_path / "figures"
    report(*train_both(data, tmp_path), out=out, context=QUIET, source=data, figures=figures)
    page = (out / "report.html").read_bytes().decode()  # strict
    assert "a\\udcffb" in page and "x\\x1b[31m\\x00y" in page and "right\\u202eleft" in page
    body = page.split("<script>")[0]
    assert not set(body) - {"\n"} & set(map(chr, (*range(32), 127, 0x202E)))
    assert b"a\xffb" in (out / "predictions.csv").read_bytes()
    ElementTree.fromstring((figures / "confusion.svg").read_bytes())


def headings_without_content(page: str) -> list[str]:
    """Return the headings that are followed by nothing or by a heading of at least their level."""
    body = re.search(r"<main>(.*)</main>", page, re.DOTALL).group(1)
    parts = re.split(r"<h([23])[^>]*>(.*?)</h\1>", body, flags=re.DOTALL)
    empty = []
    for level, title, content, next_level in zip(
        parts[1::3], parts[2::3], parts[3::3], [*parts[4::3], "1"], strict=True
    ):
        text = re.sub(r"<(?!svg|img|div id)[^>]*>", "", content).strip()
        if not text and next_level <= level:
            empty.append(title)
    return empty


def test_no_heading_is_without_content(good_report, tmp_path):
    (run,) = good_report.runs
    perfect = dataclasses.replace(
        run.evaluation.prediction,
        classifier=run.test.labels.numpy(),
        knn=run.test.labels.numpy(),
    )
    perfect = dataclasses.replace(
        run, evaluation=dataclasses.replace(run.evaluation, prediction=perfect)
    )
    pooled = dataclasses.replace(
        perfect,
        folds=(perfect,),
        deviation=run.evaluation.scores,
        embedding={**run.embedding, "history": []},
    )
    for name, runs in (("one", [run]), ("two", [run, perfect]), ("folds", [pooled])):
        write_report(tmp_path / name, runs)
        page = (tmp_path / name / "report.html").read_text(encoding="utf-8")
        assert page.count("<h2") > 3
        assert headings_without_content(page) == [], name


@pytest.mark.slow
def test_a_thousand_classes_make_a_page_below_10_mb(tmp_path):
    classes = tuple(f"class {label}" for label in range(1000))
    test_images = {0: 0, 1: 1} | dict.fromkeys(range(2, 1000), 2)
    data = make_dataset(classes, train=2, test=test_images)
    settings = dataclasses.replace(TINY, epochs=1, classes_per_batch=80, images_per_class=2)
    paths = train_both(data, tmp_path, settings=settings, max_iter=5)
    (run,) = report(*paths, out=tmp_path / "out", context=QUIET, source=data)
    assert run.evaluation.score("classification_accuracy").count == 1997
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert len(page) < 10_000_000
    assert page.count("<tr><td>class ") >= 1000


def text_of(page: str) -> str:
    """Return the text of a page without figures, scripts and styles."""
    page = re.sub(r"<(style|script|svg).*?</\1>", "", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", "", page))


def test_the_page_of_a_comparison_repeats_no_sentence(comparison_page):
    page = comparison_page.read_text(encoding="utf-8")
    blocks = re.findall(r"<(p|figcaption|dd|li)\b[^>]*>(.*?)</\1>", page, re.DOTALL)
    texts = [text_of(content).strip() for _, content in blocks]
    repeated = {text for text in texts if len(text) > 30 and texts.count(text) > 1}
    # These describe one run each; here they are equal.
    assert {text for text in repeated if not text.startswith(("Epoch ", "Temperature "))} == set()
    assert page.count("No image can be rejected as unknown") == 1
    assert page.count("no such network") == 1
    assert "timm:nonsense could not be evaluated; the table shows why." in page


def test_the_page_of_a_comparison_has_a_short_headline_and_the_details_below(comparison_page):
    page = comparison_page.read_text(encoding="utf-8")
    (headline, details) = re.findall(r'<p class="(?:answer|note)">(.*?)</p>', page)[:2]
    assert headline == "The 4 networks are not distinguishable on 60 images; conv is the fastest."
    assert details.startswith("The largest difference, between conv and ")
    assert "95% interval" in details and details.endswith(
        "timm:resnet10t, efficientnet-lite1 and torchvision:mobilenet_v3_small have random weights."
    )
    assert page.count('<span class="interval">(random weights)</span></td>') == 3
    assert "The verdict is decided by the adjusted p, the findings on each run by p." in page


def test_runs_are_compared_once_per_comparison(self_comparison, tmp_path, monkeypatch):
    calls = []

    def count(runs):
        calls.append(len(runs))
        return compare_runs_pairwise(runs)

    monkeypatch.setattr("pipeline.report.comparison.compare_runs_pairwise", count)
    monkeypatch.setattr("pipeline.report.write.compare_runs_pairwise", count)
    comparison = dataclasses.replace(self_comparison)  # without the cached tests
    write_report(tmp_path, comparison.runs, comparison=comparison)
    assert calls == [4]
    tests = pd.read_csv(tmp_path / "comparisons.csv")
    assert (tests["run_a"] != tests["run_b"]).sum() == len(comparison.tests) > 0


def test_the_network_that_auto_has_chosen_follows_the_answer(good_report, tmp_path):
    (run,) = good_report.runs
    choice = "conv, trained from scratch (small grey images)"
    chosen = dataclasses.replace(run, embedding=run.embedding | {"network_choice": choice})
    write_report(tmp_path, [chosen])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    findings = re.findall(r'<p class="(?:answer|note|warning)">(.*?)</p>', page)
    assert findings[1] == f"Network chosen by auto: {choice}."
    assert findings[0].startswith("Classification accuracy is")
    other = (good_report.folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "adjusted" not in text_of(other)
    two = [chosen, dataclasses.replace(chosen, run="b")]
    write_report(tmp_path, two)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The findings are decided by p, not by the adjusted p." in page
