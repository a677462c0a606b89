"""Signals: the first asks to stop; a second one or a hang ends the process."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from flowers17_tfdata.errors import Preempted
from flowers17_tfdata.training import preemption

ROOT = pathlib.Path(__file__).parents[1]


def _wait_for(request) -> None:
    deadline = time.monotonic() + 30
    while not request.requested and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_asks_to_stop(number, capsys):
    before = signal.getsignal(number)
    with preemption.stop_on_signals(60) as request:
        assert not request.requested
        request.check("anywhere")
        os.kill(os.getpid(), number)
        _wait_for(request)
        assert request.requested
        with pytest.raises(Preempted, match="anywhere: run the same command"):
            request.check("anywhere")
    assert signal.getsignal(number) == before
    assert f"{number.name}: saving" in capsys.readouterr().err


def test_other_signals_ask_nothing():
    # A background job inherits "ignore" for Ctrl-C.
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with preemption.stop_on_signals(60) as request:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(30)
            assert not request.requested
    finally:
        signal.signal(signal.SIGINT, earlier)


def test_outside_of_the_main_thread_none_is_taken():
    def work():
        with preemption.stop_on_signals(60) as request:
            results.append(request.requested)

    results = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [False]


# Blocks the main thread in C, as a hanging collective does: Python's signal
# handlers never run.
_HANGING = """
import ctypes, sys
from flowers17_tfdata.training import preemption
with preemption.stop_on_signals(float(sys.argv[1])):
    print("ready", flush=True)
    mutex = ctypes.create_string_buffer(128)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("grace_secs", "signals"), [(600, 2), (0.5, 1)])
def test_a_hanging_process_ends(grace_secs, signals):
    with subprocess.Popen(
        [sys.executable, "-c", _HANGING, str(grace_secs)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert "SIGTERM: saving" in process.stderr.readline()
        if signals == 2:
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 1
        assert "error:" in process.stderr.read()


_STALLING = """
import sys, time
from flowers17_tfdata.training import preemption
with preemption.stop_on_signals(60, stall_secs=0.5) as request:
    for _ in range(int(sys.argv[1])):
        time.sleep(0.2)
        request.alive()
    print("steps done", flush=True)
    if sys.argv[2] == "hang":
        time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("end, code", [("return", 0), ("hang", 1)])
def test_steps_that_stall_end_the_process(end, code):
    result = subprocess.run(
        # All steps take longer than a stall; each one takes less.
        [sys.executable, "-c", _STALLING, "10", end],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert result.returncode == code, result.stderr
    assert "steps done" in result.stdout
    line = "error: no step in 0.5 s (--stall_timeout_secs)"
    assert (line in result.stderr) == (end == "hang")


_STARTING = """
import signal, threading, time
from flowers17_tfdata.training import preemption
def show():
    held = signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    print("held" if held else "taken", flush=True)
with preemption.sigterm_kept_from_new_threads():
    thread = threading.Thread(target=lambda: (show(), time.sleep(60)))
    thread.start()
    time.sleep(60)
"""


@pytest.mark.slow
def test_new_threads_do_not_take_sigterm_and_it_works_all_the_same():
    with subprocess.Popen(
        [sys.executable, "-c", _STARTING],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n"
        process.terminate()
        assert process.wait(30) == -signal.SIGTERM


def test_held_sigterm_takes_effect_at_the_end():
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(1))
    try:
        with preemption.sigterm_held():
            signal.raise_signal(signal.SIGTERM)
            assert not received
        assert received
    finally:
        signal.signal(signal.SIGTERM, before)


def test_all_workers_stop_if_one_is_asked_to():
    request = preemption.StopRequest(agree=lambda mine: True)
    assert not request.requested
    with pytest.raises(Preempted):
        request.check("saved")
    request = preemption.StopRequest(agree=lambda mine: mine)
    request.check("saved")
