"""A wheel built from the tree, installed elsewhere, does the job in an empty folder, its template included."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_wheel_works_in_an_empty_folder(tmp_path):
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(
        ".*", "build", "*.egg-info", "__pycache__", "checkpoints", "reports"
    )
    shutil.copytree(ROOT, source, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    installed, work = tmp_path / "installed", tmp_path / "work"
    work.mkdir()
    subprocess.run([*pip, "install", "--no-deps", "--target", installed, wheel], check=True)
    # The installed copy first, and without the tree itself, which an editable install puts on the path.
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    where = "import pipeline.cli; print(pipeline.cli.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(found.stdout.strip()).is_relative_to(installed)
    for command in (["embed", "--epochs", "2"], ["classify"], ["report"]):
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *command],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert (work / "reports" / "report.html").is_file() and (
        work / "reports" / "accuracy.csv"
    ).is_file()
