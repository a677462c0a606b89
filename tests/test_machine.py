"""Free memory: the machine's, or that of the process's control groups."""

from __future__ import annotations

import pathlib
import types

import psutil
import pytest

from flowers17_tfdata import machine


def _set_memory(monkeypatch, available, files):
    monkeypatch.setattr(
        psutil,
        "virtual_memory",
        lambda: types.SimpleNamespace(available=available),
    )

    def read_text(path):
        try:
            return files[str(path)]
        except KeyError:
            raise FileNotFoundError(path) from None

    monkeypatch.setattr(pathlib.Path, "read_text", read_text)


def _group(path, limit, used=None, inactive=None):
    files = {f"/sys/fs/cgroup{path}/memory.max": f"{limit}\n"}
    if inactive is not None:
        statistics = f"anon 5\ninactive_file {inactive}\n"
        files[f"/sys/fs/cgroup{path}/memory.stat"] = statistics
    if used is not None:
        files[f"/sys/fs/cgroup{path}/memory.current"] = f"{used}\n"
    return files


@pytest.mark.parametrize(
    ("own", "groups", "expected"),
    [
        (None, {}, 1000),
        ("/", {}, 1000),
        ("/", _group("", "max", 900), 1000),
        ("/", _group("", 700, 300), 400),
        ("/", _group("", 9000, 300), 1000),
        ("/", _group("", 700), 1000),
        ("/job/step", _group("/job/step", 700, 300), 400),
        (
            "/job/step",
            _group("/job/step", "max", 300) | _group("/job", 700, 350),
            350,
        ),
        ("/job/step", _group("/other", 700, 300), 1000),
        ("/", _group("", 700, 300, inactive=250), 650),
        ("/", _group("", 700, 900), 0),
    ],
    ids=[
        "no groups",
        "the root",
        "no limit",
        "limit",
        "high limit",
        "usage unknown",
        "nested",
        "limit above",
        "another group's limit",
        "page cache",
        "over its limit",
    ],
)
def test_free_memory_honours_control_groups(monkeypatch, own, groups, expected):
    files = dict(groups)
    if own:
        files["/proc/self/cgroup"] = f"0::{own}\n"
    _set_memory(monkeypatch, 1000, files)
    assert machine.free_memory() == expected


def test_free_memory_honours_version_1_groups(monkeypatch):
    folder = "/sys/fs/cgroup/memory/job"
    files = {
        "/proc/self/cgroup": "4:memory,cpu:/job\n1:pids:/job\n0::/\n",
        f"{folder}/memory.limit_in_bytes": "800\n",
        f"{folder}/memory.usage_in_bytes": "500\n",
        f"{folder}/memory.stat": "cache 9\ntotal_inactive_file 100\n",
    }
    _set_memory(monkeypatch, 1000, files)
    assert machine.free_memory() == 400


def test_free_memory_of_this_machine():
    total = psutil.virtual_memory().total
    assert 0 < machine.free_memory() < total
