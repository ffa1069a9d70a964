"""The README's commands and code run, its code map names every module, and each command of the photos' page does its work."""

import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.cli import commands, main

ROOT = Path(__file__).parent.parent
README, PHOTOS = (
    (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/photos.md")
)


def blocks_of(text: str) -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def lines_of_commands(text: str) -> list[list[str]]:
    lines = [
        line.removeprefix("$ ")
        for language, block in blocks_of(text)
        if not language
        for line in block.splitlines()
    ]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("pipeline ")]


@pytest.mark.parametrize("text", [README, PHOTOS], ids=["README", "photos"])
def test_every_command_line_parses(text):
    assert len(lines_of_commands(text)) >= 4
    for _, *arguments in lines_of_commands(text):
        name = next(argument for argument in arguments if not argument.startswith("-"))
        command = commands.commands[name]
        command.make_context(
            name, arguments[arguments.index(name) + 1 :]
        )  # raises on an option that isn't there


def test_every_command_is_documented():
    for name in commands.commands:
        assert f"pipeline {name}" in README


def test_the_code_map_is_whole():
    for path in [*ROOT.glob("stages/*.py"), *ROOT.glob("pipeline/*.py")]:
        if not path.name.startswith("__"):
            assert f"`{path.name}`" in README or f"{path.parent.name}/{path.name}`" in README, path


def test_the_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"^make ([\w-]+)", README, flags=re.MULTILINE)):
        assert f"\n{target}:" in makefile


@pytest.mark.parametrize(
    "text", [text for language, text in blocks_of(README) if language == "python"]
)
def test_the_python_runs(text, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{text}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "knn_accuracy 0." in done.stdout


@pytest.mark.slow
def test_the_photos_page_from_start_to_finish(tmp_path, monkeypatch, capsys):
    """Every command in its order, on small images of two classes and in few epochs; nothing else is changed."""
    monkeypatch.chdir(tmp_path)
    generator, rows = np.random.default_rng(0), ["path,label,group"]
    for row in range(36):
        label = ("cat", "dog")[row % 2]
        pixels = (
            generator.integers(0, 80, (40, 40, 3)) + np.array([150, 90, 40])[:: (1, -1)[row % 2]]
        )
        path = Path("photos" if row < 30 else "new") / label / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        if row < 30:
            rows.append(f"{path},{label},{label} {row // 6}")
    Path("photos.csv").write_text("\n".join(rows))
    Path("few.toml").write_text("[embed]\nepochs = 3\n")
    assert re.search(r"^path,label,group$", PHOTOS, flags=re.MULTILINE)
    for _, command, *arguments in lines_of_commands(PHOTOS):
        small = ["--size", "32"] if command in ("run", "embed") else []
        with pytest.raises(SystemExit) as stop:
            main(["--config", "few.toml", command, *arguments, *small])
        told = capsys.readouterr()
        assert not stop.value.code, (command, told.err)
        assert "warning" not in told.err, told.err
        if command == "run":
            folder = Path(dict(pairwise(arguments)).get("--out", "reports"))
            accuracy = pd.read_csv(folder / "accuracy.csv")
            assert "pooled" in set(accuracy["run"])
            assert pd.read_csv(folder / "predictions.csv")["id"].nunique() == 30
    assert [line.split(",")[1] for line in told.out.splitlines()[1:]] == ["cat"] * 3 + ["dog"] * 3
