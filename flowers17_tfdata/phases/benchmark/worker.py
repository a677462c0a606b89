"""Measures other software in a process of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
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
    with tempfile.NamedTemporaryFile(prefix="flowers17_tfdata_") as printed:
        pool = ProcessPoolExecutor(
            1,
            multiprocessing.get_context("spawn"),
            initializer=_print_to,
            initargs=(printed.name,),
        )
        process = psutil.Process(pool.submit(os.getpid).result())

        def run(stage: str) -> float:
            try:
                process.resume()
                future = pool.submit(_measure, measure, stage, work)
                rate, error = future.result()
                # Otherwise it would fill its buffers while others are measured.
                process.suspend()
            except (BrokenProcessPool, psutil.NoSuchProcess) as died:
                lines = printed.read().decode(errors="replace").splitlines()
                last = f" ({one_line(lines[-1], 160)})" if lines else ""
                raise UserError(
                    f"benchmark: the process of {title} died in {stage}{last}; "
                    "out of memory? A lower --global_batch_size helps"
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


def _print_to(path: str) -> None:
    """Sends what libraries print, C++ ones included, to a file."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)


def _measure(
    measure: Callable[[str, Any], float], stage: str, work: Any
) -> tuple[float, str]:
    """Returns the images/s, and what went wrong or ''."""
    try:
        return measure(stage, work), ""
    # Any exception may be raised, even one that can't be pickled.
    except Exception as error:
        return 0.0, f"{type(error).__name__}: {one_line(error)}"
