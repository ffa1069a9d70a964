"""A report that several tests read."""

from pathlib import Path
from typing import NamedTuple

import pytest
from factories import QUIET, make_dataset, train_both

from pipeline.commands.report import report
from pipeline.data.dataset import Dataset
from pipeline.report.evaluated_run import EvaluatedRun


class WrittenReport(NamedTuple):
    """A report on disk: CSV files and page in `out`, pictures in `figures`."""

    folder: Path
    data: Dataset
    runs: tuple[EvaluatedRun, ...]


@pytest.fixture(scope="session")
def good_report(tmp_path_factory) -> WrittenReport:
    """The report of a run that trained well, without duplicates."""
    folder = tmp_path_factory.mktemp("good")
    data = make_dataset(("cat", "dog", "newt", "owl"), train=20, test=15, noise=90)
    embedding, classifier = train_both(data, folder)
    runs = report(
        embedding,
        classifier,
        out=folder / "out",
        context=QUIET,
        source=data,
        figures=folder / "figures",
    )
    return WrittenReport(folder, data, runs)
