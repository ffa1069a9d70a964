"""Two runs at once with the same outputs never lose or mix results."""

import multiprocessing
import os
import sys
from pathlib import Path

import pandas as pd
import pytest

from pipeline.checkpoint import load_classifier, load_embedding
from pipeline.cli import main

ROUNDS = 10 if os.environ.get("HOSTILE") == "full" else 2
OPTIONS = ("--epochs", "1", "--dim", "8", "--val", "0.05", "--test", "0.1", "--force")


def run_in(folder: Path, seed: int) -> None:
    """Run all stages with a seed; the messages go to a file per seed."""
    os.chdir(folder)
    sys.stderr = open(f"{seed}.err", "w")  # noqa: SIM115  # until the end of the process
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    main(["run", *OPTIONS, "--seed", str(seed)])


@pytest.mark.slow
def test_one_of_two_runs_wins_and_its_results_are_complete(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision", "pandas", "sklearn.datasets", "bokeh"])
    refused = 0
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        processes = [context.Process(target=run_in, args=(folder, seed)) for seed in (1, 2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        statuses = [process.exitcode for process in processes]
        assert 0 in statuses and set(statuses) <= {0, 1}
        for seed, status in zip((1, 2), statuses, strict=True):
            if status == 1:
                refused += 1
                assert "another run is writing" in (folder / f"{seed}.err").read_text()
        embedding = load_embedding(folder / "checkpoints" / "embedding.safetensors")
        classifier = load_classifier(folder / "checkpoints" / "classifier.safetensors")
        assert classifier.embedding_digest == embedding.digest
        assert embedding.record["settings"]["seed"] == classifier.record["settings"]["seed"]
        assert pd.read_csv(folder / "reports" / "accuracy.csv")["run"].unique() == ["embedding"]
        assert not list(folder.rglob("*.lock")) + list(folder.rglob("*.partial"))
    assert refused > 0
