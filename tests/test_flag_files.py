"""Flag files: one's own by path, shipped ones by name, in any folder."""

from __future__ import annotations

import os
import pathlib

import pytest

from flowers17_tfdata import cli, flags
from flowers17_tfdata.errors import ConfigError

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
SHIPPED = sorted(path.stem for path in CONFIGS.glob("*.flags"))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> pathlib.Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _parse(*arguments: str):
    return flags.parse(["flowers17-tfdata", *arguments])


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_are_found_in_any_folder(name):
    config = _parse(f"--flagfile={name}")
    assert config.workdir == f"runs/{name}"
    assert _parse(f"--flagfile={name}.flags") == config
    assert _parse(f"--flagfile={CONFIGS / name}.flags") == config


def test_shipped_files_may_include_others():
    config = _parse("--flagfile=gpu_x8")
    # gpu_x8 includes gpu_a100, which includes flowers17.
    assert config.optimization.finetune_learning_rate == 6e-4
    assert config.runtime.precision == "mixed_bfloat16"
    assert config.input.train_scale == 0.778


def test_the_help_says_what_each_shipped_file_is_for(capsys):
    assert cli.main(["flowers17-tfdata", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in SHIPPED:
        (line,) = (x for x in lines if x.startswith(f"  {name} "))
        first = (CONFIGS / f"{name}.flags").read_text().splitlines()[0]
        assert first == f"# {line.partition(name)[2].strip()}"
        assert first.endswith(".") and len(line) <= 80


@pytest.mark.parametrize("name", ["fast", "fast.flags"])
def test_a_file_in_the_current_folder_wins(folder, name):
    (folder / name).write_text("--seed=3\n")
    assert _parse(f"--flagfile={name}").runtime.seed == 3


def test_a_folder_is_no_flag_file(folder):
    (folder / "fast").mkdir()
    assert _parse("--flagfile=fast").workdir == "runs/fast"


def test_own_files_may_include_shipped_ones_and_each_other(folder):
    own = folder / "own"
    own.mkdir()
    (own / "base.flags").write_text("  --flagfile=fast.flags\n\n// note\n")
    (own / "mine.flags").write_text("--flagfile=base\n--workdir=mine\n")
    # The one beside the including file is meant.
    (folder / "base.flags").write_text("--seed=3\n")
    config = _parse("--flagfile=own/mine")
    assert (config.workdir, config.input.feature_views) == ("mine", 6)
    assert config.runtime.seed == 0


def test_files_in_the_current_folder_may_be_included(folder):
    own = folder / "own"
    own.mkdir()
    (own / "mine.flags").write_text("--flagfile=own/base.flags\n")
    (own / "base.flags").write_text("--seed=3\n")
    assert _parse("--flagfile=own/mine.flags").runtime.seed == 3


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("fsat", " (did you mean fast?)"),
        ("configs/fast.flags", " (did you mean fast?)"),
        ("../quickstart", " (did you mean quickstart?)"),
        ("no/such.flags", ""),
        ("", ""),
        ("\0", ""),
        (".", ""),
    ],
)
def test_other_names_end_in_one_line_with_the_shipped_ones(name, near, capsys):
    assert cli.main(["flowers17-tfdata", f"--flagfile={name}"]) == 2
    assert capsys.readouterr().err == (
        f"error: --flagfile must be a file or one of {', '.join(SHIPPED)}; "
        f"got {name!r}{near}\n"
    )


def test_a_missing_included_file_is_named_with_the_file_that_names_it(folder):
    (folder / "a.flags").write_text("--flagfile=lineer\n")
    with pytest.raises(ConfigError) as error:
        _parse("--flagfile=a.flags")
    assert str(error.value).endswith(
        "got 'lineer' in a.flags (did you mean linear?)"
    )


def test_files_that_include_themselves_are_refused(folder):
    (folder / "a.flags").write_text("--flagfile=x/b.flags\n")
    (folder / "x").mkdir()
    (folder / "x" / "b.flags").write_text("--flagfile=../a.flags\n")
    with pytest.raises(ConfigError) as error:
        _parse("--flagfile=a")
    assert str(error.value) == (
        f"--flagfile=../a.flags in {pathlib.Path('x/b.flags')} includes itself"
    )


def test_a_file_may_be_included_twice(folder):
    (folder / "a.flags").write_text("--flagfile=b\n--seed=1\n--flagfile=b\n")
    (folder / "b.flags").write_text("--seed=2\n")
    assert _parse("--flagfile=a").runtime.seed == 2


def test_what_cannot_be_read_ends_in_one_line(folder, capsys):
    (folder / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    assert cli.main(["flowers17-tfdata", "--flagfile=photo.jpg"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --flagfile can't be read: ")


def test_a_pipe_is_a_flag_file():
    # As `--flagfile=<(command)` is.
    reading, writing = os.pipe()
    os.write(writing, b"--seed=3\n")
    os.close(writing)
    assert _parse(f"--flagfile=/dev/fd/{reading}").runtime.seed == 3
    os.close(reading)


@pytest.mark.parametrize("form", ["--flagfile={}", "--flagfile {}"])
def test_other_flags_win_wherever_they_stand(folder, form):
    (folder / "a.flags").write_text("--seed=3\n--image_size=99\n")
    files = form.format("a.flags").split()
    for argv in (["--seed=7", *files], [*files, "--seed=7"]):
        config = _parse(*argv)
        assert (config.runtime.seed, config.input.image_size) == (7, 99)


def test_a_flag_file_without_a_name_takes_no_other_flag(capsys):
    assert cli.main(["flowers17-tfdata", "--seed=3", "--flagfile"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "--seed" not in line
