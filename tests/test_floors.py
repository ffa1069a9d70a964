"""Imports go strictly down: the order of the README's code map, proved from the source."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLOORS = [
    ["stages.errors"],
    ["stages.settings", "stages.records", "stages.distance", "stages.processes"],
    ["stages.network", "stages.loss", "stages.sampler", "stages.metrics", "stages.augment"],
    ["stages.embed", "stages.classify", "stages.score"],
    ["pipeline.store"],
    ["pipeline.data", "pipeline.checkpoint", "pipeline.plots", "pipeline.runtime", "pipeline.table", "pipeline.weights"],
    ["pipeline.watch", "pipeline.report", "pipeline.predict", "pipeline.audit", "pipeline.features"],
    ["pipeline.run"],
    ["pipeline.folds"],
    ["pipeline.cli"],
    ["pipeline.__main__"],
]
HEIGHT = {module: height for height, floor in enumerate(FLOORS) for module in floor}
WORLDLY = {"click", "tqdm", "pandas", "PIL", "matplotlib", "bokeh", "jinja2", "pathlib", "os", "time", "sys", "logging"}


def modules() -> dict[str, Path]:
    return {f"{path.parent.name}.{path.stem}": path for folder in ("stages", "pipeline") for path in (ROOT / folder).glob("*.py")}


def imported(path: Path) -> set[str]:
    """Every module a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            found |= {f"{node.module}.{alias.name}" if node.module in ("stages", "pipeline") else str(node.module) for alias in node.names}
    return found


def test_every_module_has_a_floor():
    assert {name for name in modules() if not name.endswith(".__init__")} <= set(HEIGHT)


def test_imports_go_down():
    for name, path in modules().items():
        for target in imported(path):
            if target.split(".")[0] in ("stages", "pipeline") and not name.endswith(".__init__"):
                assert HEIGHT[target] < HEIGHT[name], f"{name} imports {target}, which is not below it"


def test_init_files_import_nothing():
    for name, path in modules().items():
        if name.endswith(".__init__"):
            assert not imported(path), f"{name} imports {imported(path)}"


def test_stages_touch_nothing_of_the_world():
    for name, path in modules().items():
        if name.startswith("stages."):
            worldly = {target for target in imported(path) if target.split(".")[0] in WORLDLY}
            assert not worldly, f"{name} imports {worldly}"
            assert "print(" not in path.read_text(encoding="utf-8"), f"{name} prints"
