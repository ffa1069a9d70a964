"""The commands as a person types them: the job end to end, reruns, refusals, exit status."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pipeline.checkpoint import load_classifier, load_embedding, read_header
from pipeline.cli import main

ROOT = Path(__file__).parents[3]
METRICS = {
    "knn_accuracy",
    "triplet_accuracy",
    "classification_accuracy",
    "precision_at_1",
    "mean_average_precision",
    "majority_accuracy",
    "pixel_knn_accuracy",
    "untrained_knn_accuracy",
}
QUICK = ("--epochs", "8")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command in an empty folder; gives its exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def trained(run, digit_folder):
    """The three stages on a folder of 300 digits."""
    for command in (("embed", "--data", digit_folder, *QUICK), ("classify",), ("report",)):
        status, _, errors = run(*command)
        assert status == 0, errors
    return digit_folder


def accuracy(folder: str = "reports") -> pd.DataFrame:
    table = pd.read_csv(Path(folder) / "accuracy.csv")
    return table[table["split"] == "test"].set_index("metric")


def test_the_three_stages_and_their_files(run, trained):
    table = accuracy()
    assert set(table.index) >= METRICS and list(table.columns) == [
        "run",
        "split",
        "value",
        "ci_low",
        "ci_high",
        "count",
        "definition",
    ]
    known = table[table["ci_low"].notna()]
    assert set(known.index) >= METRICS and table["value"].between(0, 1).all()
    assert (known["ci_low"] <= known["value"]).all() and (known["value"] <= known["ci_high"]).all()
    assert (table["run"] == "embedding").all() and (table["split"] == "test").all()
    assert table["value"]["knn_accuracy"] > 0.8 and table["value"]["triplet_accuracy"] > 0.9
    assert (
        table["value"]["classification_accuracy"] > 0.8 > 0.3 > table["value"]["majority_accuracy"]
    )

    predictions = pd.read_csv("reports/predictions.csv", dtype=str)
    assert len(predictions) == table["count"]["knn_accuracy"]
    recounted = (predictions["label"] == predictions["classifier_label"]).mean()
    assert recounted == pytest.approx(table["value"]["classification_accuracy"], abs=1e-6)
    assert (predictions["label"] == predictions["knn_label"]).mean() == pytest.approx(
        table["value"]["knn_accuracy"], abs=1e-6
    )
    for name in [*predictions["id"], *predictions["nearest_id"]]:
        assert (trained / name).is_file()  # ids are paths below the source's root
    assert not set(predictions["id"]) & set(predictions["nearest_id"])
    assert all(Path(row["id"]).parent.name == row["label"] for _, row in predictions.iterrows())

    page = Path("reports/report.html").read_text(encoding="utf-8")
    assert not re.search(
        r"""<(script|img|link|iframe)[^>]*(src|href)\s*=\s*["'](?!data:)""", page
    )  # one file, no network
    history = pd.read_csv("checkpoints/embedding.history.csv")
    assert list(history["epoch"]) == list(range(1, 9)) and {
        "loss",
        "active_share",
        "mean_distance",
        "val_knn",
    } <= set(history.columns)


def test_each_stage_is_rerun_from_the_files_of_the_one_before(run, trained):
    embedding = Path("checkpoints/embedding.safetensors").read_bytes()
    first, digest = accuracy(), read_header(Path("checkpoints/classifier.safetensors")).digest
    assert run("classify")[0] == 0  # the same settings again: the same file
    assert read_header(Path("checkpoints/classifier.safetensors")).digest == digest
    Path("checkpoints/classifier.safetensors").unlink()
    shutil.rmtree("reports")
    assert run("classify")[0] == 0
    assert run("report")[0] == 0
    pd.testing.assert_frame_equal(accuracy(), first)
    assert Path("checkpoints/embedding.safetensors").read_bytes() == embedding


def test_vectors_that_can_not_be_kept_are_no_obstacle(run, trained):
    Path("checkpoints/embedding.vectors").unlink()
    Path("checkpoints/embedding.vectors").mkdir()  # no file can take its place
    status, _, errors = run("classify")
    assert status == 0 and "each run of stage two embeds again" in errors


def test_the_same_seed_gives_the_same_digest(run, digit_folder):
    digests = set()
    for out in ("a.safetensors", "b.safetensors"):
        assert run("embed", "--data", digit_folder, "--epochs", 2, "--out", out)[0] == 0
        digests.add(read_header(Path(out)).digest)
    assert len(digests) == 1


def test_the_frozen_embedder_in_the_classifier_is_the_embedding(run, trained):
    embedded = load_embedding(Path("checkpoints/embedding.safetensors"))
    classified = load_classifier(Path("checkpoints/classifier.safetensors"))
    ours, theirs = embedded.network.state_dict(), classified.network.state_dict()
    assert ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


def test_a_moved_folder_is_still_the_same_data(run, trained, tmp_path):
    moved = trained.rename(tmp_path / "elsewhere")
    status, _, errors = run("report")
    assert status == 1 and "photos" in errors
    assert run("report", "--data", moved)[0] == 0
    image = next(moved.glob("0/*.png"))
    image.rename(image.with_name("renamed.png"))
    status, _, errors = run("report", "--data", moved)
    assert status == 1 and "not the images that the checkpoint was trained on" in errors


def test_another_runs_checkpoint_is_not_replaced_unasked(run, trained):
    before = Path("checkpoints/embedding.safetensors").read_bytes()
    status, _, errors = run("embed", "--data", trained, "--epochs", 2)
    assert status == 1 and "epochs 8, not 2" in errors and "--force" in errors
    assert Path("checkpoints/embedding.safetensors").read_bytes() == before
    status, _, errors = run("classify", "--dropout", 0.2)
    assert status == 1 and "dropout 0.5, not 0.2" in errors
    assert run("embed", "--data", trained, "--epochs", 2, "--force")[0] == 0
    # Now the classifier belongs to an embedding that is gone.
    status, _, errors = run("report")
    assert status == 1 and "pipeline classify --embedding" in errors
    status, _, errors = run("classify")
    assert status == 1 and "epochs 8, not 2" in errors
    assert run("classify", "--force")[0] == 0 and run("report")[0] == 0


def test_run_is_the_three_in_a_row(run, digit_folder, tmp_path):
    config = tmp_path / "settings.toml"
    config.write_text(
        '[embed]\nepochs = 4\ndim = 32\nlr = 0.002\n[classify]\nepochs = 7\n[run]\ndim = 24\n[report]\nout = "elsewhere"\n'
    )
    status, out, _ = run("--config", config, "run", "--data", digit_folder, "--margin", 0.3)
    assert status == 0 and "kNN accuracy" in out and "reports/report.html" in out
    record = read_header(Path("checkpoints/embedding.safetensors")).record
    assert [record["settings"][name] for name in ("epochs", "dim", "lr", "margin")] == [
        4,
        24,
        0.002,
        0.3,
    ]
    record = read_header(Path("checkpoints/classifier.safetensors")).record
    assert record["settings"]["epochs"] == 7
    assert run("--config", config, "report")[0] == 0 and Path("elsewhere/accuracy.csv").is_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[embed\n", "can't be read"),
        ("[train]\nlr = 1\n", "no command train"),
        ("[embed]\nmomentum = 1\n", "[embed] has momentum"),
        ("epochs = 1\n", "no command epochs"),
    ],
)
def test_a_config_that_means_nothing_is_refused(run, tmp_path, text, message):
    (tmp_path / "c.toml").write_text(text)
    status, _, errors = run("--config", "c.toml", "embed")
    assert status == 1 and message in errors
    assert run("--config", "missing.toml", "embed")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("embed", "--data", "nowhere"), 1, "nowhere: no such folder"),
        (("embed", "--data", "empty"), 1, "no image in it"),
        (("embed", "--data", "lone"), 1, "1 class to train on (only)"),
        (("embed", "--epochs", 0), 1, "--epochs 0: out of range"),
        (("embed", "--margin", 3), 1, "--margin 3.0: out of range"),
        (("embed", "--margin", "tender"), 2, "could not convert"),
        (("embed", "--mining", "hardest"), 2, "batch-hard"),
        (
            ("embed", "--classes-per-batch", 11),
            1,
            "--classes-per-batch 11: the training part has 10 classes",
        ),
        (("embed", "--dim", "many"), 2, "not a valid integer"),
        (("embed", "--nonsense"), 2, "No such option"),
        (("train",), 2, "No such command"),
        (
            ("classify",),
            1,
            "checkpoints/embedding.safetensors: no such file; `pipeline embed` makes one",
        ),
        (("classify", "--dropout", 1), 1, "--dropout 1.0: out of range"),
        (("report",), 1, "embedding.safetensors: no such file"),
        (("embed", "--device", "cuda"), 1, "--device cuda: not on this machine"),
        (("embed", "--threads", 0), 1, "--threads 0: out of range"),
    ],
)
def test_mistakes_get_one_message_and_a_status(
    run, tmp_path, monkeypatch, arguments, status, message
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "lone" / "only").mkdir(parents=True)
    for i in range(5):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / "lone" / "only" / f"{i}.png")
    found, _, errors = run(*arguments)
    assert found == status and message in errors and "Traceback" not in errors
    assert not list(tmp_path.glob("checkpoints/*"))


def test_mining_margin_and_distance_reach_the_loss(run, digit_folder):
    seen = set()
    for options in (
        (),
        ("--mining", "batch-hard"),
        ("--mining", "semi-hard"),
        ("--mining", "random"),
        ("--margin", "soft"),
        ("--distance", "squared"),
    ):
        assert (
            run("embed", "--data", digit_folder, "--epochs", 1, "--dim", 8, "--force", *options)[0]
            == 0
        )
        header = read_header(Path("checkpoints/embedding.safetensors"))
        seen.add(header.digest)
    assert len(seen) == 6
    assert header.record["settings"] | {"distance": "euclidean"} != header.record["settings"]
    assert (
        run(
            "embed",
            "--data",
            digit_folder,
            "--epochs",
            1,
            "--distance",
            "squared",
            "--margin",
            3,
            "--force",
        )[0]
        == 0
    )


def test_an_interrupt_exits_130(run, monkeypatch):
    monkeypatch.setattr(
        "pipeline.commands.embed.embed", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    assert run("embed")[0] == 130


def test_help_is_quick_because_it_imports_no_torch():
    code = "import sys, pipeline.cli; print(sorted({'torch', 'numpy', 'pandas', 'sklearn'} & set(sys.modules)))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
        ).stdout.strip()
        == "[]"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert all(command in done.stdout for command in ("embed", "classify", "report", "run"))


def test_every_command_has_help_and_shows_its_defaults(run):
    for command in ("embed", "classify", "report", "run"):
        status, out, _ = run(command, "--help")
        assert status == 0 and "pipeline " + command in out and "--quiet" in out
    assert "[default: 0.2]" in run("embed", "--help")[1]


def test_quiet_is_quiet(run, digit_folder):
    _, out, errors = run("embed", "--data", digit_folder, "--epochs", 1, "--quiet")
    assert errors == "" and len(out.splitlines()) == 1


def test_a_folder_that_brings_its_own_splits_and_colour(run, tmp_path):
    random = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 5)):
        for number, name in enumerate(("red thing", "grün", "<b>bold</b>")):
            folder = tmp_path / "own" / part / name.replace("/", "∕")
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 60, (20 + i % 3, 30, 3), dtype=np.uint8)  # mixed sizes
                pixels[..., number] += 150
                Image.fromarray(pixels).save(folder / f"{i}.JPG")
    (tmp_path / "own" / "train" / "red thing" / "broken.png").write_bytes(
        b"\x89PNG\r\n\x1a\n and no more"
    )
    (tmp_path / "own" / "train" / "red thing" / "empty.jpg").write_bytes(b"")
    status, _, errors = run("run", "--data", "own", "--size", 32, "--dim", 16)
    assert status == 0, errors
    assert (
        "2 of 53 images skipped" in errors
        and "train/red thing/broken.png: not an image" in errors
        and "empty file" in errors
    )
    record = read_header(Path("checkpoints/classifier.safetensors")).record
    assert (record["read"]["channels"], record["read"]["size"], record["counts"]["test"]) == (
        3,
        32,
        15,
    )
    assert json.loads(json.dumps(record))["skipped"][0]["path"].startswith("train/red thing/")
    table = accuracy()
    assert table["count"]["knn_accuracy"] == 15 and table["value"]["knn_accuracy"] == 1
    page = Path("reports/report.html").read_text(encoding="utf-8")
    assert "<b>bold" not in page and "&lt;b&gt;bold" in page


def test_each_stage_names_the_next(run, digit_folder):
    for share, follows in (
        ("0.2", "report"),
        ("0.001", "predict IMAGE... (there is no test image to report on)"),
    ):
        assert run("embed", "--data", digit_folder, "--epochs", "1", "--test", share, "--force")[
            1
        ].endswith("next: pipeline classify\n")
        assert run("classify", "--force")[1].endswith(f"next: pipeline {follows}\n")
