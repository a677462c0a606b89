"""Measures other software in a process of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import psutil

from flowers17_tfdata.errors import UserError, one_line


@contextlib.contextmanager
def open_worker(
    title: str, measure: Callable[[str, Any], float], work: Any
) -> Iterator[Callable[[str], float]]:
    """Starts a process that measures, and is suspended in between.

    Args:
      title: the name of the software, for messages.
      measure: from a row's name and `work` to images/s; a function of a module,
        which the process imports.
      work: the work to measure; it can be pickled.

    Yields:
      A function that measures the row of a name, in images/s. It raises
      `UserError` if the software fails.
    """
    pool = ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), initializer=_be_quiet
    )
    process = psutil.Process(pool.submit(os.getpid).result())

    def run(stage: str) -> float:
        try:
            process.resume()
            images_per_sec = pool.submit(_measure, measure, stage, work)
            rate, error = images_per_sec.result()
            # Otherwise it would fill its buffers while others are measured.
            process.suspend()
        except (BrokenProcessPool, psutil.NoSuchProcess) as died:
            raise UserError(
                f"benchmark: the process of {title} died in {stage}; out of "
                "memory? A lower --global_batch_size helps"
            ) from died
        if error:
            raise UserError(f"benchmark: {title}, {stage}: {error}")
        return rate

    try:
        yield run
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
        pool.shutdown()


def _be_quiet() -> None:
    """Sends what the libraries print, C++ ones included, nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


def _measure(
    measure: Callable[[str, Any], float], stage: str, work: Any
) -> tuple[float, str]:
    """Returns the images/s, and what went wrong or ''."""
    try:
        return measure(stage, work), ""
    # Any exception may be raised, even one that can't be pickled.
    except Exception as error:
        return 0.0, f"{type(error).__name__}: {one_line(error)}"
