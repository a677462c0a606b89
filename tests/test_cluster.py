"""How a run finds its workers, and which settings are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from flowers17_tfdata.config.runtime import RuntimeConfig
from flowers17_tfdata.errors import ConfigError
from flowers17_tfdata.training import cluster, strategy

TWO = {"worker": ["a:1", "b:2"]}


def _config(jobs, task_type="worker", index=0) -> str:
    task = {"type": task_type, "index": index}
    return json.dumps({"cluster": jobs, "task": task})


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch):
    for name in list(os.environ):
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)


def test_none_without_variables():
    assert cluster.find_cluster() is None


@pytest.mark.parametrize("index", [1, "1"])
def test_tf_config(monkeypatch, index):
    # Kubernetes operators add members that we don't read.
    value = json.loads(_config(TWO, index=index)) | {"environment": "cloud"}
    monkeypatch.setenv("TF_CONFIG", json.dumps(value))
    resolver = cluster.find_cluster()
    assert resolver.cluster_spec().as_dict() == TWO
    assert (resolver.task_type, resolver.task_id) == ("worker", 1)


@pytest.mark.parametrize(
    ("jobs", "task_type", "index", "place"),
    [
        (TWO, "worker", 1, (2, 1)),
        ({"chief": ["c:1"]} | TWO, "chief", 0, (3, 0)),
        ({"chief": ["c:1"]} | TWO, "worker", 1, (3, 2)),
    ],
)
def test_place(monkeypatch, jobs, task_type, index, place):
    monkeypatch.setenv("TF_CONFIG", _config(jobs, task_type, index))
    assert cluster.place(cluster.find_cluster()) == place


@pytest.mark.parametrize(
    "text, expected",
    [
        ("{", "must be JSON"),
        ("[" * 100_000, "must be JSON"),
        ("[]", "must have 'cluster', an object"),
        ("{}", "must have 'cluster', an object"),
        ('{"cluster": {"worker": ["a:1"]}}', "must have 'task', an object"),
        (_config({}), "must be chief and worker; got none"),
        (_config(TWO | {"ps": ["c:1"]}), "must be chief and worker; got ps"),
        (_config({"worker": "a:1"}), "a list of 'host:port'; got a:1"),
        (_config({"worker": []}), "a list of 'host:port'"),
        (_config({"worker": [1]}), "a list of 'host:port'"),
        (_config({"worker": ["a"]}), "a list of 'host:port'"),
        (_config({"worker": [":1"]}), "a list of 'host:port'"),
        (_config({"worker": ["a:0"]}), "a list of 'host:port'"),
        (_config({"worker": ["a:65536"]}), "a list of 'host:port'"),
        (_config({"worker": ["a b:1"]}), "a list of 'host:port'"),
        (_config({"worker": ["a:1", "a:1"]}), "the addresses must differ"),
        (_config(TWO | {"chief": ["c:1", "d:1"]}), "at most one chief"),
        (_config(TWO, index=2), "'task' must be the type and index of one"),
        (_config(TWO, index=-1), "'task' must be the type and index of one"),
        (_config(TWO, index=True), "'task' must be the type and index of one"),
        (_config(TWO, index=None), "'task' must be the type and index of one"),
        (_config(TWO, "chief"), "'task' must be the type and index of one"),
        (_config(TWO, ["worker"]), "'task' must be the type and index of one"),
    ],
)
def test_malformed_tf_config_gets_one_line(monkeypatch, text, expected):
    # Not setenv: some values are longer than the system allows.
    monkeypatch.setattr(os, "environ", {"TF_CONFIG": text})
    with pytest.raises(ConfigError, match="TF_CONFIG") as error:
        cluster.find_cluster()
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_multi_worker_needs_a_cluster():
    with pytest.raises(ConfigError, match=r"needs TF_CONFIG.*--launch_local"):
        strategy.get_strategy(RuntimeConfig(strategy="multi_worker"))


def test_one_worker_in_tf_config_is_an_ordinary_run(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", _config({"worker": ["a:1"]}))
    assert strategy.find_resolver(RuntimeConfig()) is None
    assert strategy.find_resolver(RuntimeConfig(strategy="multi_worker"))


def _slurm(monkeypatch, index, **variables):
    values = {
        "SLURM_STEP_NUM_TASKS": "3",
        "SLURM_STEP_NODELIST": "node[7-8]",
        "SLURM_STEP_TASKS_PER_NODE": "2,1",
        "SLURM_PROCID": str(index),
        "SLURM_JOB_ID": "1234",
    }
    for name, value in (values | variables).items():
        monkeypatch.setenv(name, value)


def test_slurm(monkeypatch):
    _slurm(monkeypatch, 2)
    # It is undone afterwards.
    monkeypatch.setenv("TF_CONFIG", "")
    resolver = cluster.find_cluster()
    addresses = resolver.cluster_spec().as_dict()["worker"]
    assert [a.partition(":")[0] for a in addresses] == ["node7"] * 2 + ["node8"]
    assert len(set(addresses)) == 3
    ports = {int(a.partition(":")[2]) for a in addresses}
    assert all(10000 <= port < 30016 for port in ports)
    assert (resolver.task_type, resolver.task_id) == ("worker", 2)
    # Another job on the same nodes uses other ports.
    _slurm(monkeypatch, 2, SLURM_JOB_ID="1235", TF_CONFIG="")
    others = cluster.find_cluster().cluster_spec().as_dict()["worker"]
    assert not set(others) & set(addresses)


def test_malformed_slurm_gets_one_line(monkeypatch):
    _slurm(monkeypatch, 0, SLURM_STEP_TASKS_PER_NODE="many")
    with pytest.raises(ConfigError, match="SLURM's variables"):
        cluster.find_cluster()


@pytest.mark.slow
def test_launcher_passes_the_exit_code_on():
    command = [sys.executable, "-m", "flowers17_tfdata", "--launch_local=2"]
    for flags, code in ((["--help"], 0), (["--image_size=1"], 2)):
        result = subprocess.run(
            [*command, *flags], capture_output=True, text=True, timeout=60
        )
        assert result.returncode == code, result.stderr
