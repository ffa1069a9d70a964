"""The options of `pipeline compare`."""

from types import SimpleNamespace

import pytest

from pipeline.commands import compare as compare_module
from pipeline.report import comparison_text
from stages.settings import ClassifySettings


@pytest.fixture
def calls(monkeypatch):
    """Return the list of the calls of `compare`, which does nothing."""
    calls = []

    def record(source, read, classify_settings, **options):
        calls.append({"source": source, "read": read, "classify": classify_settings, **options})
        return SimpleNamespace()

    monkeypatch.setattr(compare_module, "compare", record)
    monkeypatch.setattr(comparison_text, "comparison_text", lambda *_: "the table\nthe verdict")
    return calls


def test_options_reach_the_comparison(run_command, calls):
    status, out, _ = run_command(
        *("compare", "photos", "--networks", "conv, conv-deep", "--mining", "semi-hard"),
        *("--folds", 5, "--repeats", 2, "--dim", 32, "--size", 48, "--seed", 3, "--force"),
    )
    assert status == 0 and out.endswith("the verdict\n")
    (call,) = calls
    assert call["source"] == "photos" and call["read"].size == 48
    assert (call["field"], call["values"]) == ("network", ("conv", "conv-deep"))
    assert call["shared"]["mining"] == "semi-hard" and call["shared"]["loss"] == "triplet"
    assert call["shared"]["dim"] == 32 and "network" not in call["shared"]
    assert (call["folds"], call["repeats"], call["force"]) == (5, 2, True)
    assert call["classify"] == ClassifySettings(seed=3)


@pytest.mark.parametrize(
    ("option", "names", "field"),
    [("--losses", "triplet,pml:SupConLoss", "loss"), ("--mining", "random,batch-all", "mining")],
)
def test_losses_and_mining_modes_are_compared_with_one_network(
    run_command, calls, option, names, field
):
    status, _, _ = run_command("compare", option, names, "--networks", "conv")
    (call,) = calls
    assert status == 0 and call["field"] == field and call["values"] == tuple(names.split(","))
    assert call["shared"]["network"] == "conv" and field not in call["shared"]
    assert call["folds"] is None and call["repeats"] == 1


def test_config_file_sets_networks_and_the_classifier(run_command, calls, tmp_path):
    (tmp_path / "c.toml").write_text(
        '[embed]\nepochs = 7\n[classify]\ndropout = 0.1\n[compare]\nnetworks = "conv,conv-deep"\n'
    )
    status, _, errors = run_command("--config", "c.toml", "compare")
    assert status == 0, errors
    (call,) = calls
    assert call["values"] == ("conv", "conv-deep") and call["shared"]["epochs"] == 7
    assert call["classify"].dropout == 0.1


def test_interrupt_ends_with_status_130(run_command, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt("interrupted; reports has the report on 1 of 2 networks")

    monkeypatch.setattr(compare_module, "compare", interrupt)
    status, _, errors = run_command("compare", "--networks", "conv,conv-deep")
    assert status == 130 and "1 of 2" in errors
