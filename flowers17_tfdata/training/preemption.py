"""SIGTERM, SIGUSR1, and steps that hang: the end within a bounded time."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

from flowers17_tfdata.errors import Preempted

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether a signal has asked this process to save and stop.

    Args:
      agree: whether any worker of the run is asked to, from whether this one
        is: none stops while the others wait for it.
    """

    def __init__(self, agree: Callable[[bool], bool] = bool) -> None:
        self._agree = agree
        self._event = threading.Event()
        self.alive_at = time.monotonic()

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        """Asks the training to save and stop after the call it is in."""
        self._event.set()

    def alive(self) -> None:
        """Tells the watching thread that the training makes progress."""
        self.alive_at = time.monotonic()

    def check(self, where: str) -> None:
        """Raises `Preempted` if asked to stop, where nothing is to be saved.

        All workers call it at the same place.
        """
        if self._agree(self.requested):
            raise Preempted(f"{where}: the same command goes on from there")


@contextlib.contextmanager
def stop_on_signals(
    grace_secs: float,
    stall_secs: float = 0.0,
    agree: Callable[[bool], bool] = bool,
) -> Iterator[StopRequest]:
    """Turns SIGTERM and SIGUSR1 into a `StopRequest` while it is open.

    A second signal, or `grace_secs` seconds after the first, end the process
    with exit code 1 wherever it is: a training step that hangs in a collective
    never returns to Python, so a thread of its own watches. So do `stall_secs`
    seconds without a call of `StopRequest.alive`; 0: wait for ever.

    `agree` is the `StopRequest`'s.

    Outside of the main thread, where Python takes no signals, none is taken.
    """
    request = StopRequest(agree)
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
        target=_watch, args=(ours, request, grace_secs, stall_secs), daemon=True
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


@contextlib.contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Ends the process with 1 if the block takes longer.

    Even one that keeps Python's lock, so that no thread of Python's runs; thus
    without a line of ours, but with the place where it hung.
    """
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _watch(
    wakeups: socket.socket,
    request: StopRequest,
    grace_secs: float,
    stall_secs: float,
) -> None:
    while True:
        wait = None
        if stall_secs:
            wait = max(0.0, request.alive_at + stall_secs - time.monotonic())
        name = _next_signal(wakeups, wait)
        if name is not None:
            break
        if time.monotonic() >= request.alive_at + stall_secs:
            _end(
                f"no step in {stall_secs:g} s (--stall_timeout_secs): another "
                "worker hangs or is cut off"
            )
    if not name:
        return
    request.set()
    _say(
        f"{name}: saving a checkpoint and stopping after this step; at the "
        f"latest, or at a second signal, without one in {grace_secs:g} s"
    )
    name = _next_signal(wakeups, grace_secs)
    if name is None:
        _end(f"not stopped {grace_secs:g} s after the signal")
    if name:
        _end(f"a second signal, {name}")


def _next_signal(wakeups: socket.socket, timeout: float | None) -> str | None:
    """Returns a signal's name, '' (closed), or None after the timeout."""
    while True:
        ready, _, _ = select.select([wakeups], [], [], timeout)
        if not ready:
            return None
        numbers = wakeups.recv(64)
        if not numbers:
            return ""
        for number in numbers:
            # Python reports every signal that it handles, Ctrl-C too.
            if number in _SIGNALS:
                return signal.Signals(number).name


def _end(line: str) -> None:
    """Ends the process wherever its other threads are."""
    _say(f"error: {line}; stopped; the last checkpoint is kept")
    os._exit(1)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
