"""The command line: flags -> config -> phase -> exit code."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys

from flowers17_tfdata import (
    __version__,
    command_help,
    flags,
    launcher,
    tensorflow_start,
)
from flowers17_tfdata.config import rules
from flowers17_tfdata.errors import (
    DownloadFailed,
    Preempted,
    UserError,
    one_line,
)
from flowers17_tfdata.training import preemption


def main(argv: list[str]) -> int:
    """Runs one command line (program name first) and returns its exit code.

    0 done; 1 failed; 2 bad flags; 3 accuracy gate missed; 42 stopped by a
    signal after saving; 130 interrupted; 141 standard output was closed.
    """
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        # A class name that the stream's encoding lacks must not end the run.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    program = _program(argv[0])
    try:
        return _run(program, argv)
    except UserError as error:
        kind = "stopped" if isinstance(error, Preempted) else "error"
        # A path may hold a line break.
        text = one_line(error, 2000)
        origin = flags.describe_origin(text)
        print(f"{kind}: {text}{origin}", file=sys.stderr)
        if isinstance(error, DownloadFailed):
            hint = command_help.offline_text(program, error.constructor)
            print(f"\n{hint}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of standard output (head, less) has closed it. Python
        # would fail to flush it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except OSError as error:
        # A full disk, a folder that vanished: the message names the file,
        # except for the one that the caller has opened.
        is_ours = error.filename or error.errno != errno.ENOSPC
        where = "" if is_ours else "standard output: "
        print(f"error: {where}{one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "interrupted: run the same command to continue (training resumes "
            "after its last finished epoch)",
            file=sys.stderr,
        )
        return 130


def _run(program: str, argv: list[str]) -> int:
    try:
        config, arguments = flags.parse(argv), argv[1:]
    except flags.HelpRequested as request:
        text = command_help.help_text(program, request.phase, request.full)
        print(text, flush=True)
        return 0
    except flags.VersionRequested:
        print(f"flowers17-tfdata {__version__}", flush=True)
        return 0
    rules.check_files(config)
    if config.runtime.launch_local:
        return launcher.launch(arguments, config.runtime.launch_local)
    if config.data.runs_all_folds:
        # Imported here, as below: it draws tables.
        from flowers17_tfdata.phases import cross_validation

        code = cross_validation.run_folds(arguments, config)
        if code:
            return code
    with contextlib.ExitStack() as stack:
        if launcher.is_in_cluster():
            # So that it can be held back while this worker waits for others.
            stack.enter_context(preemption.sigterm_kept_from_new_threads())
        tensorflow_start.import_tensorflow(config.runtime.console == "verbose")
        # Imported here: --help and a flag error must not wait for TensorFlow.
        from flowers17_tfdata.phases import runner

    runner.run(config)
    return 0


def _open_closed_streams() -> None:
    """Opens the null device in the place of closed standard streams.

    Daemons and windowed programs start without them, and a file that is opened
    later would take their place.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # It takes the lowest free number, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def _program(path: str) -> str:
    """Returns the command that starts the program, for messages."""
    name = os.path.basename(path)
    if name == "__main__.py":
        return "python -m flowers17_tfdata"
    return f"python {name}" if name.endswith(".py") else name


def run() -> None:
    """The console script."""
    code = main(sys.argv)
    if code:
        # Skips TensorFlow's teardown, in which a worker that stops early waits
        # for the others.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
