"""The kept epoch is the latest one that is not clearly worse than the best."""

import pytest

from stages.embedding.best_epoch import epoch_score, is_kept, out_of_patience
from stages.records import EpochLog
from stages.settings import EmbedSettings


def make_log(epoch, knn, **scores):
    return EpochLog(epoch, 0.1, 0.2, 1.3, val_knn=knn, val_triplet=0.5, **scores)


@pytest.mark.parametrize(
    ("score", "highest", "count", "expected"),
    [
        (0.9, 0.9, 400, True),
        (0.886, 0.9, 400, True),  # one standard error is 0.015
        (0.884, 0.9, 400, False),
        (0.99, 1.0, 100, True),  # one image
        (0.98, 1.0, 100, False),
        (0.0, 0.0, 0, True),  # no validation: the last epoch
    ],
)
def test_epoch_within_one_standard_error_is_kept(score, highest, count, expected):
    assert is_kept(score, highest, count) is expected


def test_held_out_classes_decide_if_there_are_any():
    assert epoch_score(make_log(1, 0.8)) == 0.8
    assert epoch_score(make_log(1, 0.8, val_recall=0.3)) == 0.3
    assert epoch_score(make_log(1, None)) == 0.0


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.5, 0.9, 0.8], False),
        ([0.9, 0.8, 0.8], True),
        ([0.9, 0.8, 0.9], False),  # an equal score counts as better
        ([0.9, 0.8, None], False),  # the last epoch was not validated
    ],
)
def test_patience_counts_epochs_without_a_better_score(scores, expected):
    history = tuple(make_log(epoch, score) for epoch, score in enumerate(scores, 1))
    assert out_of_patience(EmbedSettings(patience=2), history) is expected
    assert not out_of_patience(EmbedSettings(), history)
