"""The arrows between the packages go one way."""

from __future__ import annotations

import ast
import pathlib

import flowers17_tfdata

PACKAGE = pathlib.Path(flowers17_tfdata.__file__).parent

_PACKAGES = {"config", "data", "input", "models", "results", "training"}

# A package may import itself, `errors`, and these.
MAY_IMPORT = {
    "errors": set(),
    "config": set(),
    "flags": {"config"},
    "data": {"config"},
    "input": {"config", "data"},
    "models": {"config"},
    "results": {"config", "input", "models"},
    "training": {"config", "input", "models", "results"},
    "session": _PACKAGES,
    "stage_data": _PACKAGES | {"session"},
    "stage_models": {"models", "session"},
    "stages": _PACKAGES | {"session", "stage_data", "stage_models"},
    "trained": _PACKAGES | {"session"},
    "predict": _PACKAGES | {"session", "trained"},
    "export": _PACKAGES | {"session", "trained"},
    "report": _PACKAGES | {"session", "trained"},
    "compare": {"config", "results", "session", "training"},
    "phases": _PACKAGES
    | {"session", "stages", "trained", "predict", "export", "report"}
    | {"benchmark", "compare", "find_lr"},
    "find_lr": _PACKAGES | {"session", "stages", "report"},
    "benchmark": _PACKAGES | {"session", "stages"},
    "launcher": set(),
    "data_server": set(),
    "cross_validation": {"config", "launcher", "results"},
    "cli": {"config", "flags", "launcher", "cross_validation", "phases"},
    "__main__": {"cli"},
    "__init__": set(),
}


def _imports(path: pathlib.Path) -> set[str]:
    """Returns the parts of our package that a module imports, anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "flowers17_tfdata" and len(parts) > 1:
                found.add(parts[1])
    return found


def test_imports_follow_the_layout():
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        others = _imports(path) - {room, "errors", "__version__"}
        assert others <= MAY_IMPORT[room], f"{path}: {others}"


def test_the_builder_folder_stands_on_its_own():
    # So that it can be copied into another project: what it imports is beside
    # it, or installed.
    folder = PACKAGE / "data" / "oxford_flowers17"
    files = list(folder.rglob("*.py"))
    assert files
    for path in files:
        assert not _imports(path), path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1, path


def test_only_flags_touches_absl_flags():
    for path in PACKAGE.rglob("*.py"):
        if path.name != "flags.py":
            assert "absl import flags" not in path.read_text(), path
