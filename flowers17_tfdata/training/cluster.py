"""Which processes train together, by TF_CONFIG or by SLURM's variables."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import tensorflow as tf

from flowers17_tfdata.errors import ConfigError, one_line

_JOBS = {"chief", "worker"}
_ADDRESS = re.compile(r"[^\s/]+:([0-9]{1,5})")

# The ports of SLURM jobs on one node lie below the system's own (from 32768 on
# Linux), a range for each job.
_SLURM_FIRST_PORT = 10000
_SLURM_NUM_PORTS = 20000
_SLURM_PORTS_PER_JOB = 16


def find_cluster() -> tf.distribute.cluster_resolver.ClusterResolver | None:
    """Returns the cluster that the environment describes, or None.

    TF_CONFIG, which Kubernetes operators and the local launcher set, takes
    precedence over SLURM's variables of a job step of several tasks.

    Raises:
      ConfigError: the variables are malformed; names the part.
    """
    if not os.environ.get("TF_CONFIG"):
        if os.environ.get("SLURM_STEP_NUM_TASKS", "1") == "1":
            return None
        # Only with TF_CONFIG does the strategy count the GPUs by itself.
        os.environ["TF_CONFIG"] = _tf_config_of_slurm()
    _check_tf_config(os.environ["TF_CONFIG"])
    return tf.distribute.cluster_resolver.TFConfigClusterResolver()


def place(
    resolver: tf.distribute.cluster_resolver.ClusterResolver,
) -> tuple[int, int]:
    """Returns the number of workers, and the index of this process among them.

    If there is a chief, it is worker 0.
    """
    jobs = resolver.cluster_spec().as_dict()
    num_chiefs = len(jobs.get("chief", ()))
    before = num_chiefs if resolver.task_type == "worker" else 0
    return sum(map(len, jobs.values())), resolver.task_id + before


def _check_tf_config(text: str) -> None:
    """Raises a `ConfigError` if TF_CONFIG is not as TensorFlow's guide says.

    https://www.tensorflow.org/guide/distributed_training#setting_up_the_tf_config_environment_variable
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        _require(False, f" must be JSON ({one_line(error, 80)})", text)
    for name in ("cluster", "task"):
        holds = isinstance(value, dict) and isinstance(value.get(name), dict)
        _require(holds, f" must have {name!r}, an object", value)
    cluster, task = value["cluster"], value["task"]
    _require(
        cluster and set(cluster) <= _JOBS,
        ": the jobs of 'cluster' must be chief and worker",
        ", ".join(sorted(cluster)) or "none",
    )
    for job in cluster.values():
        _require(
            isinstance(job, list) and job and all(map(_is_address, job)),
            ": a job must be a list of 'host:port'",
            job,
        )
    addresses = [address for job in cluster.values() for address in job]
    _require(
        len(set(addresses)) == len(addresses),
        ": the addresses must differ",
        addresses,
    )
    chiefs = cluster.get("chief", [])
    _require(len(chiefs) <= 1, ": there must be at most one chief", chiefs)
    task_type, index = task.get("type"), task.get("index")
    # TensorFlow also takes numbers as strings.
    if isinstance(index, str) and re.fullmatch("[0-9]{1,9}", index):
        index = int(index)
    _require(
        isinstance(task_type, str)
        and type(index) is int
        and 0 <= index < len(cluster.get(task_type, ())),
        ": 'task' must be the type and index of one of the cluster's addresses",
        task,
    )


def _require(holds: Any, rule: str, value: Any) -> None:
    if not holds:
        raise ConfigError(f"TF_CONFIG{rule}; got {one_line(str(value), 80)}")


def _is_address(value: Any) -> bool:
    match = _ADDRESS.fullmatch(value) if isinstance(value, str) else None
    return match is not None and 0 < int(match[1]) < 65536


def _tf_config_of_slurm() -> str:
    """Returns the TF_CONFIG of the SLURM task that this process is."""
    slots = _SLURM_NUM_PORTS // _SLURM_PORTS_PER_JOB
    try:
        slot = int(os.environ.get("SLURM_JOB_ID", 0)) % slots
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            port_base=_SLURM_FIRST_PORT + slot * _SLURM_PORTS_PER_JOB,
            # SLURM itself assigns the GPUs. The resolver would ask nvidia-smi,
            # which fails on nodes without a GPU.
            gpus_per_node=_SLURM_PORTS_PER_JOB,
            gpus_per_task=1,
            auto_set_gpu=False,
        )
        jobs = resolver.cluster_spec().as_dict()
        task_type, task_index = resolver.get_task_info()
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise ConfigError(
            "SLURM's variables don't describe a cluster of at most "
            f"{_SLURM_PORTS_PER_JOB} tasks a node ({one_line(error, 120)}); "
            "start the job's step with srun, or pass --strategy=default"
        ) from error
    task = {"type": task_type, "index": task_index}
    return json.dumps({"cluster": jobs, "task": task})
