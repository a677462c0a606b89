"""What setup.cfg declares is what the package imports."""

from __future__ import annotations

import ast
import configparser
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parents[1]

# Import names that differ from the names on PyPI.
_ON_PYPI = {
    "PIL": "pillow",
    "absl": "absl-py",
    "pillow_heif": "pillow-heif",
    "ai_edge_litert": "ai-edge-litert",
    "cv2": "opencv-python-headless",
    "tensorflow_datasets": "tensorflow-datasets",
}
# Imported only where one export format or benchmark needs it.
_OPTIONAL = {"ai-edge-litert", "onnxruntime", "pillow-heif", "tf2onnx"}
_EXTRAS = ("export", "onnx", "heic")
# The benchmark measures them beside this package if they are there.
_PEERS = {"timm", "torch"}


def _setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def _names(requirements: str) -> set[str]:
    lines = [line.strip() for line in requirements.splitlines()]
    return {
        re.split(r"[\s\[<>=]", line)[0]
        for line in lines
        if line and not line.startswith("#")
    }


def _imported() -> set[str]:
    found = set()
    for path in (ROOT / "flowers17_tfdata").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module)
    tops = {name.partition(".")[0] for name in found}
    # The folder `pictures` lies beside serve.py in an export.
    tops -= {"flowers17_tfdata", "pictures", *sys.stdlib_module_names}
    return {_ON_PYPI.get(name, name) for name in tops}


def test_every_import_is_declared_and_every_declaration_used():
    declared = _names(_setup()["options"]["install_requires"])
    # TFDS and TensorFlow need these and don't declare or always bring them.
    indirect = {"importlib_resources", "tensorboard"}
    assert _imported() - _OPTIONAL - _PEERS == declared - indirect


def test_optional_imports_have_an_extra():
    extras = _setup()["options.extras_require"]
    offered = set().union(*(_names(extras[e]) for e in _EXTRAS))
    assert offered == _OPTIONAL
    assert offered <= _names(extras["test"])
