"""The README's commands and code run, and its code map names every module."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import commands

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# (language, text) of every fenced block
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def lines_of_commands() -> list[list[str]]:
    lines = [line.removeprefix("$ ") for language, text in BLOCKS if not language for line in text.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("pipeline ")]


def test_every_command_line_parses():
    assert len(lines_of_commands()) >= 4
    for _, *arguments in lines_of_commands():
        name = next(argument for argument in arguments if not argument.startswith("-"))
        command = commands.commands[name]
        command.make_context(name, arguments[arguments.index(name) + 1 :])  # raises on an option that isn't there


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


@pytest.mark.parametrize("text", [text for language, text in BLOCKS if language == "python"])
def test_the_python_runs(text, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{text}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "knn_accuracy 0." in done.stdout
