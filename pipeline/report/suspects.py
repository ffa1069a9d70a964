"""List the suspect labels of evaluated runs."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline.escape import escape_formula
from pipeline.numbers import format_share
from pipeline.report.evaluated_run import EvaluatedRun
from stages.evaluation.suspects import find_suspects, join_evidence
from stages.records import Split

SUSPECT_COLUMNS = ["run", "id", "label", "suggested_label", "self_confidence", "split"]


class Suspect(NamedTuple):
    """An image with a doubtful label. In sorted order, the most doubtful label comes first.

    Attributes:
        score: Rank of the label, the lower the more doubtful; see
            :func:`stages.evaluation.suspects.find_suspects`.
        id: Id of the image.
        split: ``test`` or ``val``.
        row: Position of the image in the split.
        label: Given class.
        suggested_label: Suggested class.
        self_confidence: Probability of the given class.
    """

    score: float
    id: str
    split: str
    row: int
    label: str
    suggested_label: str
    self_confidence: float


def checked_splits(run: EvaluatedRun) -> dict[str, Split]:
    """Return the splits whose labels are checked: images that no model was trained on.

    Folds test every image.
    """
    splits = {"test": run.images}
    if run.data.validation and "val" in run.evaluation.evidence:
        splits["val"] = run.data.validation
    return splits


def list_suspects(run: EvaluatedRun) -> list[Suspect]:
    """Return the suspects of a run, the most doubtful first and equal ones sorted by id."""
    splits = checked_splits(run)
    evidence = [run.evaluation.evidence[name] for name in splits]
    suspects = []
    found = find_suspects(
        join_evidence(evidence),
        # With repeats, an image is in the split several times, with the same row of the store.
        np.concatenate([split.rows.numpy() for split in splits.values()]),
    )
    positions = [(name, row) for name, split in splits.items() for row in range(len(split))]
    for index, suggested, self_confidence, score in zip(*found, strict=True):
        name, row = positions[index]
        split = splits[name]
        suspect = Suspect(
            score=float(score),
            id=split.ids[row],
            split=name,
            row=row,
            label=split.classes[int(split.labels[row])],
            suggested_label=split.classes[suggested],
            self_confidence=float(self_confidence),
        )
        suspects.append(suspect)
    return sorted(suspects)


def suspect_table(runs: Sequence[EvaluatedRun]) -> pd.DataFrame:
    """Return `suspects.csv`: one row per run and suspect, the most doubtful first.

    Args:
        runs: Evaluated runs.
    """
    suspects = []
    for number, run in enumerate(runs):
        suspects += [(suspect, number) for suspect in list_suspects(run)]
    rows = [
        [
            *(escape_formula(runs[number].run), escape_formula(suspect.id)),
            *(escape_formula(suspect.label), escape_formula(suspect.suggested_label)),
            *(format_share(suspect.self_confidence, 6), suspect.split),
        ]
        for suspect, number in sorted(suspects)
    ]
    return pd.DataFrame(rows, columns=SUSPECT_COLUMNS, dtype=object)
