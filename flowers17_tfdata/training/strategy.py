"""Devices and the distribution strategy."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

import tensorflow as tf

from flowers17_tfdata.config.runtime import RuntimeConfig
from flowers17_tfdata.errors import ConfigError, one_line
from flowers17_tfdata.training import cluster, preemption

# The memory of each logical GPU when one GPU is split to try replicas on it.
_LOGICAL_GPU_MEMORY_MB = 4096


def get_strategy(config: RuntimeConfig) -> tf.distribute.Strategy:
    """Configures the devices and builds the strategy.

    Must run before any other TensorFlow operation.

    Raises:
      ConfigError: the devices were already in use; the cluster that the
        environment describes is malformed, or there is none for
        `--strategy=multi_worker`.
    """
    if config.deterministic:
        # All randomness is seeded in any case; this selects the kernels.
        tf.config.experimental.enable_op_determinism()
    resolver = find_resolver(config)
    if resolver is not None:
        return _multi_worker(config, resolver)
    gpus = tf.config.list_physical_devices("GPU")
    if config.num_virtual_devices:
        _split_device(config.num_virtual_devices, gpus)
    else:
        _grow_memory(gpus)
    logical = tf.config.list_logical_devices("GPU" if gpus else "CPU")
    # Mirroring a single device gains nothing, and keeps the optimizer's update
    # from being compiled.
    if config.strategy == "default" or len(logical) == 1:
        return tf.distribute.get_strategy()
    return _mirrored(tuple(device.name for device in logical))


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    """Returns the strategy on these devices, one for the whole process.

    A second one would reuse the keys of the first one's collectives, for which
    TensorFlow remembers other shapes.
    """
    return tf.distribute.MirroredStrategy(list(devices))


def find_resolver(
    config: RuntimeConfig,
) -> tf.distribute.cluster_resolver.ClusterResolver | None:
    """Returns the cluster to train on; None: this machine alone."""
    if config.strategy not in ("auto", "multi_worker"):
        return None
    resolver = cluster.find_cluster()
    if config.strategy == "auto":
        alone = resolver is None or cluster.place(resolver)[0] == 1
        return None if alone else resolver
    if resolver is None:
        raise ConfigError(
            "--strategy=multi_worker needs TF_CONFIG, or SLURM's variables "
            "of a step with several tasks; neither is set (to try it on "
            "one machine: --launch_local=2)"
        )
    return resolver


def _multi_worker(
    config: RuntimeConfig,
    resolver: tf.distribute.cluster_resolver.ClusterResolver,
) -> tf.distribute.Strategy:
    if config.num_virtual_devices > 1:
        raise ConfigError(
            "--num_virtual_devices goes with one worker; got "
            f"{config.num_virtual_devices} with --strategy=multi_worker"
        )
    count, index = cluster.place(resolver)
    seconds = config.stall_timeout_secs
    jobs = one_line(str(resolver.cluster_spec().as_dict()))
    print(
        f"worker {index}: waiting for all {count} workers; ends with 1 after "
        f"{seconds:g} s (--stall_timeout_secs): {jobs}",
        file=sys.stderr,
        flush=True,
    )
    with _ended_by_signals(), _ended_after(seconds, _addresses(resolver)):
        _grow_memory(tf.config.list_physical_devices("GPU"))
        return tf.distribute.MultiWorkerMirroredStrategy(resolver)


def _addresses(
    resolver: tf.distribute.cluster_resolver.ClusterResolver,
) -> list[str]:
    jobs = resolver.cluster_spec().as_dict()
    return [address for job in sorted(jobs) for address in jobs[job]]


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Lets Ctrl-C and SIGTERM end the process while TensorFlow waits.

    It holds Python's global lock meanwhile, so that a handler in Python would
    never run, and replaces the handler of SIGTERM by one that only sets a
    flag. So Ctrl-C keeps the system's handler, and SIGTERM is held back: the
    process of `_ended_after` sees it and sends Ctrl-C instead.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with preemption.sigterm_held():
        before = signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
            # This program doesn't use TensorFlow's.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


# Waits for its standard input to close. If SIGTERM is pending in its parent, it
# ends that; only Linux shows it. If the wait takes too long, it names the
# addresses where nobody listens.
_WATCH = """
import os, select, signal, socket, sys, time
parent, seconds, *addresses = sys.argv[1:]
until = time.monotonic() + float(seconds)

def is_terminated():
    try:
        lines = open(f"/proc/{parent}/status").read().splitlines()
    except OSError:
        return False
    pending = [line.split()[1] for line in lines if line.startswith("ShdPnd")]
    return any(int(p, 16) >> (signal.SIGTERM - 1) & 1 for p in pending)

def left():
    return max(0.0, until - time.monotonic())

while not select.select([sys.stdin], [], [], min(0.2, left()))[0]:
    if is_terminated():
        print("interrupted: SIGTERM in the wait for workers", file=sys.stderr)
        os.kill(int(parent), signal.SIGINT)
        break
    if left():
        continue
    missing = []
    for address in addresses:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), 1).close()
        except OSError:
            missing.append(address)
    names = ", ".join(missing) or "none, all addresses accept connections"
    print(
        f"error: the workers are not complete after {seconds} s "
        f"(--stall_timeout_secs); missing: {names}",
        file=sys.stderr,
    )
    break
"""


@contextlib.contextmanager
def _ended_after(seconds: float, addresses: Sequence[str]) -> Iterator[None]:
    """Ends the process with 1 and one line if the block takes longer.

    Args:
      seconds: the time to wait for the other workers.
      addresses: `host:port` of each worker.
    """
    # No Python thread could do either; see `_ended_by_signals`.
    process = str(os.getpid()), f"{seconds:g}"
    watch = subprocess.Popen(
        [sys.executable, "-I", "-c", _WATCH, *process, *addresses],
        stdin=subprocess.PIPE,
        # Ctrl-C in a terminal is for this process alone.
        start_new_session=True,
    )
    assert watch.stdin is not None
    # The process that watches needs a second per worker, and more to find the
    # address of a name that doesn't exist.
    last = seconds + 5 + 2 * len(addresses)
    with open(os.devnull, "w") as null:
        faulthandler.dump_traceback_later(last, exit=True, file=null)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            watch.stdin.close()
            watch.wait()


def _grow_memory(gpus: list) -> None:
    """Leaves room for other programs; TensorFlow would take all memory."""
    for gpu in gpus:
        try:
            tf.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError:
            # The GPU is in use already, in a notebook: its choice stands.
            return


def _split_device(count: int, gpus: list) -> None:
    device = gpus[0] if gpus else tf.config.list_physical_devices("CPU")[0]
    part = tf.config.LogicalDeviceConfiguration(
        memory_limit=_LOGICAL_GPU_MEMORY_MB if gpus else None
    )
    try:
        if gpus:
            tf.config.set_visible_devices(device, "GPU")
        tf.config.set_logical_device_configuration(device, [part] * count)
    except RuntimeError as error:
        present = tf.config.list_logical_devices(device.device_type)
        if len(present) != count:
            raise ConfigError(
                f"--num_virtual_devices={count} comes too late: TensorFlow "
                f"already runs with {len(present)} devices in this process"
            ) from error
