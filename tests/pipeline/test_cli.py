"""The command line: help, errors, exit status, and the last line of each command."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.cli import SPIN_COUNT, commands, main
from pipeline.error_messages import error_message
from stages.errors import DataError, SettingsError

ROOT = Path(__file__).parents[2]


def python(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    return result.stdout


def test_importing_the_command_line_imports_no_torch():
    heavy = "{'torch', 'numpy', 'pandas', 'sklearn'}"
    code = f"import sys, pipeline.cli; print(sorted({heavy} & set(sys.modules)))"
    assert python("-c", code).strip() == "[]"


@pytest.mark.parametrize("given", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_waiting_threads_give_up_their_core_unless_the_user_decides(monkeypatch, given):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main(["--version"])
    expected = given or {"GOMP_SPINCOUNT": SPIN_COUNT}
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    assert {name: os.environ[name] for name in names if name in os.environ} == expected


@pytest.mark.parametrize("arguments", [["--version"], ["data", "--quiet"]])
def test_garbage_is_collected_from_the_end_of_the_imports_on(monkeypatch, arguments):
    enabled = []

    def audit_data(*_: object, **__: object) -> None:
        enabled.append(gc.isenabled())
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.commands.data.audit_data", audit_data)
    with pytest.raises(SystemExit):
        main(arguments)
    assert enabled == [True] * (arguments[0] == "data")
    assert gc.isenabled()
    gc.unfreeze()


def test_module_lists_all_commands():
    out = python("-m", "pipeline", "--help")
    assert all(command in out for command in commands.commands)


def test_every_command_has_help_and_shows_its_defaults(run_command):
    for command in commands.commands:
        status, out, _ = run_command(command, "--help")
        assert status == 0 and f"pipeline {command}" in out and "--quiet" in out
    assert "[default: 0.2]" in run_command("embed", "--help")[1]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("embed", "--data", "nowhere"), 1, "nowhere: "),
        (("embed", "--data", "empty"), 1, "empty: "),
        (("embed", "--data", "lone"), 1, "lone: 1 class"),
        (("embed", "--epochs", 0), 1, "--epochs 0: "),
        (("embed", "--margin", 3), 1, "--margin 3.0: "),
        (("embed", "--margin", "tender"), 2, "--margin"),
        (("embed", "--mining", "hardest"), 2, "batch-hard"),
        (("embed", "--classes-per-batch", 11), 1, "--classes-per-batch 11: "),
        (("embed", "--dim", "many"), 2, "not a valid integer"),
        (("embed", "--nonsense"), 2, "No such option"),
        (("train",), 2, "No such command"),
        (("classify",), 1, "checkpoints/embedding.safetensors: no such file"),
        (("classify", "--dropout", 1), 1, "--dropout 1.0: "),
        (("classify", "--precision", "bf16"), 2, "--precision"),
        (("report",), 1, "embedding.safetensors: no such file"),
        (("embed", "--device", "cuda"), 1, "--device cuda: "),
        (("embed", "--threads", 0), 1, "--threads 0: "),
    ],
)
def test_user_error_is_one_message_and_a_status(
    run_command, tmp_path, monkeypatch, arguments, status, message
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "lone" / "only").mkdir(parents=True)
    for i in range(5):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / "lone" / "only" / f"{i}.png")
    result, _, errors = run_command(*arguments)
    assert result == status and message in errors and "Traceback" not in errors
    assert not list(tmp_path.glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("arguments", "other"),
    [
        (("--repeats", "2"), "--repeats"),
        (("--folds", "2", "--seeds", "0,1"), "--seeds"),
        (("--folds", "2", "--resume"), "--resume"),
        (("--folds", "2", "--classifier", "c"), "--classifier"),
    ],
)
def test_options_that_cannot_be_combined(run_command, arguments, other):
    status, _, errors = run_command("run", *arguments)
    assert status == 2 and "--folds" in errors and other in errors


def test_settings_field_is_spelled_as_an_option():
    error = SettingsError("images_per_class", 9, "too large")
    assert error_message(error) == "--images-per-class 9: too large"
    assert error_message(DataError("photos: no image")) == "photos: no image"


def test_bug_keeps_its_traceback(monkeypatch, run_command):
    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("pipeline.commands.embed.embed", fail)
    with pytest.raises(ZeroDivisionError):
        commands.main(["embed"], standalone_mode=False)


def test_interrupt_exits_with_130(run_command, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.commands.embed.embed", interrupt)
    assert run_command("embed")[0] == 130


def test_last_line_names_the_result_and_the_next_command(run_command, digit_folder):
    embed = ("embed", "--data", digit_folder, "--epochs", "1", "--force")
    _, out, _ = run_command(*embed)
    assert out.endswith("embedding.safetensors written; next: pipeline classify\n")
    _, out, _ = run_command("classify")
    assert out.endswith("classifier.safetensors written; next: pipeline report\n")
    _, out, _ = run_command("report")
    assert out.endswith("reports/report.html\nnext: pipeline predict IMAGE...\n")
    assert run_command(*embed, "--test", "0.001")[0] == 0
    _, out, _ = run_command("classify", "--force")
    assert "next: pipeline predict IMAGE... (" in out.splitlines()[-1]


def test_hints_carry_paths_that_differ_from_the_default(run_command, digit_folder):
    cache = ("--cache", "my cache")
    embed = ("embed", "--data", digit_folder, "--epochs", "1", "--out", "e.safetensors", *cache)
    _, out, _ = run_command(*embed)
    assert out.endswith("next: pipeline classify --embedding e.safetensors --cache 'my cache'\n")
    options = ("--embedding", "e.safetensors", "--out", "c.safetensors", "--data", digit_folder)
    _, out, _ = run_command("classify", *options)
    expected = "report --embedding e.safetensors --classifier c.safetensors"
    assert out.endswith(f"next: pipeline {expected} --data {digit_folder}\n")
    options = ("--embedding", "e.safetensors", "--classifier", "c.safetensors")
    _, out, _ = run_command("report", *options)
    assert out.endswith("next: pipeline predict IMAGE... --classifier c.safetensors\n")


def test_data_suggests_a_run_on_the_same_images(run_command, digit_folder):
    _, out, _ = run_command("data", digit_folder, "--val", "0.2")
    assert out.endswith(f"next: pipeline run --data {digit_folder} --val 0.2\n")
    assert run_command("data", digit_folder, "--json")[1].count("\n") == 1
