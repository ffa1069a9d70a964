"""Functions fit on a screen, files stay short, and lines end at column 100."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("stages", "pipeline", "tests", "benchmarks")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
FUNCTION_LINES, FILE_LINES, COLUMNS = 60, 350, 100


def function_lengths(source: str) -> dict[str, int]:
    """Return the lines of each function without its docstring."""
    lengths = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False) or ""
            lines = (node.end_lineno or 0) - node.lineno + 1 - len(docstring.splitlines())
            lengths[f"{node.name}:{node.lineno}"] = lines
    return lengths


def test_function_lengths_are_measured():
    source = 'def f():\n    """One\n    two."""\n    return 1\n'
    assert function_lengths(source) == {"f:1": 2}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_size(path):
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    assert len(lines) <= FILE_LINES
    for number, line in enumerate(lines, 1):
        assert len(line) <= COLUMNS, f"line {number}"
    for name, length in function_lengths(source).items():
        assert length <= FUNCTION_LINES, f"{name} has {length} lines"
