"""Chooses the arithmetic that the hardware is fast in."""

from __future__ import annotations

import pathlib

import keras
import tensorflow as tf


def resolve_precision(precision: str) -> str:
    """Turns `auto` into a dtype policy by the hardware; keeps the rest.

    mixed_bfloat16 where matrices multiply faster in it (GPUs of compute
    capability 8 and up; CPUs with AMX): it needs no loss scaling.
    mixed_float16 on GPUs of capability 7 (tensor cores without bfloat16).
    Else float32: on a CPU without AMX bfloat16 is emulated and slower.
    """
    if precision != "auto":
        return precision
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        capability = min(
            tf.config.experimental.get_device_details(gpu).get(
                "compute_capability", (0, 0)
            )
            for gpu in gpus
        )
        if capability >= (8, 0):
            return "mixed_bfloat16"
        return "mixed_float16" if capability >= (7, 0) else "float32"
    return "mixed_bfloat16" if "amx_bf16" in _cpu_flags() else "float32"


def _cpu_flags() -> set[str]:
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    for line in text.splitlines():
        if line.startswith("flags"):
            return set(line.split())
    return set()


def set_precision(precision: str) -> str:
    """Sets the global dtype policy; call before a model is built.

    Returns:
      The policy's name, with `auto` resolved.
    """
    policy = resolve_precision(precision)
    keras.config.set_dtype_policy(policy)
    return policy
