"""Imports point strictly downwards and form no cycle."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Modules and packages, the lowest first. A module imports only from its own row's package or from
# rows before it.
LAYERS = [
    ["stages.errors"],
    [
        "stages.settings",
        "stages.distance",
        "stages.distributed",
        "stages.eager_optimiser",
        "stages.gpu",
        "stages.subset",
    ],
    ["stages.records", "stages.gallery"],
    ["stages.checkpoints", "stages.search"],
    ["stages.network"],
    ["stages.evaluation"],
    ["stages.embedding", "stages.classifier"],
    ["pipeline.progress", "pipeline.escape", "pipeline.numbers", "pipeline.failures"],
    ["pipeline.enrolments"],
    ["pipeline.files", "pipeline.signals"],
    ["pipeline.schema"],
    ["pipeline.record"],
    ["pipeline.checkpoint_header"],
    ["pipeline.processes"],
    ["pipeline.outputs"],
    ["pipeline.device"],
    ["pipeline.error_messages"],
    ["pipeline.context"],
    ["pipeline.tensor_files"],
    ["pipeline.checkpoint", "pipeline.weights"],
    ["pipeline.training_state", "pipeline.vector_cache"],
    ["pipeline.data"],
    ["pipeline.image_vectors", "pipeline.vector_blocks", "pipeline.vector_files"],
    [
        "pipeline.vector_tables",
        "pipeline.network_cost",
        "pipeline.onnx_file",
        "pipeline.onnx_parity",
    ],
    ["pipeline.open_gallery"],
    ["pipeline.identity", "pipeline.monitor", "pipeline.network_choice"],
    ["pipeline.report"],
    ["pipeline.commands"],
    ["pipeline.estimator_inputs"],
    ["pipeline.estimator_base"],
    ["pipeline.estimators"],
    ["pipeline.option_help"],
    ["pipeline.options", "pipeline.config", "pipeline.terminal"],
    ["pipeline.fold_options"],
    ["pipeline.checkpoint_commands", "pipeline.compare_command"],
    ["pipeline.cli"],
    ["pipeline.__main__"],
]
WORLDLY = {
    *("click", "tqdm", "pandas", "PIL", "matplotlib", "bokeh", "jinja2"),
    *("pathlib", "os", "time", "sys", "logging"),
}


@cache
def modules() -> dict[str, Path]:
    """Return every module by its dotted name, sub-packages included."""
    paths = [path for folder in ("stages", "pipeline") for path in (ROOT / folder).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}


@cache
def imports(path: Path) -> frozenset[str]:
    """Return the modules that a file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                names.add(submodule if submodule in modules() else str(node.module))
    return frozenset(names)


def own_imports(module: str) -> set[str]:
    return {name for name in imports(modules()[module]) if name in modules()}


def layer_of(module: str) -> int:
    for height, row in enumerate(LAYERS):
        if any(module == name or module.startswith(f"{name}.") for name in row):
            return height
    raise AssertionError(f"{module} is in no layer: add it to LAYERS")


def package_of(module: str) -> str:
    return module.rpartition(".")[0]


def test_imports_point_down():
    for module in modules():
        if module.endswith("__init__"):
            continue
        for target in own_imports(module):
            same_package = package_of(module) == package_of(target) and module.count(".") == 2
            if not same_package:
                assert layer_of(target) < layer_of(module), f"{module} imports {target}"


def test_imports_form_no_cycle():
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in finished:
            for target in own_imports(module):
                visit(target, (*path, module))
            finished.add(module)

    for module in modules():
        visit(module, ())
    assert finished == set(modules())


def test_a_cycle_would_be_found(monkeypatch):
    monkeypatch.setitem(globals(), "own_imports", {"a": {"b"}, "b": {"a"}}.__getitem__)
    monkeypatch.setitem(globals(), "modules", lambda: {"a": None, "b": None})
    try:
        test_imports_form_no_cycle()
    except AssertionError as error:
        assert "a -> b -> a" in str(error)
    else:
        raise RuntimeError("the cycle was not found")


def test_init_files_import_nothing():
    for module, path in modules().items():
        if module.endswith("__init__"):
            assert not imports(path), f"{module} imports {imports(path)}"


def test_stages_do_not_touch_the_outside_world():
    for module, path in modules().items():
        if module.startswith("stages."):
            worldly = {name for name in imports(path) if name.split(".")[0] in WORLDLY}
            assert not worldly, f"{module} imports {worldly}"
            text = path.read_text(encoding="utf-8")
            assert "print(" not in text, f"{module} prints"


def test_stages_name_no_command_line_option():
    for module, path in modules().items():
        if module.startswith("stages."):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                assert " --" not in line and '"--' not in line, f"{path}:{number}: {line.strip()}"
