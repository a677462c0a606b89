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


def set_precision(precision: str) -> str:
    """Sets the global dtype policy; call before a model is built.

    Args:
      precision: a policy, or `auto`, which chooses by the hardware:
        mixed_bfloat16 where matrices multiply faster in it (GPUs of compute
        capability 8 and up; CPUs with AMX or AVX512-BF16), as it needs no loss
        scaling; mixed_float16 on GPUs of capability 7 (tensor cores without
        bfloat16); else float32, as other CPUs emulate bfloat16, more slowly.

    Returns:
      The policy's name.
    """
    policy = _fastest_policy() if precision == "auto" else precision
    keras.config.set_dtype_policy(policy)
    return policy


def _fastest_policy() -> str:
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "mixed_bfloat16" if _BFLOAT16_CPUS & _cpu_flags() else "float32"
    details = map(tf.config.experimental.get_device_details, gpus)
    capability = min(d.get("compute_capability", (0, 0)) for d in details)
    if capability >= (8, 0):
        return "mixed_bfloat16"
    return "mixed_float16" if capability >= (7, 0) else "float32"


def _cpu_flags() -> set[str]:
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return set(text.partition("\nflags")[2].partition("\n")[0].split())
