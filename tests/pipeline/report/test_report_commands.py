"""Reports from the command line: run names, pooled seeds and rerunning `classify`."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from factories import QUIET, make_dataset, train_both

from pipeline.checkpoint import load_classifier
from pipeline.cli import commands
from pipeline.commands.classify import classify
from pipeline.commands.report import _run_names, report
from pipeline.vector_cache import load_vectors
from stages.errors import SettingsError
from stages.settings import ClassifySettings

CLASSES = ("cat", "dog", "newt", "owl")


def test_each_embedding_needs_a_classifier(tmp_path):
    with pytest.raises(SettingsError) as error:
        report([tmp_path / "a", tmp_path / "b"], [tmp_path / "c"], out=tmp_path, context=QUIET)
    assert error.value.field == "classifier"
    assert "1 given for 2" in str(error.value)


def test_equal_file_names_are_told_apart_by_their_folders(tmp_path):
    names = _run_names([tmp_path / "x" / "e.safetensors", tmp_path / "y" / "e.safetensors"])
    assert names == ["x/e", "y/e"]
    names = _run_names([tmp_path / "e.safetensors"] * 2)
    assert names == [f"{tmp_path.name}/e 1", f"{tmp_path.name}/e 2"]


def test_classify_reuses_cached_embeddings(tmp_path, monkeypatch):
    """Cached embeddings belong to one embedding digest and one split fingerprint."""
    data = make_dataset(CLASSES)
    embedding, classifier = train_both(data, tmp_path)
    cache = tmp_path / "embedding.vectors"
    assert cache.exists()
    monkeypatch.setattr(
        "pipeline.commands.classify.reload_dataset", lambda *_: pytest.fail("images were read")
    )
    settings = ClassifySettings(dropout=0.1)
    second_path = classify(embedding, settings, out=tmp_path / "again.safetensors", context=QUIET)
    first, second = load_classifier(classifier), load_classifier(second_path)
    assert torch.equal(first.gallery.vectors, second.gallery.vectors)
    assert first.gallery_ids == second.gallery_ids
    assert not torch.equal(first.head.linear.weight, second.head.linear.weight)
    monkeypatch.undo()
    key = {
        "embedding_digest": first.embedding_digest,
        "fingerprint": data.fingerprint,
        "classes": CLASSES,
    }
    assert load_vectors(cache, **key)
    for stale in ({"embedding_digest": "0"}, {"fingerprint": "0"}):
        assert load_vectors(cache, **{**key, **stale}) is None
    content = bytearray(cache.read_bytes())
    content[-9] ^= 255
    cache.write_bytes(content)
    assert load_vectors(cache, **key) is None


def test_run_pools_seeds(tmp_path, digit_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.toml").write_text("[embed]\nepochs = 1\n")
    arguments = ["--config", "short.toml", "run", "--data", str(digit_folder), "--seeds", "0,1"]
    arguments += ["--dim", "16", "--quiet", "--figures", "figs"]
    result = CliRunner().invoke(commands, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "over 2 runs on the same split" in result.output
    assert "std" in result.output
    accuracy = pd.read_csv("reports/accuracy.csv")
    assert list(accuracy["run"].unique()) == ["seed-0", "seed-1", "mean", "std"]
    value = accuracy[accuracy["split"] == "test"].set_index(["run", "metric"])["value"]
    for metric in ("knn_accuracy", "map_at_r"):
        values = [value["seed-0", metric], value["seed-1", metric]]
        assert value["mean", metric] == pytest.approx(np.mean(values), abs=1e-6)
        assert value["std", metric] == pytest.approx(np.std(values, ddof=1), abs=1e-6)
    assert Path("figs/confusion.png").exists()
    assert Path("checkpoints/embedding-seed-1.safetensors").exists()


@pytest.mark.parametrize("seeds", ["0,x", "1,1"])
def test_invalid_seeds_are_a_usage_error(seeds):
    result = CliRunner().invoke(commands, ["run", "--seeds", seeds])
    assert result.exit_code == 2
    assert seeds in result.output


@pytest.mark.parametrize("value", ['"here.safetensors"', '["here.safetensors"]'])
def test_the_config_file_takes_one_embedding_or_a_list(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text(f"[report]\nembedding = {value}\n")
    result = CliRunner().invoke(commands, ["--config", "c.toml", "report"])
    assert str(result.exception).startswith("here.safetensors: ")


def test_balance_is_recorded(tmp_path):
    embedding, _ = train_both(make_dataset(CLASSES), tmp_path)
    out = tmp_path / "balanced.safetensors"
    arguments = ["classify", "--embedding", str(embedding), "--out", str(out)]
    result = CliRunner().invoke(commands, [*arguments, "--balance", "--quiet"])
    assert result.exit_code == 0, result.output
    assert load_classifier(out).record["settings"]["balance"] is True
