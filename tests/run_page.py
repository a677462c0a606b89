"""Runs the Python blocks of a Markdown page, and checks the values it shows.

    python run_page.py PAGE [--only=HEADING ...] [--skip=HEADING ...]

It imports nothing from this repository, so that it also runs where the package
is not installed.
"""

from __future__ import annotations

import argparse
import ast
import re

_HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def read_blocks(page: str) -> list[tuple[str, str, str]]:
    """Returns `(heading, language, code)` of a page's fenced blocks."""
    _, *parts = _HEADING.split(page)
    return [
        (heading, *block.groups())
        for heading, text in zip(parts[::2], parts[1::2], strict=True)
        for block in _BLOCK.finditer(text)
    ]


def run_block(code: str, namespace: dict) -> int:
    """Runs a block; returns how many of its values were shown and compared."""
    compared = 0
    lines = code.splitlines()
    for node in ast.parse(code).body:
        source = ast.unparse(node)
        if not isinstance(node, ast.Expr):
            exec(source, namespace)
            continue
        value = repr(eval(source, namespace))
        _, comment, shown = lines[node.end_lineno - 1].partition("  # ")
        if comment:
            assert value == shown, f"{source} is {value}, not {shown}"
            compared += 1
    return compared


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("page")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--skip", action="append", default=[])
    args = parser.parse_args()
    with open(args.page) as file:
        blocks = read_blocks(file.read())
    namespace: dict = {}
    num_blocks = num_values = 0
    for heading, language, code in blocks:
        wanted = not args.only or heading in args.only
        if language == "python" and wanted and heading not in args.skip:
            num_values += run_block(code, namespace)
            num_blocks += 1
    print(f"{num_blocks} blocks, {num_values} values")


if __name__ == "__main__":
    main()
