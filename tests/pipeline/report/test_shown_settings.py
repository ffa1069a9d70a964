"""The settings on the page: those that apply, and those that runs share."""

import dataclasses

import pytest

from pipeline.report.comparison import ComparedRun, Comparison, compared_table
from pipeline.report.shown_settings import (
    SettingRow,
    applicable_settings,
    separate_shared_rows,
    setting_rows,
)
from stages.settings import EmbedSettings

OF_LOSSES = ("loss", "loss_options", "mining", "mining_options", "margin", "distance")


@pytest.mark.parametrize(
    ("changes", "applicable"),
    [
        ({}, {"loss", "mining", "margin", "distance"}),
        ({"loss": "pml:ArcFaceLoss"}, {"loss", "loss_options"}),
        (
            {"loss": "pml:ArcFaceLoss", "mining": "pml:MultiSimilarityMiner"},
            {"loss", "loss_options", "mining", "mining_options"},
        ),
    ],
)
def test_only_settings_that_apply_to_the_loss_remain(changes, applicable):
    settings = vars(EmbedSettings(**changes))
    remaining = applicable_settings(settings)
    assert {name for name in OF_LOSSES if name in remaining} == applicable
    assert remaining == {name: settings[name] for name in remaining}
    assert settings.keys() - remaining.keys() == set(OF_LOSSES) - applicable


def test_settings_of_old_checkpoints_have_no_loss():
    settings = vars(EmbedSettings()).copy()
    for name in ("loss", "loss_options", "mining_options"):
        del settings[name]
    assert applicable_settings(settings) == settings


def test_mining_is_empty_in_the_table_of_a_comparison_if_it_does_not_apply():
    losses = ("triplet", {}), ("pml:SupConLoss", {}), ("pml:TripletMarginLoss", {"mining": "pml:X"})
    entries = [
        ComparedRun(loss, EmbedSettings(loss=loss, **changes), 8, error="stopped")
        for loss, changes in losses
    ]
    table = compared_table(Comparison("loss", (*entries, ComparedRun("x", None, None))))
    assert table["mining"].tolist() == ["semi-hard", None, "pml:X", None]
    assert table["loss"].tolist() == [*(loss for loss, _ in losses), None]


def rows_of(run, **settings) -> dict[str, tuple[str, ...]]:
    """Return the rows of a run with changed settings of stage one."""
    embedding = run.embedding | {"settings": run.embedding["settings"] | settings}
    return dict(setting_rows(dataclasses.replace(run, embedding=embedding)))


def test_values_are_shown_in_words(good_report):
    (run,) = good_report.runs
    texts = rows_of(run, margin=None, patience=None, epochs=None)["embedding"]
    assert {"margin soft", "patience none", "epochs automatic"} <= set(texts)
    assert not [text for text in texts if "options" in text]
    texts = rows_of(run, loss="pml:ArcFaceLoss", loss_options=None)["embedding"]
    assert "loss options the library's" in texts and "loss pml:ArcFaceLoss" in texts
    assert not [text for text in texts if text.startswith(("margin", "distance", "mining"))]
    texts = rows_of(run, loss="pml:ArcFaceLoss", loss_options={"margin": 9})["embedding"]
    assert 'loss options {"margin": 9}' in texts


def test_all_rows_of_a_run(good_report):
    (run,) = good_report.runs
    rows = dict(setting_rows(run))
    assert rows["images"] == (
        f"{len(run.data.train)} training, 8 validation, 60 test images; 0 skipped",
    )
    assert rows["duplicates"][0].startswith("0 test images also occur in the training")
    assert rows["split fingerprint"] == (run.embedding["fingerprint"],)
    assert rows["calibration"] == (f"temperature {run.classifier['temperature']:.3f}",)
    assert rows["chosen on validation"][0].startswith(f"epoch {run.embedding['epoch']}, k ")
    fold = dataclasses.replace(run, run="net/fold-1")
    pooled = dataclasses.replace(run, run="net", folds=(fold, fold))
    rows = dict(setting_rows(pooled))
    assert rows["images"][0].startswith("fold-1 of 2 folds: ") and "embedding digest" not in rows


def test_values_that_all_runs_share_are_separated():
    first = [SettingRow("embedding", ("network a", "dim 8")), SettingRow("precision", ("float32",))]
    second = [SettingRow("embedding", ("network b", "dim 8")), SettingRow("note", ("float32",))]
    shared, own = separate_shared_rows([first, second])
    assert shared == [SettingRow("embedding", ("dim 8",))]
    assert own[0] == [SettingRow("embedding", ("network a",)), first[1]]
    assert own[1] == [SettingRow("embedding", ("network b",)), second[1]]
    assert separate_shared_rows([first]) == (first, [[]])
