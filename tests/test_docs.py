"""The commands and the Python code in the README and in docs/ run."""

import re
import runpy
import shlex
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.cli import commands, main

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if "_build" not in path.parts
}
NOT_RUN = "# needs internet"
# Pages whose commands train a pretrained network or many folds.
SLOW = {
    "docs/tutorials/photos.md",
    "docs/how-to/pretrained-networks.md",
    "docs/how-to/wrong-labels.md",
    "docs/how-to/reject-unknown.md",
}
# Options with smaller values than on the pages, so that the tests end sooner.
FEWER = {"--folds": "2", "--repeats": "2"}
# Pages whose Python blocks are the cells of one notebook.
NOTEBOOKS = {"docs/tutorials/scikit-learn.md"}


def code_blocks(text: str, language: str) -> list[str]:
    """Return the fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def pipeline_lines(text: str) -> list[str]:
    """Return the lines of a page that call `pipeline`, without the prompt."""
    blocks = code_blocks(text, "console")
    lines = [line for block in blocks for line in block.replace("\\\n", "").splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ pipeline ")]


def python_scripts() -> list[tuple[str, str]]:
    """Return the Python code of all pages: one script per block, or per notebook."""
    scripts = []
    for name, text in PAGES.items():
        blocks = code_blocks(text, "python")
        if name in NOTEBOOKS:
            blocks = ["\n".join(blocks)]
        scripts += [(name, block) for block in blocks]
    return scripts


def command_options() -> list[tuple[str, click.Option]]:
    return [
        (name, parameter)
        for name, command in commands.commands.items()
        for parameter in command.params
        if isinstance(parameter, click.Option)
    ]


PAGES_WITH_COMMANDS = [name for name, text in PAGES.items() if pipeline_lines(text)]
PYTHON_SCRIPTS = python_scripts()


def make_photos(folder: Path, side: int = 40) -> None:
    """Write images of two classes and of two others, side x side pixels.

    photos/ has 30 images of cats and dogs, photos.csv their groups, new/ 6 more. new-classes/ has 5
    images of another class, new-class/ too, and truck.png is one more.
    """
    generator, rows = np.random.default_rng(0), ["path,label,group"]
    for number in range(36):
        label = ("cat", "dog")[number % 2]
        colour = np.array([150, 90, 40])[:: (1, -1)[number % 2]]
        pixels = generator.integers(0, 80, (side, side, 3)) + colour
        path = folder / ("photos" if number < 30 else "new") / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        if number < 30:
            rows.append(f"{path.relative_to(folder)},{label},{label} {number // 6}")
    (folder / "new-class" / "vehicles").mkdir(parents=True)
    for name in ("truck.png", *(f"new-class/vehicles/{number}.png" for number in range(5))):
        pixels = generator.integers(0, 80, (side, side, 3)) + np.array([60, 160, 60])
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
    (folder / "new-classes" / "owl").mkdir(parents=True)
    for number in range(5):
        pixels = generator.integers(0, 80, (side, side, 3)) + np.array([40, 150, 90])
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"new-classes/owl/{number}.png")
    (folder / "photos.csv").write_text("\n".join(rows))
    (folder / "few.toml").write_text("[embed]\nepochs = 3\n")


def test_pages_have_commands_and_code():
    assert {"README.md", *SLOW, "docs/tutorials/digits.md"} <= set(PAGES_WITH_COMMANDS)
    assert len(PYTHON_SCRIPTS) >= 3
    assert {name for name, code in PYTHON_SCRIPTS if code} >= NOTEBOOKS


@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS)
def test_command_lines_parse(page):
    for line in pipeline_lines(PAGES[page]):
        _, name, *arguments = shlex.split(line, comments=True)
        commands.commands[name].make_context(name, arguments)  # raises for an unknown option


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page in SLOW else ())
        for page in PAGES_WITH_COMMANDS
    ],
)
def test_command_lines_run(page, tmp_path, monkeypatch, capsys):
    """Run the commands of a page in order, on small images, for few epochs and folds."""
    monkeypatch.chdir(tmp_path)
    is_tutorial = page == "docs/tutorials/photos.md"
    make_photos(tmp_path, 72 if is_tutorial else 40)  # above 64 pixels auto chooses a trunk
    for line in pipeline_lines(PAGES[page]):
        if NOT_RUN in line:
            continue
        _, name, *arguments = shlex.split(line, comments=True)
        arguments = [FEWER.get(option, value) for option, value in pairwise(["", *arguments])]
        on_photos = "photos/" in arguments or "photos.csv" in arguments
        small = ["--size", "32"] if name in ("run", "embed") and on_photos else []
        if "--size" in arguments or (is_tutorial and "--network" not in arguments):
            small = []
        with pytest.raises(SystemExit) as stop:
            main(["--config", "few.toml", name, *arguments, *small])
        output = capsys.readouterr()
        assert not stop.value.code, (line, output.err)
        if is_tutorial:
            assert "warning" not in output.err, output.err
            if name in ("run", "embed") and "--network" not in arguments:
                assert "network: efficientnet-lite" in output.err
            if "--folds" in arguments:
                check_folds(Path(dict(pairwise(arguments)).get("--out", "reports")))
    if is_tutorial:
        predictions = pd.read_csv(Path("labels.csv"))
        assert predictions["label"].tolist() == ["cat"] * 3 + ["dog"] * 3


def check_folds(report: Path) -> None:
    assert "pooled" in set(pd.read_csv(report / "accuracy.csv")["run"])
    assert pd.read_csv(report / "predictions.csv")["id"].nunique() == 30


@pytest.mark.slow
@pytest.mark.parametrize(
    "code", [code for _, code in PYTHON_SCRIPTS], ids=[name for name, _ in PYTHON_SCRIPTS]
)
def test_python_code_runs(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("example.py").write_text(code.replace("epochs=20", "epochs=2"))
    runpy.run_path("example.py", run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    if "print(score.metric" in code:
        assert any(line.startswith("knn_accuracy 0.") for line in lines)
        assert len(lines) == len(set(lines))


def test_every_command_is_documented():
    text = "".join(PAGES.values())
    for name in commands.commands:
        assert f"pipeline {name}" in text


@pytest.mark.parametrize("name, option", command_options(), ids=lambda value: str(value))
def test_every_option_has_a_help_sentence(name, option):
    sentence = (option.help or "").split("  [default")[0]
    assert sentence[:1].isupper() and sentence.endswith("."), f"{name} {option.opts}: {sentence}"


def test_code_map_names_every_module():
    text = PAGES["docs/contributing.md"]
    for folder in (ROOT / "stages", ROOT / "pipeline"):
        for path in folder.iterdir():
            if path.name.startswith("__") or not (path.is_dir() or path.suffix == ".py"):
                continue
            name = path.relative_to(ROOT).as_posix() + ("/" if path.is_dir() else "")
            assert f"`{name}`" in text, name
    for name in re.findall(r"`((?:stages|pipeline|tests)/[\w/.]+)`", text):
        assert (ROOT / name).exists(), name


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for text in PAGES.values():
        for target in set(re.findall(r"^make ([\w-]+)", text, flags=re.MULTILINE)):
            assert f"\n{target}:" in makefile


def test_readme_is_short():
    lines = PAGES["README.md"].splitlines()
    assert len(lines) <= 200
    for line in lines:
        is_exempt = line.startswith(("|", "epoch ")) or "](" in line  # tables, output, links
        assert len(line) <= 100 or is_exempt, line


def test_links_in_the_readme_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", PAGES["README.md"]):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
