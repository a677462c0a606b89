"""The scripts of configs/cluster pass flags on and requeue saved runs."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import pytest
import yaml

from flowers17_tfdata import flags
from flowers17_tfdata.config.runtime import RuntimeConfig
from flowers17_tfdata.training import cluster

FOLDER = pathlib.Path(__file__).parents[1] / "configs" / "cluster"
BASH = shutil.which("bash")


def _put_on_path(monkeypatch, folder, **programs):
    for name, script in programs.items():
        (folder / name).write_text(f"#!{BASH}\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def _grace_secs():
    return RuntimeConfig().grace_secs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "requeued"), [(0, ""), (1, ""), (42, "requeue 17\n")]
)
def test_slurm_requeues_what_was_saved(tmp_path, monkeypatch, code, requeued):
    _put_on_path(
        monkeypatch,
        tmp_path,
        srun=f'printf "%s|" "$@"; exit {code}',
        scontrol=f'echo "$@" > {tmp_path}/said',
    )
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    result = subprocess.run(
        [BASH, FOLDER / "slurm.sbatch", "--workdir=a b", "--phase=train"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == code
    assert result.stdout == "python|main.py|--workdir=a b|--phase=train|"
    said = tmp_path / "said"
    assert (said.read_text() if said.exists() else "") == requeued


def test_slurm_gives_notice_in_time():
    lines = (FOLDER / "slurm.sbatch").read_text().splitlines()
    (signal,) = [line for line in lines if "--signal=" in line]
    name, _, seconds = signal.partition("=")[2].partition("@")
    assert name == "USR1"
    assert int(seconds) > _grace_secs()


@pytest.fixture
def job():
    jobset = yaml.safe_load((FOLDER / "jobset.yaml").read_text())
    (replicated,) = jobset["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


@pytest.mark.slow
def test_jobset_tells_each_pod_its_place(tmp_path, monkeypatch, job):
    told, given = tmp_path / "told", tmp_path / "given"
    script = f'echo "$TF_CONFIG" > {told}; echo "$@" > {given}'
    _put_on_path(monkeypatch, tmp_path, **{"flowers17-tfdata": script})
    (container,) = job["template"]["spec"]["containers"]
    (count,) = [
        e["value"] for e in container["env"] if e["name"] == "NUM_WORKERS"
    ]
    assert int(count) == job["parallelism"] == job["completions"]
    for index in range(int(count)):
        monkeypatch.setenv("NUM_WORKERS", count)
        monkeypatch.setenv("JOBSET_NAME", "flowers17")
        monkeypatch.setenv("JOB_COMPLETION_INDEX", str(index))
        subprocess.run([*container["command"], *container["args"]], check=True)
        monkeypatch.setenv("TF_CONFIG", told.read_text())
        resolver = cluster.find_cluster()
        assert resolver.cluster_spec().as_dict() == {
            "worker": [
                "flowers17-worker-0-0.flowers17:2222",
                "flowers17-worker-0-1.flowers17:2222",
            ]
        }
        assert (resolver.task_type, resolver.task_id) == ("worker", index)
    # The image holds no checkout.
    monkeypatch.chdir(tmp_path)
    config = flags.parse(["flowers17-tfdata", *given.read_text().split()])
    (mount,) = container["volumeMounts"]
    assert config.workdir.startswith(f"{mount['mountPath']}/")


def test_jobset_starts_again_what_was_saved(job):
    codes = [
        rule["onExitCodes"]["values"]
        for rule in job["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule and rule["action"] == "FailJob"
    ]
    assert codes == [[42]]
    pod = job["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > _grace_secs()
