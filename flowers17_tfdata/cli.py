"""The command line: flags -> config -> phase -> exit code."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import signal
import sys
import tempfile
from collections.abc import Iterator

from flowers17_tfdata import launcher
from flowers17_tfdata.config import config as config_lib
from flowers17_tfdata.config import flags
from flowers17_tfdata.errors import (
    DownloadFailed,
    Preempted,
    UserError,
    one_line,
)


def main(argv: list[str]) -> int:
    """Runs one command line (program name first) and returns its exit code.

    0 done; 1 failed; 2 bad flags; 3 accuracy gate missed; 42 stopped by a
    signal, saved; 130 interrupted; 141 standard output was closed.
    """
    program = _program(argv[0])
    try:
        try:
            config = flags.parse(argv)
        except flags.HelpWanted as wanted:
            print(flags.help_text(program, wanted.phase), flush=True)
            return 0
        if config.runtime.launch_local:
            return launcher.launch(argv[1:], config.runtime.launch_local)
        if config_lib.runs_all_folds(config):
            # Imported here, as below: it draws tables.
            from flowers17_tfdata.phases import cross_validation

            code = cross_validation.run_folds(argv[1:], config)
            if code:
                return code
        # TensorFlow's C++ start-up notes would bury our own lines.
        os.environ.setdefault(
            "TF_CPP_MIN_LOG_LEVEL",
            "0" if config.runtime.console == "verbose" else "2",
        )
        # On by default only where a CPU has AVX512; with AVX2 alone it was
        # faster too (forward 9 %, step 17 %) and keeps its memory pooled.
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
        verbose = config.runtime.console == "verbose"
        with contextlib.nullcontext() if verbose else _without_notes():
            # Imported here: --help and a flag error must not wait for
            # TensorFlow.
            from flowers17_tfdata.phases import registry

        registry.run(config)
    except UserError as error:
        kind = "stopped" if isinstance(error, Preempted) else "error"
        # A path may hold a line break.
        print(f"{kind}: {one_line(error, 2000)}", file=sys.stderr)
        if isinstance(error, DownloadFailed):
            print(f"\n{flags.offline_text(program)}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # Whoever read standard output (head, less) has enough. Python would
        # flush it once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except OSError as error:
        # A full disk, a folder that vanished: the message names the file.
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "interrupted: a training phase goes on after its last finished "
            "epoch when the same command is given again",
            file=sys.stderr,
        )
        return 130
    return 0


def _program(path: str) -> str:
    """Returns how the program was called, to be typed again."""
    name = os.path.basename(path)
    if name == "__main__.py":
        return "python -m flowers17_tfdata"
    return f"python {name}" if name.endswith(".py") else name


# What TensorFlow's C++ says before its log level counts: notes and warnings,
# and that a machine without an NVIDIA driver has none.
_NOTES = re.compile(
    rb"[IW]\d{4} .*|WARNING: All log messages before absl::InitializeLog.*"
)
_NO_DRIVER = re.compile(rb"E\d{4} .*failed call to cuInit.*")


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
    """Leaves TensorFlow's start-up notes out of standard error.

    It writes them past Python, and past TF_CPP_MIN_LOG_LEVEL, while it is
    imported and looks for devices. Every other line comes through, at the end.
    """
    has_driver = pathlib.Path("/proc/driver/nvidia/version").exists()
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
            import tensorflow as tf

            tf.config.list_physical_devices()
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            for line in file:
                quiet = _NOTES.match(line) or (
                    not has_driver and _NO_DRIVER.match(line)
                )
                if not quiet:
                    os.write(2, line)


def run() -> None:
    """The console script."""
    code = main(sys.argv)
    if code:
        # A worker that stops before the others would wait for them, in
        # TensorFlow's teardown.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
