"""Other processes of this program: at once, as one cluster's, or in turn.

Without TensorFlow: the parent only starts them, passes signals on and waits.
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

# What takes a command line's flags in a process of its own.
PROGRAM: Sequence[str] = (sys.executable, "-m", "flowers17_tfdata")

_FORWARDED = (signal.SIGTERM, signal.SIGUSR1)
_POLL_SECS = 0.1
# The others notice a lost worker in seconds; then they are killed.
_SECS_AFTER_FAILURE = 60.0


def launch(
    arguments: Sequence[str],
    num_workers: int,
    program: Sequence[str] = PROGRAM,
) -> int:
    """Runs a command line as the workers of one cluster on loopback.

    SIGTERM and SIGUSR1 go on to all of them.

    Args:
      arguments: flags of the command line, without the program's name.
      num_workers: how many.
      program: that takes the arguments.

    Returns:
      0 if all ended so, else the exit code of the first that did not (1 if a
      signal killed it).
    """
    addresses = [f"localhost:{port}" for port in _free_ports(num_workers)]
    # The last one counts, wherever the first one stands.
    command = [*program, *arguments, "--launch_local=0"]
    workers = []
    for index in range(num_workers):
        task = {"type": "worker", "index": index}
        tf_config = {"cluster": {"worker": addresses}, "task": task}
        environment = os.environ | {"TF_CONFIG": json.dumps(tf_config)}
        workers.append(subprocess.Popen(command, env=environment))
    try:
        with _forwarding(workers):
            return _wait(workers)
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
                worker.wait()


def run_in_turn(commands: Iterable[Sequence[str]]) -> int:
    """Runs one command after another, as long as they succeed.

    SIGTERM and SIGUSR1 go on to the one that runs; no other follows.

    Returns:
      0 if all ended so; 42 if a signal came in between, or killed one that had
      nothing to save; else the exit code of the first that failed (1 if
      something else killed it).
    """
    running: list[subprocess.Popen] = []
    with _forwarding(running) as received:
        for command in commands:
            if received:
                _say(
                    f"stopped: {_name(received[-1])}, between two runs: the "
                    "same command goes on from there"
                )
                return Preempted.exit_code
            # Else a line of ours may come after those of the process.
            sys.stdout.flush()
            running[:] = [subprocess.Popen(command)]
            if received:
                # It came before there was one to send it to.
                running[0].send_signal(received[-1])
            try:
                code = running[0].wait()
            finally:
                if running[0].poll() is None:
                    running[0].kill()
                    running[0].wait()
            if code < 0:
                _say(f"killed by {_name(-code)}")
                return Preempted.exit_code if -code in received else 1
            if code:
                return code
    return 0


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        # All at once, so that they differ.
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("localhost", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def _forwarding(workers: Sequence[subprocess.Popen]) -> Iterator[list[int]]:
    """Passes signals on; yields the list of those that have come."""
    received = []

    def forward(number, _) -> None:
        received.append(number)
        for worker in workers:
            worker.send_signal(number)

    earlier = {s: signal.signal(s, forward) for s in _FORWARDED}
    try:
        yield received
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


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
                _say(f"worker {index}: killed by {_name(-ended)}")
            if ended and not code:
                code = ended if ended > 0 else 1
                deadline = time.monotonic() + _SECS_AFTER_FAILURE
    for index in running:
        _say(
            f"worker {index}: killed, {_SECS_AFTER_FAILURE:g} s after another "
            "failed"
        )
    return code


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
