"""The documentation: its links lead somewhere, and its commands work."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shlex
import subprocess
import sys

import cv2
import pytest

from flowers17_tfdata import command_help, flags
from flowers17_tfdata.data.oxford_flowers17 import synthetic
from tests.test_architecture import IMPORTS

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "flowers17_tfdata"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
WALK_THROUGHS = [
    ("README.md", "## Your photographs"),
    ("docs/own_images.md", "# Your photographs"),
]

# Replaces a network that trains for minutes, and downloaded weights.
_TINY = [
    *("--backbone=tiny_net", "--weights=none", "--image_size=32"),
    "--finetune_epochs=1",
]


def commands(text: str) -> list[list[str]]:
    """Returns the arguments of each `python main.py` command in a text.

    Commands stand in indented blocks or between backticks. A backslash at the
    end of a line joins it with the next. Arguments written `...` are dropped.
    """
    text = re.sub(r"\s*\\\n\s*", " ", text)
    found = []
    for line in text.splitlines():
        spans = re.findall(r"`([^`]+)`", line)
        if line.startswith("    ") and not spans:
            spans = [line]
        for span in spans:
            _, separator, rest = span.partition("python main.py")
            if separator:
                rest = re.split(r" [>|&#] | #|\s{2,}", rest)[0]
                found.append([w for w in shlex.split(rest) if w != "..."])
    return found


def _help_commands() -> list[list[str]]:
    """Returns the commands that the help and the hints for offline use name."""
    text = command_help.help_text("python main.py", None, full=True) + "\n"
    for backbone in ("inception_v3", "resnet50"):
        text += command_help.offline_text("python main.py", backbone) + "\n"
    return commands(text.replace("\n  python", "\n    python"))


def _parse(words: list[str]) -> None:
    """Fails if a command has a flag that does not exist, or a bad value."""
    # The run that it names is not there.
    words = [word for word in words if not word.startswith("--extends=")]
    with contextlib.suppress(flags.HelpRequested):
        flags.parse(["main.py", *words])


def _anchors(page: pathlib.Path) -> set[str]:
    """Returns the anchors that GitHub makes of a page's headings."""
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if link.startswith("http"):
            continue
        target, _, anchor = link.partition("#")
        file = page.parent / target if target else page
        assert file.exists(), link
        assert not anchor or anchor in _anchors(file), link


def test_the_readme_links_to_every_page():
    links = re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text())
    missing = {str(page.relative_to(ROOT)) for page in PAGES} - {*links}
    assert missing == {"README.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_named_files_exist(page):
    text = page.read_text()
    for name in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|flags|yaml))`", text):
        assert (ROOT / name).exists() or (PACKAGE / name).exists(), name


def _architecture_block(heading: str) -> list[str]:
    """Returns the indented lines below a heading of architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = section.splitlines()
    return [line.strip() for line in lines if line.startswith("    ")]


def test_architecture_names_modules_that_exist():
    names = [line.split()[0] for line in _architecture_block("The modules")]
    assert len(names) > 50
    for name in names:
        path = PACKAGE / name
        assert path.is_dir() or path.with_suffix(".py").is_file(), name


def test_architecture_shows_the_arrows():
    lines = _architecture_block("The arrows")
    line_of = {
        name.strip().replace("/", "."): number
        for number, line in enumerate(lines)
        for name in line.split(",")
    }
    # It imports `cli` alone.
    assert IMPORTS.keys() - {"__main__"} <= line_of.keys()
    for part, others in IMPORTS.items():
        for other in others:
            assert line_of.get(part, -1) < line_of[other], (part, other)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_have_real_flags(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(page.read_text()):
        _parse(words)


def test_commands_in_the_help_have_real_flags(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = _help_commands()
    assert len(found) >= 8
    for words in found:
        _parse(words)


def test_commands_are_found():
    text = """
    python main.py --a=1 \\
        --b='x y' > out.txt

    Then `python main.py --c=2` and
    python main.py ... --d=3    # a comment
    """
    assert commands(text) == [["--a=1", "--b=x y"], ["--c=2"], ["--d=3"]]


def _draw_photographs(folder: pathlib.Path) -> None:
    """Draws the photographs that the pages' commands read."""
    drawn = iter(synthetic.iter_synthetic_images(0))
    for name, count in (("photos/cat", 40), ("photos/dog", 20), ("new", 2)):
        path = folder / name
        path.mkdir(parents=True)
        for k, (_, data) in zip(range(count), drawn, strict=False):
            (path / f"{k}.jpg").write_bytes(data)
    image = cv2.imread(str(folder / "new" / "0.jpg"))
    cv2.imwrite(str(folder / "cat.jpg"), image)


def _run(words: list[str], folder: pathlib.Path) -> None:
    """Runs a command in a folder, with flags that make training quick."""
    if any(word.startswith(("--dataset=", "--flagfile=")) for word in words):
        words = [*words, *_TINY, f"--data_dir={folder / 'data'}"]
    if any(word.startswith("--folds=") for word in words):
        # The fewest folds that are allowed.
        words = [*words, "--folds=3"]
    program = [sys.executable, "-m", "tests.worker_main"]
    result = subprocess.run(
        [*program, *_globbed(words, folder)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, (words, result.stderr)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "heading"), WALK_THROUGHS, ids=[p for p, _ in WALK_THROUGHS]
)
def test_walk_through_works(page, heading, tmp_path):
    text = (ROOT / page).read_text().partition(heading)[2]
    text = re.split(rf"^{heading.split()[0]} ", text, flags=re.MULTILINE)[0]
    _draw_photographs(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    found = [
        words
        for words in commands(text)
        # tf_flowers would have to be downloaded.
        if "--dataset=tf_flowers" not in words
    ]
    assert len(found) >= 3
    for words in found:
        _run(words, tmp_path)
    assert list(tmp_path.rglob("report.html"))


@pytest.mark.slow
def test_commands_on_a_trained_run_work(tmp_path, dummy_archive):
    """Runs all commands of the pages and the help on runs/flowers17."""
    _draw_photographs(tmp_path)
    (tmp_path / "photo.jpg").write_bytes((tmp_path / "cat.jpg").read_bytes())
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    train = ["--flagfile=configs/flowers17.flags", f"--archive={dummy_archive}"]
    _run([*train, "--workdir=runs/flowers17"], tmp_path)
    found = {
        tuple(words)
        for words in [
            *(w for page in PAGES for w in commands(page.read_text())),
            *_help_commands(),
        ]
        if "--workdir=runs/flowers17" in words
        and any(word.startswith("--phase=") for word in words)
    }
    assert len(found) >= 4
    for words in sorted(found):
        _run(list(words), tmp_path)


def _globbed(words: list[str], folder: pathlib.Path) -> list[str]:
    """Expands globs such as `new/*.jpg`, as a shell does."""
    return [
        name
        for word in words
        for name in (
            sorted(str(p) for p in folder.glob(word))
            if "*" in word and not word.startswith("--")
            else [word]
        )
    ]
