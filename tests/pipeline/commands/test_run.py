"""`pipeline run`: settings from options and file, seeds, and inputs that are loaded once."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from factories import QUIET, make_dataset
from torchvision import models

import pipeline.weights
from pipeline.commands.run import run
from pipeline.tensor_files import read_header
from stages.errors import CheckpointError
from stages.settings import ClassifySettings, EmbedSettings

EMBEDDING = Path("checkpoints/embedding.safetensors")
CLASSIFIER = Path("checkpoints/classifier.safetensors")
CONFIG = """
[embed]
epochs = 4
dim = 32
lr = 0.002
[classify]
max-iter = 70
[run]
dim = 24
[report]
out = "elsewhere"
"""


def stage_one(*names: str) -> list[object]:
    return [read_header(EMBEDDING).record["settings"][name] for name in names]


def test_run_takes_settings_of_both_stages_from_the_file(run_command, digit_folder, tmp_path):
    config = tmp_path / "settings.toml"
    config.write_text(CONFIG)
    options = ("--data", digit_folder, "--margin", 0.3)
    status, out, _ = run_command("--config", config, "run", *options)
    assert status == 0 and "kNN accuracy" in out and "reports/report.html" in out
    assert stage_one("epochs", "dim", "lr", "margin") == [4, 24, 0.002, 0.3]
    assert read_header(CLASSIFIER).record["settings"]["max_iter"] == 70
    assert run_command("--config", config, "report")[0] == 0
    assert Path("elsewhere/accuracy.csv").is_file()


def test_run_accepts_epochs_and_lr_and_a_flag_wins_over_the_file(
    run_command, digit_folder, tmp_path
):
    config = tmp_path / "settings.toml"
    config.write_text("[embed]\nepochs = 4\nlr = 0.002\n")
    options = ("--data", digit_folder, "--epochs", 2)
    assert run_command("--config", config, "run", *options)[0] == 0
    assert stage_one("epochs", "lr") == [2, 0.002]
    assert run_command("run", *options, "--lr", 0.004, "--force")[0] == 0
    assert stage_one("epochs", "lr") == [2, 0.004]


def run_two_seeds(folder: Path, settings: EmbedSettings):
    data = make_dataset(("a", "b"), size=32, channels=3)
    return run(
        data,
        data.read,
        settings,
        ClassifySettings(),
        embedding=folder / "e.safetensors",
        classifier=folder / "c.safetensors",
        out=folder / "reports",
        context=QUIET,
        seeds=(0, 1),
    )


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "weights.pth"
    torch.save(models.mobilenet_v3_small(weights=None).state_dict(), path)
    return path


def test_run_reads_a_file_of_weights_once(tmp_path, monkeypatch, weights):
    read_file = pipeline.weights._read_file
    reads = []

    def counting(path: Path):
        reads.append(path)
        return read_file(path)

    monkeypatch.setattr(pipeline.weights, "_read_file", counting)
    settings = EmbedSettings(
        network="torchvision:mobilenet_v3_small", weights=str(weights), epochs=1, dim=8
    )
    runs = run_two_seeds(tmp_path, settings)
    assert reads == [weights]
    # The untrained baseline, which needs the weights, is evaluated for each seed.
    assert [run.run for run in runs] == ["seed-0", "seed-1"]
    assert all(run.evaluation.score("untrained_knn_accuracy").count for run in runs)
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {
        "e-seed-0.safetensors",
        "e-seed-1.safetensors",
        "c-seed-0.safetensors",
        "c-seed-1.safetensors",
    }
    table = pd.read_csv(tmp_path / "reports" / "accuracy.csv")
    assert list(table["run"].unique()) == ["seed-0", "seed-1", "mean", "std"]


def test_all_checkpoints_are_checked_before_training(tmp_path):
    settings = EmbedSettings(epochs=1, dim=8)
    run_two_seeds(tmp_path, settings)
    for name in ("e", "c"):
        (tmp_path / f"{name}-seed-0.safetensors").unlink()
    with pytest.raises(CheckpointError, match="e-seed-1"):
        run_two_seeds(tmp_path, EmbedSettings(epochs=2, dim=8))
    assert not (tmp_path / "e-seed-0.safetensors").exists()


def write_folds_report(folder: Path) -> None:
    folder.mkdir()
    (folder / "accuracy.csv").write_text("run,metric\nfold-1,a\npooled,a\nstd,a\n")


REFUSED = {
    "embedding is a folder": ("--embedding", "folder"),
    "classifier is a folder": ("--classifier", "folder"),
    "below a file": ("--classifier", "file/c.safetensors"),
    "report is a file": ("--out", "file"),
    "figures are a file": ("--figures", "file"),
    "the same file twice": ("--embedding", "x.safetensors", "--classifier", "x.safetensors"),
    "the classifier is the state": ("--embedding", "x.safetensors", "--classifier", "x.state"),
    "report on folds": ("--out", "folds"),
    "page is a folder": ("--out", "page"),
    "figure is a folder": ("--figures", "drawn"),
    "long name": ("--out", "x" * 300),
    "the classifier is the cache": ("--embedding", "x.safetensors", "--classifier", "x.vectors"),
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(((), name) for name in REFUSED),
        (("--seeds", "0,1"), "below a file"),
        *((("--folds", "3"), name) for name in REFUSED if "--out" in REFUSED[name]),
    ],
)
def test_outputs_are_checked_before_images_are_read(run_command, tmp_path, monkeypatch, name, kind):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "page" / "report.html").mkdir(parents=True)
    (tmp_path / "drawn" / "map.svg").mkdir(parents=True)
    write_folds_report(tmp_path / "folds")
    monkeypatch.setattr("pipeline.commands.inputs.load_dataset", None)
    before = sorted(tmp_path.rglob("*"))
    status, _, errors = run_command("run", *kind, *REFUSED[name])
    assert status == 1 and Path(REFUSED[name][-1]).parts[0] in errors and "; " in errors
    assert sorted(tmp_path.rglob("*")) == before


def test_run_without_test_images_writes_no_report(run_command, digit_folder, tmp_path):
    options = ("--data", digit_folder, "--epochs", 1, "--dim", 8, "--test", 0)
    status, output, errors = run_command("run", *options)
    assert status == 0 and "pipeline predict" in output and "no report" in errors
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert {"embedding.safetensors", "classifier.safetensors"} < names
    assert not (tmp_path / "reports").exists()


def test_report_on_folds_is_replaced_with_force(run_command, digit_folder, tmp_path):
    write_folds_report(tmp_path / "reports")
    options = ("--data", digit_folder, "--epochs", 1, "--dim", 8)
    assert run_command("run", *options, "--force")[0] == 0
    assert run_command("run", *options)[0] == 0  # an ordinary report can be written again
    write_folds_report(tmp_path / "folds")
    status, _, errors = run_command("report", "--out", "folds")
    assert status == 1 and "folds: " in errors and "--force" in errors


def test_run_without_test_images_trains_both_stages_and_writes_no_report(run_command, digit_folder):
    options = ("--data", digit_folder, "--epochs", 1, "--dim", 8, "--test", 0, "--val", 0)
    status, out, err = run_command("run", *options)
    assert status == 0, err
    assert "no test images" in out and "no report" in out
    assert read_header(CLASSIFIER).record["counts"] == {"train": 300, "val": 0, "test": 0}
    assert not Path("reports/accuracy.csv").exists()
