"""Ends the process within bounded time: at signals, and when a step hangs."""

from __future__ import annotations

import contextlib
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
      agree: returns whether any worker of the run is asked to stop, given
        whether this one is. All workers stop together, as none can train
        without the others.
    """

    def __init__(self, agree: Callable[[bool], bool] = bool) -> None:
        self._agree = agree
        self.requested = False
        self.alive_at = time.monotonic()

    def alive(self) -> None:
        """Tells the watching thread that the training makes progress."""
        self.alive_at = time.monotonic()

    def check(self, where: str) -> None:
        """Raises `Preempted` if asked to stop, where everything is saved.

        All workers call it at the same place.
        """
        if self._agree(self.requested):
            raise Preempted(f"{where}: run the same command to continue")


@contextlib.contextmanager
def stop_on_signals(
    grace_secs: float,
    stall_secs: float = 0.0,
    agree: Callable[[bool], bool] = bool,
) -> Iterator[StopRequest]:
    """Turns SIGTERM and SIGUSR1 into a `StopRequest` while it is open.

    A second signal ends the process with exit code 1 wherever it is, and so do
    `grace_secs` seconds after the first. A training step that hangs in a
    collective never returns to Python, so a thread of its own watches.

    Outside of the main thread, where Python can't handle signals, none is.

    Args:
      grace_secs: the time to save and stop after a signal, seconds.
      stall_secs: the process also ends with 1 after this time without a call
        of `StopRequest.alive`, seconds; 0: it never does.
      agree: see `StopRequest`.
    """
    request = StopRequest(agree)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    ours, theirs = socket.socketpair()
    # A signal handler must never wait; Python requires this.
    theirs.setblocking(False)
    earlier_fd = signal.set_wakeup_fd(theirs.fileno())
    # Python writes a signal's number to the socket only if it has a handler.
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
def sigterm_held() -> Iterator[None]:
    """Holds SIGTERM back from this thread and from all that it starts.

    In this thread it takes effect at the end of the block; other threads never
    get it. Elsewhere than on Unix nothing changes.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def sigterm_kept_from_new_threads() -> Iterator[None]:
    """Lets no thread that starts in the block take SIGTERM.

    `sigterm_held` works only if no other thread takes it. SIGTERM itself works
    as before meanwhile, by a thread that does nothing else.
    """
    done = threading.Event()
    threading.Thread(target=done.wait, daemon=True).start()
    try:
        with sigterm_held():
            yield
    finally:
        done.set()


def _watch(
    wakeups: socket.socket,
    request: StopRequest,
    grace_secs: float,
    stall_secs: float,
) -> None:
    name = wait = None
    while name is None:
        if stall_secs:
            wait = max(0.0, request.alive_at + stall_secs - time.monotonic())
        name = _next_signal(wakeups, wait)
        if name is None and time.monotonic() >= request.alive_at + stall_secs:
            _end(
                f"no step in {stall_secs:g} s (--stall_timeout_secs): another "
                "worker hangs or is cut off"
            )
    if not name:
        return
    request.requested = True
    _say(
        f"{name}: saving a checkpoint and stopping after this step; a second "
        f"signal, or {grace_secs:g} s without one, ends the run at once"
    )
    name = _next_signal(wakeups, grace_secs)
    if name is None:
        _end(f"not stopped {grace_secs:g} s after the signal")
    if name:
        _end(f"a second signal, {name}")


def _next_signal(wakeups: socket.socket, timeout: float | None) -> str | None:
    """Returns a signal's name, '' (closed), or None after the timeout."""
    while select.select([wakeups], [], [], timeout)[0]:
        numbers = wakeups.recv(64)
        if not numbers:
            return ""
        for number in numbers:
            # Python reports every signal that it handles, Ctrl-C too.
            if number in _SIGNALS:
                return signal.Signals(number).name
    return None


def _end(line: str) -> None:
    """Ends the process wherever its other threads are."""
    _say(f"error: {line}; stopped; the last checkpoint is kept")
    os._exit(1)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
