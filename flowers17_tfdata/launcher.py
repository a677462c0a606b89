"""Starts this program in other processes: as one cluster, or in turn.

Without TensorFlow: the parent starts them, passes signals on and waits.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence

from flowers17_tfdata.errors import Preempted

# The command that takes this program's flags in a process of its own.
PROGRAM: Sequence[str] = (sys.executable, "-m", "flowers17_tfdata")

_FORWARDED = (signal.SIGTERM, signal.SIGUSR1)
_POLL_SECS = 0.1
# The others notice a lost worker in seconds; then they are killed.
_SECS_AFTER_FAILURE = 60.0


def is_in_cluster() -> bool:
    """Whether the environment names other workers.

    It reads the variables that `training.cluster` does, which needs TensorFlow.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    return bool(os.environ.get("TF_CONFIG")) or tasks != "1"


def launch(arguments: Sequence[str], num_workers: int) -> int:
    """Runs a command line as the workers of one cluster on loopback.

    SIGTERM and SIGUSR1 are passed on to all of them.

    Args:
      arguments: the flags, without the program's name.
      num_workers: the number of processes.

    Returns:
      0 if all workers returned 0, else the exit code of the first that did not
      (1 if a signal killed it).
    """
    addresses = [f"localhost:{port}" for port in _free_ports(num_workers)]
    # The last value of a flag counts.
    command = [*PROGRAM, *arguments, "--launch_local=0"]
    workers: list[subprocess.Popen] = []
    with _forwarding(workers):
        for index in range(num_workers):
            task = {"type": "worker", "index": index}
            tf_config = {"cluster": {"worker": addresses}, "task": task}
            environment = os.environ | {"TF_CONFIG": json.dumps(tf_config)}
            workers.append(subprocess.Popen(command, env=environment))
        return _wait(workers)


def run_in_turn(commands: Iterable[Sequence[str]]) -> int:
    """Runs one command after another, as long as they succeed.

    SIGTERM and SIGUSR1 are passed on to the one that runs; no other follows.

    Returns:
      0 if all returned 0; 42 if a signal came between two of them, or killed
      one that had nothing to save; else the exit code of the first that failed
      (1 if another signal killed it).
    """
    running: list[subprocess.Popen] = []
    with _forwarding(running) as received:
        for command in commands:
            if received:
                _say(
                    f"stopped by {received[-1].name} between two runs: run "
                    "the same command to continue"
                )
                return Preempted.exit_code
            # Otherwise a line of ours may appear after those of the process.
            sys.stdout.flush()
            running[:] = [subprocess.Popen(command)]
            if received:
                # The signal came before there was a process to pass it on to.
                running[0].send_signal(received[-1])
            code = running[0].wait()
            if code < 0:
                _say(f"killed by {signal.Signals(-code).name}")
                return Preempted.exit_code if -code in received else 1
            if code:
                return code
    return 0


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        # All open at once, so that they differ.
        sockets = [
            stack.enter_context(socket.create_server(("localhost", 0)))
            for _ in range(count)
        ]
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def _forwarding(
    processes: Sequence[subprocess.Popen],
) -> Iterator[list[signal.Signals]]:
    """Passes signals on to processes; kills those that run at the end.

    Yields:
      The signals that have come so far.
    """
    received = []

    def forward(number, _) -> None:
        received.append(signal.Signals(number))
        for process in processes:
            process.send_signal(number)

    earlier = {s: signal.signal(s, forward) for s in _FORWARDED}
    try:
        yield received
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
        for process in processes:
            process.kill()
            process.wait()


def _wait(workers: Sequence[subprocess.Popen]) -> int:
    code, deadline = 0, float("inf")
    running = dict(enumerate(workers))
    while running and time.monotonic() < deadline:
        time.sleep(_POLL_SECS)
        for index, worker in list(running.items()):
            ended = worker.poll()
            if ended is None:
                continue
            del running[index]
            if ended < 0:
                _say(f"worker {index}: killed by {signal.Signals(-ended).name}")
            if ended and not code:
                code = max(ended, 1)
                deadline = time.monotonic() + _SECS_AFTER_FAILURE
    for index in running:
        _say(
            f"worker {index}: killed, {_SECS_AFTER_FAILURE:g} s after another "
            "failed"
        )
    return code


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
