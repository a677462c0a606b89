"""Chooses the arithmetic that the hardware is fast in."""

from __future__ import annotations

import pathlib

import keras
import tensorflow as tf

# CPU features that multiply bfloat16 in hardware, as Linux names them. On two
# cores of an EPYC with AVX512-BF16, InceptionV3 folded, 299 pixels, images/s:
# forward 18.4 in float32, 33.3 in mixed_bfloat16; training above mixed2 8.0
# and 14.3.
_BFLOAT16_CPUS = {"amx_bf16", "avx512_bf16"}


def resolve_precision(precision: str) -> str:
    """Turns `auto` into a dtype policy by the hardware; keeps the rest.

    mixed_bfloat16 where matrices multiply faster in it (GPUs of compute
    capability 8 and up; CPUs with AMX or AVX512-BF16): it needs no loss
    scaling. mixed_float16 on GPUs of capability 7 (tensor cores without
    bfloat16). Else float32: on other CPUs bfloat16 is emulated and slower.
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
    return "mixed_bfloat16" if _BFLOAT16_CPUS & _cpu_flags() else "float32"


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


def uses_xla(xla: str) -> bool:
    """Resolves `--xla`: `auto` compiles on GPUs, and not on CPUs."""
    if xla == "auto":
        return bool(tf.config.list_physical_devices("GPU"))
    return xla == "on"
