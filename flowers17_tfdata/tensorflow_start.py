"""Starts TensorFlow with our settings and without its start-up notes."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterator

# What TensorFlow's C++ code prints before its log level takes effect: notes,
# warnings, errors about parts that another library has registered already, and
# an error on machines without an NVIDIA driver.
_NOTES = re.compile(
    rb"[IW]\d{4} .*|WARNING: All log messages before absl::InitializeLog.*"
    rb"|E\d{4} .*Unable to register \w+ factory.*"
)
_NO_DRIVER = re.compile(rb"E\d{4} .*failed call to cuInit.*")


def import_tensorflow(verbose: bool = False) -> None:
    """Imports TensorFlow and lists its devices.

    Args:
      verbose: whether to show TensorFlow's notes.
    """
    # TensorFlow's C++ lines would bury our own. Its errors are raised, too; the
    # printed ones matter only where a GPU may fail to start.
    level = "0" if verbose else "2" if _has_driver() else "3"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", level)
    # TensorFlow turns it on by itself only on CPUs with AVX512; with AVX2
    # alone it was faster too (forward 9 %, step 17 %).
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    if os.path.expanduser("~") == "~":
        # Without a home folder Keras makes one of this name in the current one.
        folder = os.path.join(tempfile.gettempdir(), "keras")
        os.environ.setdefault("KERAS_HOME", folder)
    with contextlib.nullcontext() if verbose else _without_notes():
        import tensorflow as tf

        tf.config.list_physical_devices()


def _has_driver() -> bool:
    return pathlib.Path("/proc/driver/nvidia/version").exists()


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
    """Removes TensorFlow's start-up notes from standard error.

    TensorFlow writes them directly to the file descriptor, whatever
    TF_CPP_MIN_LOG_LEVEL says, while it is imported and lists the devices. All
    other lines are printed at the end.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            for line in file:
                quiet = _NOTES.match(line) or (
                    not _has_driver() and _NO_DRIVER.match(line)
                )
                if not quiet:
                    os.write(2, line)
