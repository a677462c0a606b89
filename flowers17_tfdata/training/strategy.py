"""Devices and the distribution strategy."""

from __future__ import annotations

import tensorflow as tf

from flowers17_tfdata.config import RuntimeConfig
from flowers17_tfdata.errors import ConfigError

# Of one logical GPU, when one GPU is split to try replicas on it.
_LOGICAL_GPU_MEMORY_MB = 4096


def get_strategy(config: RuntimeConfig) -> tf.distribute.Strategy:
    """Configures the devices and builds the strategy.

    Must run before any other TensorFlow operation.

    Raises:
      ConfigError: the devices were already in use.
    """
    _set_threads(config)
    devices = tf.config.list_physical_devices("GPU")
    if config.num_virtual_devices:
        _split_device(config.num_virtual_devices, devices)
    else:
        _grow_memory(devices)
    kind = "GPU" if devices else "CPU"
    logical = tf.config.list_logical_devices(kind)
    # Mirroring one device gains nothing, and keeps the optimizer's update from
    # being compiled.
    if config.strategy == "default" or len(logical) == 1:
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy([device.name for device in logical])


def _set_threads(config: RuntimeConfig) -> None:
    threading = tf.config.threading
    for name in ("intra_op", "inter_op"):
        count = getattr(config, f"{name}_threads")
        try:
            if count:
                getattr(threading, f"set_{name}_parallelism_threads")(count)
        except RuntimeError as error:
            raise ConfigError(
                f"--{name}_threads={count} comes too late: TensorFlow already "
                "runs in this process"
            ) from error


def _grow_memory(gpus: list) -> None:
    """Leaves room for other programs; TensorFlow would take all memory."""
    for gpu in gpus:
        try:
            tf.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError:
            # A notebook already runs on the GPU: its choice stands.
            return


def _split_device(count: int, gpus: list) -> None:
    device = gpus[0] if gpus else tf.config.list_physical_devices("CPU")[0]
    memory = _LOGICAL_GPU_MEMORY_MB if gpus else None
    parts = [
        tf.config.LogicalDeviceConfiguration(memory_limit=memory)
        for _ in range(count)
    ]
    try:
        if gpus:
            tf.config.set_visible_devices(device, "GPU")
        tf.config.set_logical_device_configuration(device, parts)
    except RuntimeError as error:
        present = tf.config.list_logical_devices(device.device_type)
        if len(present) != count:
            raise ConfigError(
                f"--num_virtual_devices={count} comes too late: TensorFlow "
                f"already runs with {len(present)} devices in this process"
            ) from error
