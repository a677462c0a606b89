"""SIGTERM and SIGUSR1: save and go, within a bounded time."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterator

from flowers17_tfdata.errors import Preempted

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether a signal has asked this process to save and stop."""

    def __init__(self) -> None:
        self._event = threading.Event()

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        """Asks the training to save and stop after the call it is in."""
        self._event.set()

    def check(self, where: str) -> None:
        """Raises `Preempted` if asked to stop, where nothing is to be saved."""
        if self.requested:
            raise Preempted(f"{where}: the same command goes on from there")


@contextlib.contextmanager
def stop_on_signals(grace_secs: float) -> Iterator[StopRequest]:
    """Turns SIGTERM and SIGUSR1 into a `StopRequest` while it is open.

    A second signal, or `grace_secs` seconds after the first, end the process
    with exit code 1 wherever it is: a training step that hangs in a collective
    never returns to Python, so a thread of its own watches.

    Outside of the main thread, where Python takes no signals, none is taken.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    ours, theirs = socket.socketpair()
    # Python wants it so: a signal handler must never wait.
    theirs.setblocking(False)
    earlier_fd = signal.set_wakeup_fd(theirs.fileno())
    # Only so that Python writes the signal's number to the socket.
    handlers = {s: signal.signal(s, lambda *_: None) for s in _SIGNALS}
    watcher = threading.Thread(
        target=_watch, args=(ours, request, grace_secs), daemon=True
    )
    watcher.start()
    try:
        yield request
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(earlier_fd)
        theirs.close()
        watcher.join()
        ours.close()


def _watch(
    wakeups: socket.socket, request: StopRequest, grace_secs: float
) -> None:
    name = _next_signal(wakeups, None)
    if not name:
        return
    request.set()
    _say(
        f"{name}: saving a checkpoint and stopping after this step; at the "
        f"latest, or at a second signal, without one in {grace_secs:g} s"
    )
    name = _next_signal(wakeups, grace_secs)
    if name:
        _say(f"error: {name}: stopped; the last checkpoint is kept")
        os._exit(1)


def _next_signal(wakeups: socket.socket, timeout: float | None) -> str:
    """Returns what arrived first: a signal, the timeout, or '' (closed)."""
    while True:
        ready, _, _ = select.select([wakeups], [], [], timeout)
        if not ready:
            return f"not stopped {timeout:g} s after the signal"
        numbers = wakeups.recv(64)
        if not numbers:
            return ""
        for number in numbers:
            # Python reports every signal that it handles, Ctrl-C too.
            if number in _SIGNALS:
                return signal.Signals(number).name


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
