"""`pipeline compare`: the same images for all, failures, interrupts and files."""

import math
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from factories import QUIET, make_dataset
from PIL import Image
from scipy.stats import norm

from pipeline.commands import compare as compare_module
from pipeline.commands import compared_candidates
from pipeline.commands.compare import compare
from pipeline.commands.folds import run_folds
from pipeline.data.dataset import Dataset
from pipeline.network_choice import NetworkChoice
from pipeline.network_cost import NetworkCost
from pipeline.report import write
from pipeline.report.comparison import Comparison
from stages.errors import DataError, PipelineError, SettingsError
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings

SHORT = {"dim": 8, "epochs": 1, "augment": False}
MODES = ("batch-all", "batch-hard", "random")


@pytest.fixture(autouse=True)
def _without_slow_parts(monkeypatch):
    """Make up the cost of a network, which takes a process, and render no page."""
    monkeypatch.setattr(compare_module, "measure_cost", lambda *_, **__: NetworkCost(0.002, 2**28))
    monkeypatch.setattr(write, "draw_figures", lambda *_: {})
    monkeypatch.setattr(write, "render_page", lambda *_, **__: "page")


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> tuple[Path, Comparison]:
    """Return a report on three mining modes and one that does not exist, and its content."""
    folder = tmp_path_factory.mktemp("modes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare_module, "measure_cost", lambda *_, **__: NetworkCost(0.002, 2**28))
        comparison = compare_modes(folder, noisy_data(4), values=(*MODES, "none"))
    return folder, comparison


@pytest.fixture
def three_modes(compared) -> Path:
    """Return the folder of the report on three mining modes."""
    return compared[0]


def noisy_data(count: int = 3) -> Dataset:
    return make_dataset(tuple("abcd")[:count], train=5, noise=170)


def compare_modes(out: Path, data: Dataset | None = None, **options) -> Comparison:
    arguments = {"field": "mining", "values": MODES[:2], "shared": SHORT, "folds": 2} | options
    source = data or noisy_data()
    settings = ReadSettings(), ClassifySettings()
    return compare(source, *settings, out=out, context=QUIET, **arguments)


def read_table(folder: Path, name: str) -> pd.DataFrame:
    labels = dict.fromkeys(("label", "knn_label", "classifier_label"), str)
    return pd.read_csv(folder / f"{name}.csv", dtype=labels)


def write_photos(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    for index, name in enumerate("ab"):
        (folder / name).mkdir(parents=True)
        for number in range(6):
            pixels = generator.normal(100 + 40 * index, 60, (20, 20)).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    (folder / "a" / "broken.png").write_bytes(b"no image")
    return folder


@pytest.mark.parametrize("folds", [pytest.param(None, marks=pytest.mark.slow), 2])
def test_networks_of_two_sizes_are_tested_on_the_same_images(tmp_path, monkeypatch, folds):
    def choose(_, read, settings, __):
        if settings.network != "auto":
            return NetworkChoice(read, settings, "")
        return NetworkChoice(replace(read, size=12), replace(settings, network="conv"), "small")

    monkeypatch.setattr(compared_candidates, "choose_network", choose)
    source = str(write_photos(tmp_path / "photos"))
    read = ReadSettings(test=0.4)
    options = {"values": ("conv", "auto"), "shared": SHORT, "out": tmp_path, "context": QUIET}
    compare(source, read, ClassifySettings(), folds=folds, **options)
    compared, predictions = (read_table(tmp_path, name) for name in ("compared", "predictions"))
    assert compared["run"].tolist() == ["conv", "auto"]
    assert compared["size"].tolist() == [20, 12] and set(compared["network"]) == {"conv"}
    ids = predictions.groupby("run")["id"].agg(list)
    suffixes = [f"/fold-{fold}" for fold in range(1, folds + 1)] if folds else [""]
    assert set(ids.index) == {f"{name}{end}" for name in ("conv", "auto") for end in suffixes}
    for end in suffixes:
        assert ids[f"conv{end}"] == ids[f"auto{end}"]
    if folds:
        assert len({name for names in ids for name in names}) == 12
    tests = read_table(tmp_path, "comparisons")
    between = tests[tests["run_a"] != tests["run_b"]]
    assert set(between["metric_a"]) >= {"classification_accuracy", "knn_accuracy", "map_at_r"}


@pytest.mark.slow
def test_folds_are_those_of_a_single_run(tmp_path):
    data = noisy_data()
    compare_modes(tmp_path / "compared", data, folds=3)
    settings = EmbedSettings(network="conv", mining=MODES[0], **SHORT)
    arguments = data.read, settings, ClassifySettings()
    run_folds(data, *arguments, folds=3, out=tmp_path / "single", context=QUIET)
    single = read_table(tmp_path / "single", "predictions")
    compared = read_table(tmp_path / "compared", "predictions")
    compared = compared[compared["run"].str.startswith("batch-all/")].reset_index(drop=True)
    compared["run"] = compared["run"].str.removeprefix("batch-all/")
    pd.testing.assert_frame_equal(compared, single)


def test_tests_between_runs_equal_counting_the_predictions(three_modes):
    predictions = read_table(three_modes, "predictions")
    predictions["mode"] = predictions["run"].str.split("/").str[0]
    correct = predictions["classifier_label"] == predictions["label"]
    correct = pd.crosstab(predictions["id"], predictions["mode"], correct, aggfunc="first")
    tests = read_table(three_modes, "comparisons")
    tests = tests[tests["metric_a"] == "classification_accuracy"]
    assert tests["p_holm"].isna().eq(tests["run_a"] == tests["run_b"]).all()
    between = tests[tests["run_a"] != tests["run_b"]]
    assert len(between) == 3
    assert between["difference"].abs().max() > 0
    for _, row in between.iterrows():
        a, b = correct[row["run_a"]], correct[row["run_b"]]
        only_a, only_b = (a & ~b).sum(), (~a & b).sum()
        z = (only_a - only_b) / math.sqrt(max(1, only_a + only_b))
        assert row["difference"] == pytest.approx(a.mean() - b.mean(), abs=1e-6)
        assert row["p_value"] == pytest.approx(2 * norm.sf(abs(z)), rel=1e-4)
    # Holm's definition, term by term.
    ordered = sorted(between["p_value"])
    expected = [
        min(1, max((3 - rank) * value for rank, value in enumerate(ordered) if value <= p))
        for p in between["p_value"]
    ]
    assert between["p_holm"].tolist() == pytest.approx(expected, rel=1e-4)


def test_accuracy_has_rows_of_each_run_its_folds_and_its_deviation(three_modes):
    accuracy = read_table(three_modes, "accuracy")
    endings = ("/fold-1", "/fold-2", "", "/std")
    assert set(accuracy["run"]) == {f"{mode}{end}" for mode in MODES for end in endings}
    compared = read_table(three_modes, "compared").set_index("run")
    for mode in MODES:
        rows = accuracy[(accuracy["run"] == mode) & (accuracy["split"] == "test")]
        scores = rows.set_index("metric")
        for metric in ("classification_accuracy", "knn_accuracy", "map_at_r"):
            assert compared[metric][mode] == scores["value"][metric]
            assert compared[f"{metric}_low"][mode] == scores["ci_low"][metric]
        assert compared["seconds_per_image"][mode] == 0.002
        assert compared["memory_bytes"][mode] == 2**28
        assert compared["training_seconds"][mode] > 0


def test_networks_that_fail_are_reported_and_the_others_compared(tmp_path, capsys, monkeypatch):
    run_fold = compare_module.run_fold

    def fail_for_deep(name, *arguments, **options):
        if name == "conv-deep":
            raise MemoryError
        return run_fold(name, *arguments, **options)

    monkeypatch.setattr(compare_module, "run_fold", fail_for_deep)
    names = ("nonsense", "conv", "torchvision:nonsense", "efficientnet-lite0", "conv-deep")
    comparison = compare(
        noisy_data(),
        ReadSettings(),
        ClassifySettings(),
        values=names,
        shared={**SHORT, "weights": "nowhere.pth"},
        out=tmp_path,
        figures=tmp_path / "figures",
        context=replace(QUIET, quiet=False),
    )
    assert [entry.name for entry in comparison.finished] == ["conv"]
    errors = {entry.name: entry.error for entry in comparison.failed}
    assert "--network nonsense" in errors["nonsense"]
    assert "torchvision:nonsense" in errors["torchvision:nonsense"]
    assert "nowhere.pth: no such file" in errors["efficientnet-lite0"]
    assert "out of memory" in errors["conv-deep"]
    table = read_table(tmp_path, "compared").set_index("run")
    shown = capsys.readouterr().err
    for name, error in errors.items():
        assert table["error"][name].lstrip("'") == error
        assert name in shown
    assert pd.isna(table["error"]["conv"])
    assert (tmp_path / "figures" / "compared.svg").exists()
    assert table["weights"]["conv"] == "none" and table["classification_accuracy"]["conv"] > 0


@pytest.mark.parametrize(("values", "left"), [(("mad", "bad"), "none"), (("conv", "bad"), "conv")])
def test_error_before_training_if_fewer_than_two_are_left(tmp_path, monkeypatch, values, left):
    monkeypatch.setattr(compare_module, "_train_all", None)
    with pytest.raises(PipelineError, match=f"{left}.*can be trained: .*bad: --network bad"):
        compare_modes(tmp_path / "out", field="network", values=values)
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_not_finite_is_a_failure(tmp_path, monkeypatch):
    def diverge(*_, **__):
        raise SettingsError("lr", 1, "the loss is nan at step 3; use a lower learning rate")

    monkeypatch.setattr("pipeline.commands.folds.embed", diverge)
    with pytest.raises(PipelineError, match="batch-hard: --lr 1: the loss is nan"):
        compare_modes(tmp_path)


@pytest.mark.parametrize("finished", [0, 1])
def test_interrupt_keeps_the_report_on_the_finished_ones(tmp_path, monkeypatch, finished):
    cross_validate, calls = compare_module.cross_validate, Counter()

    def interrupt(*arguments, **options):
        calls["runs"] += 1
        if calls["runs"] > finished:
            raise KeyboardInterrupt
        return cross_validate(*arguments, **options)

    monkeypatch.setattr(compare_module, "cross_validate", interrupt)
    with pytest.raises(KeyboardInterrupt, match="1 of 3" if finished else "nothing"):
        compare_modes(tmp_path, values=MODES)
    assert (tmp_path / "report.html").exists() == bool(finished)
    if finished:
        table = read_table(tmp_path, "compared").set_index("run")
        assert table["error"].notna().tolist() == [False, True, True]
        assert "interrupted" in table["error"]["random"]


def test_a_comparison_is_replaced_only_with_force(compared, tmp_path):
    folder, comparison = tmp_path / "copy", compared[1]
    shutil.copytree(compared[0], folder)
    data = noisy_data(2)
    settings = data.read, EmbedSettings(network="conv", **SHORT), ClassifySettings()
    with pytest.raises(PipelineError, match="--force"):
        compare_modes(folder)
    with pytest.raises(PipelineError, match="--force"):
        run_folds(data, *settings, folds=2, out=folder, context=QUIET)
    write.write_report(folder, comparison.runs[:1])
    assert not (folder / "compared.csv").exists()  # nothing is left of the comparison


def test_page_shows_the_comparison(three_modes):
    page = (three_modes / "report.html").read_text(encoding="utf-8")
    heading = page.index("<h2>Comparison of mining modes")
    assert page.index("distinguishable") < heading
    assert "in the same 2 folds" in page and "Holm" in page
    assert re.search("<td>none</td><td[^>]*>not evaluated: --mining none", page)
    for mode in MODES:
        assert page.count(f"<td>{mode}</td>") >= 1 and f"{mode} in detail" in page


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"values": ("batch-all",)}, "mining"),
        ({"values": ("batch-all", "batch-all")}, "mining"),
        ({"field": "margin"}, "field"),
        ({"shared": {"dims": 8}}, "dims"),
        ({"shared": {"dim": 0}}, "dim"),
        ({"shared": {"mining": "random"}}, "mining"),
        ({"shared": {"weights": "default"}}, "weights"),
        ({"folds": 1}, "folds"),
        ({"folds": 2, "repeats": 0}, "repeats"),
        ({"field": "network", "values": ("conv", "auto")}, "networks"),
    ],
)
def test_wrong_settings_are_errors_before_any_training(tmp_path, monkeypatch, options, field):
    monkeypatch.setattr(compare_module, "_train_all", None)
    with pytest.raises(SettingsError) as raised:
        compare_modes(tmp_path, **options)
    assert raised.value.field == field


def test_images_without_a_test_split_need_folds(tmp_path):
    options = {"field": "mining", "values": MODES, "out": tmp_path / "r", "context": QUIET}
    with pytest.raises(DataError, match="--folds"):
        compare("digits", ReadSettings(test=0), ClassifySettings(), **options)


def test_errors_of_the_images_are_not_repeated_for_each_network(tmp_path):
    arguments = ReadSettings(), ClassifySettings()
    with pytest.raises(DataError, match="nowhere: no such folder"):
        compare(
            "nowhere", *arguments, values=("conv", "conv-deep"), out=tmp_path / "r", context=QUIET
        )
