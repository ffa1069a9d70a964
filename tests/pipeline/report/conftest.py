"""Reports that several tests read."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import pytest
from factories import QUIET, make_dataset, train_both

from pipeline.commands.report import report
from pipeline.data.dataset import Dataset
from pipeline.report.comparison import ComparedRun, Comparison
from pipeline.report.evaluated_run import EvaluatedRun
from pipeline.report.write import write_report
from stages.settings import EmbedSettings


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


NETWORKS = ("conv", "timm:resnet10t", "efficientnet-lite1", "torchvision:mobilenet_v3_small")


@pytest.fixture(scope="session")
def self_comparison(good_report) -> Comparison:
    """A comparison of four networks with the same results, and of one that has failed."""
    run = good_report.runs[0]
    entries = []
    for number, name in enumerate(NETWORKS, 1):
        embedding = run.embedding | {"network_choice": f"{name}, for a test"}
        named = dataclasses.replace(run, run=name, embedding=embedding)
        settings = EmbedSettings(network=name)
        costs = {"seconds_per_image": 0.001 * number, "memory": 2**30, "training_seconds": 10}
        entries.append(ComparedRun(name, settings, 64, named, **costs))
    failed = ComparedRun("timm:nonsense", None, None, error="no such network")
    return Comparison("network", (*entries, failed))


@pytest.fixture(scope="session")
def comparison_page(self_comparison, tmp_path_factory) -> Path:
    """The page of this comparison."""
    folder = tmp_path_factory.mktemp("compared")
    write_report(folder, self_comparison.runs, comparison=self_comparison)
    return folder / "report.html"
