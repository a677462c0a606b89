"""Which processes train together: from TF_CONFIG or from SLURM's variables."""

from __future__ import annotations

import json
import os
from typing import Any

import tensorflow as tf

from flowers17_tfdata.errors import ConfigError, one_line

# A thousand workers take 40 kB.
_MAX_TF_CONFIG_CHARS = 1 << 20
_JOBS = ("chief", "worker")

# Of SLURM jobs on one node: below the system's own (32768 on Linux), a range
# for each job.
_SLURM_FIRST_PORT = 10000
_SLURM_NUM_PORTS = 20000
_SLURM_PORTS_PER_JOB = 16


def find_cluster() -> tf.distribute.cluster_resolver.ClusterResolver | None:
    """Returns the cluster that the environment describes, or None.

    TF_CONFIG (Kubernetes operators and the local launcher set it) goes before
    SLURM's variables of a job step of several tasks.

    Raises:
      ConfigError: it is malformed; names the part.
    """
    if not os.environ.get("TF_CONFIG"):
        if os.environ.get("SLURM_STEP_NUM_TASKS", "1") == "1":
            return None
        # The one form that the strategy counts the GPUs of itself.
        os.environ["TF_CONFIG"] = _tf_config_of_slurm()
    _check_tf_config(os.environ["TF_CONFIG"])
    return tf.distribute.cluster_resolver.TFConfigClusterResolver()


def place(
    jobs: dict[str, list[str]], task_type: str, task_index: int
) -> tuple[int, int]:
    """Returns the number of workers, and which one a task is.

    The chief is worker 0, where there is one.
    """
    chiefs = len(jobs.get("chief", ()))
    count = chiefs + len(jobs.get("worker", ()))
    return count, task_index + (chiefs if task_type == "worker" else 0)


def own_place(
    resolver: tf.distribute.cluster_resolver.ClusterResolver,
) -> tuple[int, int]:
    """Returns the number of workers, and which one this process is."""
    return place(
        resolver.cluster_spec().as_dict(),
        resolver.task_type,
        resolver.task_id,
    )


def _check_tf_config(text: str) -> None:
    """Raises a `ConfigError` if TF_CONFIG is not what its guide says.

    https://www.tensorflow.org/guide/distributed_training#setting_up_the_tf_config_environment_variable
    """
    if len(text) > _MAX_TF_CONFIG_CHARS:
        raise ConfigError(
            f"TF_CONFIG must have at most {_MAX_TF_CONFIG_CHARS} characters; "
            f"it has {len(text)}"
        )
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"TF_CONFIG must be JSON ({one_line(error, 80)}); got "
            f"{one_line(text, 80)!r}"
        ) from error
    cluster, task = _member(value, "cluster"), _member(value, "task")
    unknown = set(cluster) - set(_JOBS)
    if unknown or not cluster:
        raise ConfigError(
            "TF_CONFIG: the jobs of 'cluster' must be chief and worker; got "
            f"{one_line(', '.join(sorted(cluster)) or 'none', 80)}"
        )
    addresses = [a for job in cluster.values() for a in _addresses(job)]
    if len(set(addresses)) != len(addresses):
        raise ConfigError("TF_CONFIG: an address is there twice")
    if len(cluster.get("chief", ())) > 1:
        raise ConfigError("TF_CONFIG: there must be one chief at most")
    task_type, index = task.get("type"), task.get("index")
    # TensorFlow takes numbers as strings too.
    if isinstance(index, str) and index.isascii() and index.isdigit():
        index = int(index)
    if not (
        isinstance(task_type, str)
        and task_type in cluster
        and type(index) is int
        and 0 <= index < len(cluster[task_type])
    ):
        raise ConfigError(
            "TF_CONFIG: 'task' must be the type and index of one of the "
            f"cluster's addresses; got {one_line(str(task), 80)}"
        )


def _member(value: Any, name: str) -> dict[str, Any]:
    member = value.get(name) if isinstance(value, dict) else None
    if not isinstance(member, dict):
        raise ConfigError(
            f"TF_CONFIG must have {name!r}, an object; got "
            f"{one_line(str(value), 80)}"
        )
    return member


def _addresses(job: Any) -> list[str]:
    good = isinstance(job, list) and all(
        isinstance(a, str) and _is_address(a) for a in job
    )
    if not good or not job:
        raise ConfigError(
            "TF_CONFIG: a job must be a list of 'host:port'; got "
            f"{one_line(str(job), 80)}"
        )
    return job


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(
        host
        and not set(host) & set(" \t\r\n/")
        and port.isascii()
        and port.isdigit()
        and len(port) <= 5
        and 0 < int(port) < 65536
    )


def _tf_config_of_slurm() -> str:
    """Returns the TF_CONFIG of the SLURM task that this process is."""
    job = os.environ.get("SLURM_JOB_ID", "0")
    number = int(job) if job.isascii() and job.isdigit() else 0
    slots = _SLURM_NUM_PORTS // _SLURM_PORTS_PER_JOB
    port = _SLURM_FIRST_PORT + number % slots * _SLURM_PORTS_PER_JOB
    try:
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            port_base=port,
            # SLURM itself hands the GPUs out; the resolver would ask
            # nvidia-smi, and knows no node without a GPU.
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
