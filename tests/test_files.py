"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
import pathlib
import resource

import numpy as np
import pytest
import tensorflow as tf

from flowers17_tfdata import files
from flowers17_tfdata.errors import UserError


@pytest.mark.parametrize("moment", ["savez", "replace"])
def test_a_failed_write_keeps_the_old_file_and_says_why(
    tmp_path, monkeypatch, moment
):
    path = tmp_path / "x.npz"
    files.write_arrays(path, {"a": np.ones(3)})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np if moment == "savez" else os, moment, full)
    with pytest.raises(UserError, match=r"x.npz can't be written.*No space"):
        files.write_arrays(path, {"a": np.zeros(3)})
    assert os.listdir(tmp_path) == ["x.npz"]
    assert np.load(path)["a"].sum() == 3


def test_an_unfinished_block_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.txt"
    files.write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), files.whole_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "export"
    target.mkdir()
    (target / "old").write_text("")
    with files.whole_folder(target) as new:
        (new / "new").write_text("")
        assert (target / "old").exists()
    assert os.listdir(target) == ["new"]
    assert os.listdir(tmp_path) == ["export"]


def test_a_failed_replacement_restores_the_old_folder(tmp_path):
    target = tmp_path / "export"
    target.mkdir()
    (target / "old").write_text("")
    with pytest.raises(UserError), files.whole_folder(target) as new:
        new.rmdir()
    assert os.listdir(target) == ["old"]


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    with files.whole_folder(link) as new:
        (new / "x").write_text("")
    assert link.is_symlink() and (tmp_path / "real" / "x").exists()


def test_an_incomplete_last_line_is_left_out(tmp_path):
    path = tmp_path / "x.jsonl"
    assert files.read_json_lines(path) == []
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert files.read_json_lines(path) == [{"a": 1}, {"a": 2}]


def test_a_damaged_file_is_named(tmp_path):
    path = pathlib.Path(tmp_path / "x.json")
    path.write_text("{")
    with pytest.raises(UserError, match=r"x.json can't be read"):
        files.read_json(path)


def test_an_error_of_another_file_is_not_blamed_on_the_output(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match="photo"),
        files.whole_file(tmp_path / "x.csv"),
    ):
        pathlib.Path("no/such/photo.jpg").read_bytes()
    assert os.listdir(tmp_path) == []


def test_two_processes_may_write_the_same_folder(tmp_path):
    target = tmp_path / "export"
    with files.whole_folder(target) as one:
        (one / "a").write_text("")
        with files.whole_folder(target) as other:
            (other / "b").write_text("")
        assert os.listdir(target) == ["b"]
    assert os.listdir(target) == ["a"]
    assert os.listdir(tmp_path) == ["export"]


def test_a_folder_that_tensorflow_can_not_fill_is_named(tmp_path):
    target = tmp_path / "export"
    with pytest.raises(UserError) as caught, files.whole_folder(target) as new:
        raise tf.errors.ResourceExhaustedError(
            None,
            None,
            f"{{{{x /job:0}}}} {new}/part; No space left on device [Op:S]",
        )
    expected = f"{target} can't be written: No space left on device"
    assert str(caught.value) == expected
    assert os.listdir(tmp_path) == []
    # Memory is another matter.
    with (
        pytest.raises(tf.errors.ResourceExhaustedError),
        files.whole_folder(target),
    ):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when [Op:S]")


def test_lines_are_appended_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.jsonl"
    files.append_json_line(path, {"a": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The file takes a part of the line, as on a disk that is nearly full.
    resource.setrlimit(resource.RLIMIT_FSIZE, (12, before[1]))
    try:
        with pytest.raises(UserError, match=r"x\.jsonl can't be written"):
            files.append_json_line(path, {"a": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    files.append_json_line(path, {"a": 3})
    assert files.read_json_lines(path) == [{"a": 1}, {"a": 3}]


def test_a_failed_start_leaves_no_empty_folder(tmp_path):
    new, old = tmp_path / "runs" / "new", tmp_path / "old"
    old.mkdir()
    for folder in (new, old):
        with pytest.raises(KeyError), files.removed_if_empty(folder, "log"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "log").touch()
            raise KeyError
    assert (old / "log").exists() and not (tmp_path / "runs").exists()
    with pytest.raises(KeyError), files.removed_if_empty(new, "log"):
        new.mkdir(parents=True)
        (new / "audit").touch()
        raise KeyError
    with files.removed_if_empty(tmp_path / "kept", "log"):
        (tmp_path / "kept").mkdir()
    assert (new / "audit").exists() and (tmp_path / "kept").is_dir()
