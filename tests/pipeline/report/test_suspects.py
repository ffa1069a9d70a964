"""The table of suspects: order, splits, ties, folds and escaping."""

from dataclasses import replace

import pytest
from suspect_runs import with_suspects

from pipeline.report.suspect_gallery import build_suspect_gallery
from pipeline.report.suspects import SUSPECT_COLUMNS, list_suspects, suspect_table


def test_the_table_lists_both_splits_by_doubt(good_report):
    run = with_suspects(good_report.runs[0], {"test": [0.4, 0.1, 0.6], "val": [0.25]})
    table = suspect_table([run])
    assert list(table.columns) == SUSPECT_COLUMNS
    ids, val_id = run.images.ids, run.data.validation.ids[0]
    assert table[["id", "split", "label", "suggested_label"]].to_numpy().tolist() == [
        [ids[1], "test", "cat", "dog"],
        [val_id, "val", "cat", "dog"],
        [ids[0], "test", "cat", "dog"],
    ]
    assert table["self_confidence"].astype(float).tolist() == pytest.approx([0.1, 0.25, 0.4])


def test_equal_doubt_is_sorted_by_id(good_report):
    run = with_suspects(good_report.runs[0], {"test": [0.25, 0.25, 0.25], "val": [0.25]})
    ids = [suspect.id for suspect in list_suspects(run)]
    assert len(ids) == 4
    assert ids == sorted(ids)


def test_runs_share_one_order(good_report):
    first = with_suspects(good_report.runs[0], {"test": [0.3, 0.1]})
    second = replace(with_suspects(good_report.runs[0], {"test": [0.2]}), run="=second")
    table = suspect_table([first, second])
    assert table["run"].tolist() == [first.run, "'=second", first.run]


def test_confirmed_labels_leave_an_empty_table(good_report):
    run = with_suspects(good_report.runs[0], {})
    assert suspect_table([run]).shape == (0, len(SUSPECT_COLUMNS))
    assert build_suspect_gallery(run)["images"] == []
