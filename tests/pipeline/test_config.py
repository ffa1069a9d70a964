"""Option values from a TOML file."""

from pathlib import Path

import click
import pandas as pd
import pytest

from pipeline.cli import commands
from pipeline.config import (
    add_compare_defaults,
    add_run_defaults,
    configured_values,
    read_config,
)
from pipeline.tensor_files import read_header
from pipeline.training_state import load_state
from stages.errors import SettingsError


def read(folder: Path, text: str):
    path = folder / "settings.toml"
    path.write_text(text)
    return read_config(path, commands)


def test_keys_may_have_dashes_or_underscores(tmp_path):
    tables = read(tmp_path, "[embed]\nclasses-per-batch = 4\nimages_per_class = 3\n")
    assert tables == {"embed": {"classes_per_batch": 4, "images_per_class": 3}}


def test_repeatable_option_takes_a_string_or_a_list(tmp_path):
    for value in ('"a.safetensors"', '["a.safetensors"]'):
        tables = read(tmp_path, f"[report]\nembedding = {value}\n")
        assert tables == {"report": {"embedding": ["a.safetensors"]}}


def test_data_is_an_option_name(tmp_path):
    assert read(tmp_path, '[embed]\ndata = "photos"\n') == {"embed": {"source": "photos"}}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("[embed\n", "settings.toml"),
        ("[train]\nlr = 1\n", "train"),
        ("[embed]\nmomentum = 1\n", "momentum"),
        ("[classify]\nepochs = 1\n", "epochs"),
        ("[classify]\nprecision = 'bf16'\n", "precision"),
        ("epochs = 1\n", "epochs"),
    ],
)
def test_unusable_file_is_a_settings_error(tmp_path, text, name):
    with pytest.raises(SettingsError, match=name) as raised:
        read(tmp_path, text)
    assert raised.value.field == "config"


def test_loss_and_its_parameters_come_from_tables(tmp_path, run_command, digit_folder):
    pytest.importorskip("pytorch_metric_learning")
    (tmp_path / "settings.toml").write_text("""
        [embed]
        loss = "pml:CrossBatchMemory"
        mining = "pml:MultiSimilarityMiner"
        epochs = 2
        dim = 8
        [embed.loss-options]
        memory_size = 500
        loss = {name = "ContrastiveLoss", neg_margin = 0.7}
        [embed.mining-options]
        epsilon = 0.2
    """)
    arguments = ("--config", "settings.toml", "embed", "--data", str(digit_folder))
    status, _, errors = run_command(*arguments, "--out", "e.safetensors")
    assert status == 0, errors
    assert "active" not in errors and "loss" in errors
    header = read_header(Path("e.safetensors"))
    assert header.record["settings"]["loss_options"] == {
        "memory_size": 500,
        "loss": {"name": "ContrastiveLoss", "neg_margin": 0.7},
    }
    assert header.record["settings"]["mining_options"] == {"epsilon": 0.2}
    history = pd.read_csv("e.history.csv")
    assert history.active_share.isna().all() and (history.mean_distance > 0.05).all()
    state = load_state(Path("e.state"))[0]
    assert len(state.loss["loss.embedding_memory"]) == 500
    status, _, errors = run_command(*arguments, "--out", "e.safetensors", "--loss-options", "{}")
    assert status == 1 and "loss-options" in errors


def test_missing_file_ends_with_status_1(run_command):
    status, _, errors = run_command("--config", "missing.toml", "embed")
    assert status == 1 and "--config missing.toml" in errors


def test_embed_table_applies_to_run():
    tables = {"embed": {"epochs": 4, "dim": 32, "out": "e"}, "run": {"dim": 24}}
    tables = add_run_defaults(tables, commands.commands["run"])
    assert tables["run"] == {"epochs": 4, "dim": 24}  # --out of embed is a checkpoint
    assert tables["embed"] == {"epochs": 4, "dim": 32, "out": "e"}


def test_embed_and_run_tables_apply_to_compare():
    compare = commands.commands["compare"]
    tables = {
        "embed": {"epochs": 4, "dim": 32, "network": "conv", "mining": "random", "out": "e"},
        "run": {"dim": 24, "out": "r", "embedding": "e", "seeds": "0,1"},
        "compare": {"epochs": 5},
    }
    tables = add_compare_defaults(add_run_defaults(tables, commands.commands["run"]), compare)
    assert tables["compare"] == {
        "epochs": 5,
        "dim": 24,
        "networks": "conv",
        "mining": "random",
    }
    tables["compare"]["networks"] = "conv,conv-deep"
    assert add_compare_defaults(tables, compare)["compare"]["networks"] == "conv,conv-deep"


def test_values_with_commas_can_be_lists(tmp_path):
    text = '[compare]\nnetworks = ["auto", "conv"]\n[run]\nseeds = [0, 1]\n'
    tables = read(tmp_path, text)
    assert tables == {"compare": {"networks": "auto,conv"}, "run": {"seeds": "0,1"}}


def test_configured_values_are_converted():
    command = commands.commands["classify"]
    context = click.Context(command)
    tables = {"classify": {"dropout": "0.25", "embedding": "e.safetensors"}}
    values = configured_values(tables, command, context)
    assert values == {"dropout": 0.25, "embedding": Path("e.safetensors")}
    assert configured_values({}, command, context) == {}
    with pytest.raises(click.BadParameter):
        configured_values({"classify": {"dropout": "half"}}, command, context)


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("embed", "epochs = [1]"),
        ("embed", "epochs = 1.9"),
        ("embed", "epochs = true"),
        ("embed", 'epochs = "3"'),
        ("embed", "epochs = 2026-01-01"),
        ("embed", "epochs = {a = 1}"),
        ("embed", 'lr = "fast"'),
        ("embed", "lr = true"),
        ("embed", "margin = [0.1]"),
        ("embed", "augment = 1"),
        ("embed", "data = 3"),
        ("embed", "mining = 1"),
        ("embed", "dim = 8\ndim_ = 3"),
        ("embed", "classes-per-batch = 4\nclasses_per_batch = 5"),
        ("report", "embedding = [1]"),
        ("run", 'seeds = ["0", "1"]'),
        ("compare", "networks = [1]"),
        ("classify", "dropout = 0.1 0.2"),
    ],
)
def test_values_have_the_type_of_their_option(tmp_path, command, line):
    with pytest.raises(SettingsError) as raised:
        read(tmp_path, f"[{command}]\n{line}\n")
    assert raised.value.field == "config" and "settings.toml" in str(raised.value)


def test_whole_numbers_are_numbers_and_a_byte_order_mark_is_ignored(tmp_path):
    assert read(tmp_path, "\ufeff[embed]\nlr = 1\naugment = false\nmargin = 'soft'\n") == {
        "embed": {"lr": 1, "augment": False, "margin": "soft"}
    }


def test_a_count_of_classes_differs_from_a_share(tmp_path):
    for text, expected in (("3", 3), ("0.3", 0.3)):
        value = read(tmp_path, f"[data]\nunseen-classes = {text}\n")["data"]["unseen_classes"]
        assert value == expected and type(value) is type(expected)
    with pytest.raises(SettingsError, match="a number"):
        read(tmp_path, "[data]\nunseen-classes = '3'\n")
