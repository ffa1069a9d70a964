"""Output to closed, full and ASCII-only streams, and the current folder's modules."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sample_sources import write_photos

ROOT = Path(__file__).parents[2]
PIPELINE = f"{sys.executable} -m pipeline"


def run_shell(folder: Path, command: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.fixture
def photos(tmp_path) -> Path:
    """Write images whose class names hold an emoji, a byte that is no text, and an escape code."""
    root = write_photos(tmp_path / "photos", classes="ab", count=6)
    (root / "a").rename(root / "a\N{HONEYBEE}")
    (root / "b").rename(root / (os.fsdecode(b"b\xe9") + "\x1b[31m"))
    return root


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_any_name_can_be_printed(photos, tmp_path, encoding):
    command = f"{PIPELINE} data photos && {PIPELINE} data 'x\x1by'"
    result = run_shell(tmp_path, command, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert result.returncode == 1 and result.stderr.startswith("error: x\\x1by: ")
    assert "Traceback" not in result.stderr and "\x1b" not in result.stdout + result.stderr
    assert "\\x1b[31m" in result.stdout


def test_closed_and_full_streams(photos, tmp_path):
    for command, status, errors in (
        (f"{PIPELINE} data photos >/dev/full", 1, "No space left on device"),
        (f"{PIPELINE} --help >/dev/full", 1, "No space left on device"),
        (f"{PIPELINE} data photos >&-", 1, "Bad file descriptor"),
        (f"{PIPELINE} data photos >/dev/null 2>&-", 0, ""),
        (f"{PIPELINE} data missing 2>/dev/full", 1, ""),
        (f"{PIPELINE} data photos <&- >out.txt && test -s out.txt", 0, ""),
        (f"{PIPELINE} data photos --json | head -c 1; exit ${{PIPESTATUS[0]}}", 0, ""),
    ):
        result = run_shell(tmp_path, command)
        assert (result.returncode, "Traceback" in result.stderr) == (status, False), command
        assert errors in result.stderr and len(result.stderr.splitlines()) <= 1, command


def test_modules_in_the_current_folder_are_not_imported(tmp_path):
    (tmp_path / "stages").mkdir()
    for name in ("random.py", "stages/__init__.py", "json.py"):
        (tmp_path / name).write_text("raise SystemExit('imported')")
    result = run_shell(tmp_path, f"{PIPELINE} data digits --quiet")
    assert result.returncode == 0, result.stderr


def test_source_is_an_argument_or_an_option(photos, tmp_path):
    command = f"cd {photos.parent} && for data in photos '--data photos' 'photos --data photos'"
    command += f"; do {PIPELINE} data $data --json | md5sum; done; {PIPELINE} data photos --data x"
    result = run_shell(tmp_path, command)
    assert len(set(result.stdout.splitlines())) == 1
    assert result.returncode == 2 and "--data x" in result.stderr
