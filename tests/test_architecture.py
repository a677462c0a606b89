"""The packages import each other in one direction only."""

from __future__ import annotations

import ast
import graphlib
import pathlib

import flowers17_tfdata

PACKAGE = pathlib.Path(flowers17_tfdata.__file__).parent

# What each part of the package imports, besides `errors`, exactly: a
# permission that nobody uses fails the test too.
IMPORTS = {
    "__main__": {"cli"},
    "api": {
        "config",
        "flags",
        "phases.runner",
        "predictor",
        "tensorflow_start",
    },
    "cli": {
        "command_help",
        "config",
        "flags",
        "launcher",
        "phases.cross_validation",
        "phases.runner",
        "tensorflow_start",
        "training",
    },
    "command_help": {"config", "flag_files", "phases.registry"},
    "data": {"config", "files", "machine"},
    "flags": {"config", "flag_files", "phases.registry"},
    "input": {"config", "data", "files", "machine"},
    "models": {"config", "files", "scoring", "terminal"},
    "phases.benchmark": {
        "config",
        "data",
        "files",
        "input",
        "machine",
        "models",
        "phases.train_data",
        "phases.train_models",
        "phases.train_stages",
        "session",
        "terminal",
        "training",
    },
    "phases.compare": {
        "config",
        "files",
        "phases.path_lists",
        "scoring",
        "session",
        "terminal",
    },
    "phases.cross_validation": {"config", "launcher", "terminal"},
    "phases.evaluate": {
        "config",
        "session",
        "terminal",
        "timings",
        "trained_model",
    },
    "phases.export": {
        "config",
        "data",
        "files",
        "input",
        "machine",
        "models",
        "scoring",
        "session",
        "terminal",
        "timings",
        "trained_model",
    },
    "phases.extension": {
        "data",
        "files",
        "phases.compare",
        "scoring",
        "session",
        "terminal",
    },
    "phases.find_lr": {
        "files",
        "phases.report",
        "phases.train_stages",
        "session",
        "terminal",
    },
    "phases.folders": {"data", "session", "terminal"},
    "phases.frozen_features": {
        "data",
        "input",
        "models",
        "phases.train_data",
        "phases.train_features",
        "phases.train_models",
        "session",
        "training",
    },
    "phases.learning_curve": {
        "data",
        "files",
        "input",
        "phases.frozen_features",
        "phases.train_data",
        "scoring",
        "session",
        "terminal",
        "timings",
        "training",
    },
    "phases.predict": {
        "config",
        "data",
        "files",
        "phases.path_lists",
        "predictor",
        "terminal",
    },
    "phases.prepare": {"data", "files", "session", "terminal", "timings"},
    "phases.report": {
        "config",
        "data",
        "files",
        "input",
        "models",
        "scoring",
        "session",
        "terminal",
        "timings",
        "trained_model",
    },
    "phases.review": {
        "data",
        "files",
        "input",
        "phases.frozen_features",
        "phases.report",
        "scoring",
        "session",
        "terminal",
        "timings",
        "training",
    },
    "phases.runner": {
        "config",
        "files",
        "phases.evaluate",
        "phases.registry",
        "phases.report",
        "session",
        "terminal",
        "timings",
        "trained_model",
        "training",
    },
    "phases.train": {
        "phases.evaluate",
        "phases.extension",
        "phases.prepare",
        "phases.report",
        "phases.train_stages",
        "session",
    },
    "phases.train_data": {"config", "input", "models", "session", "training"},
    "phases.train_features": {
        "files",
        "input",
        "machine",
        "models",
        "phases.train_data",
        "session",
        "terminal",
        "timings",
        "training",
    },
    "phases.train_models": {"models", "session"},
    "phases.train_stages": {
        "config",
        "input",
        "models",
        "phases.train_data",
        "phases.train_features",
        "phases.train_models",
        "phases.train_trust",
        "session",
        "terminal",
        "timings",
        "training",
    },
    "phases.train_trust": {
        "data",
        "input",
        "models",
        "phases.train_data",
        "scoring",
        "session",
        "terminal",
        "timings",
        "training",
    },
    "predictor": {"config", "input", "session", "trained_model"},
    "scoring": {"files"},
    "session": {
        "config",
        "data",
        "files",
        "input",
        "machine",
        "models",
        "terminal",
        "timings",
        "training",
    },
    "timings": {"files"},
    "trained_model": {
        "config",
        "files",
        "input",
        "models",
        "scoring",
        "session",
        "terminal",
        "training",
    },
    "training": {"config", "files", "input", "models", "terminal"},
}


def _part(parts: list[str]) -> str:
    """Returns the part that a module belongs to: a phase, or a top folder."""
    names = [part.removesuffix(".py") for part in parts]
    return ".".join(names[: 2 if names[0] == "phases" else 1])


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
            package, *parts = name.split(".")
            if package == "flowers17_tfdata" and parts:
                found.add(_part(parts))
    return found


def _graph() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        part = _part(list(path.relative_to(PACKAGE).parts))
        others = _imports(path) - {part, "errors", "__version__"}
        graph.setdefault(part, set()).update(others)
    return {part: others for part, others in graph.items() if others}


def test_imports_follow_the_layout():
    assert _graph() == IMPORTS


def test_no_circles():
    # Raises CycleError, which names the circle.
    tuple(graphlib.TopologicalSorter(_graph()).static_order())


def test_the_builder_folder_stands_on_its_own():
    # It can be copied into another project: what it imports is in the same
    # folder, or installed.
    folder = PACKAGE / "data" / "oxford_flowers17"
    files = list(folder.rglob("*.py"))
    assert files
    for path in files:
        assert not _imports(path), path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1, path


def test_what_is_copied_into_an_export_stands_on_its_own():
    for path in (
        PACKAGE / "phases" / "export" / "serve.py",
        PACKAGE / "data" / "image_formats.py",
        PACKAGE / "data" / "pillow_reader.py",
    ):
        assert not _imports(path), path


def test_only_flags_touches_absl_flags():
    for path in PACKAGE.rglob("*.py"):
        if path.name != "flags.py":
            assert "absl import flags" not in path.read_text(), path
