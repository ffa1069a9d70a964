"""A wheel built from the source tree works where it is installed, templates included."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOT_COPIED = shutil.ignore_patterns(
    ".*", "build", "*.egg-info", "__pycache__", "checkpoints", "reports"
)


@pytest.mark.slow
def test_wheel_works_in_an_empty_folder(tmp_path):
    source, installed, work = (tmp_path / name for name in ("source", "installed", "work"))
    shutil.copytree(ROOT, source, ignore=NOT_COPIED)
    work.mkdir()
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", installed, wheel], check=True)
    # The installed package comes before the source tree, which an editable install adds.
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def run(*arguments: str) -> str:
        result = subprocess.run(
            [sys.executable, *arguments],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    imported = run("-c", "import pipeline.cli; print(pipeline.cli.__file__)")
    assert Path(imported.strip()).is_relative_to(installed)
    for command in (["embed", "--epochs", "2"], ["classify"], ["report"]):
        run("-m", "pipeline", *command)
    assert (work / "reports" / "report.html").is_file()
    assert (work / "reports" / "accuracy.csv").is_file()
