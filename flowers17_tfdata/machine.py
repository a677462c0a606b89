"""The machine that the program runs on: CPU cores, memory, GPUs, versions."""

from __future__ import annotations

import os
import pathlib
import platform
from typing import Any

import psutil

import flowers17_tfdata

_OWN_GROUP = pathlib.Path("/proc/self/cgroup")
_GROUPS = pathlib.Path("/sys/fs/cgroup")


def num_cores() -> int:
    """Returns the number of CPU cores that this process may run on."""
    # os.sched_getaffinity doesn't exist on macOS and Windows.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory() -> int:
    """Returns the number of bytes that this process may still allocate.

    This is the smallest of what the machine has available and what the memory
    limits of the control groups around this process leave: those of a
    container or a batch job, version 1 or 2.
    """
    free: float = psutil.virtual_memory().available
    try:
        lines = _OWN_GROUP.read_text().splitlines()
    except OSError:
        # Only Linux has control groups.
        return int(free)
    for line in lines:
        # ID:CONTROLLERS:/PATH. Version 2 has one line, without controllers.
        _, controllers, path = line.split(":", 2)
        if not controllers:
            left = _left_by_group(
                _GROUPS, path, "memory.max", "memory.current", "inactive_file"
            )
        elif "memory" in controllers.split(","):
            left = _left_by_group(
                _GROUPS / "memory",
                path,
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        free = min(free, left)
    return max(0, int(free))


def _left_by_group(
    root: pathlib.Path, path: str, limit: str, used: str, inactive: str
) -> float:
    """Returns the bytes that a group and its parents leave; inf: no limit."""
    left, group = float("inf"), root / path.lstrip("/")
    for folder in (group, *group.parents):
        if not folder.is_relative_to(root):
            break
        try:
            allowed = float((folder / limit).read_text())
            taken = int((folder / used).read_text())
        except (OSError, ValueError):
            # No limit: the word max, or the root group, which has no files.
            continue
        # The page cache counts as used, but the kernel gives it up.
        left = min(left, allowed - taken + _statistic(folder, inactive))
    return left


def _statistic(group: pathlib.Path, name: str) -> int:
    try:
        rows = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return int(dict(row.split() for row in rows).get(name, 0))


def versions() -> dict[str, str]:
    """Returns the versions of the packages that results depend on."""
    # Imported here, as below: parts of the program run without TensorFlow.
    import cv2
    import keras
    import tensorflow as tf
    import tensorflow_datasets as tfds

    return {
        "flowers17_tfdata": flowers17_tfdata.__version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "tensorflow_datasets": tfds.__version__,
        "opencv": cv2.__version__,
    }


def hardware() -> dict[str, Any]:
    """Returns what the speed of a run depends on."""
    import tensorflow as tf

    details = tf.config.experimental.get_device_details
    return {
        "machine": platform.machine(),
        "processor": _processor_name(),
        "cpu_cores": num_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [
            details(gpu).get("device_name", "GPU")
            for gpu in tf.config.list_physical_devices("GPU")
        ],
    }


def _processor_name() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
