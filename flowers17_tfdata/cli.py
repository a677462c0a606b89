"""The command line: flags -> config -> phase -> exit code."""

from __future__ import annotations

import os
import sys

from flowers17_tfdata import flags, launcher
from flowers17_tfdata.errors import Preempted, UserError, one_line


def main(argv: list[str]) -> int:
    """Runs one command line (program name first) and returns its exit code.

    0 done; 1 failed; 2 bad flags; 3 accuracy gate missed; 42 stopped by a
    signal, saved; 130 interrupted.
    """
    try:
        config = flags.parse(argv)
        if config is None:
            print(flags.help_text(os.path.basename(argv[0])))
            return 0
        if config.runtime.launch_local:
            return launcher.launch(argv[1:], config.runtime.launch_local)
        # TensorFlow's C++ start-up notes would bury our own lines.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        # On by default only where a CPU has AVX512; with AVX2 alone it was
        # faster too (forward 9 %, step 17 %) and keeps its memory pooled.
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
        # Imported here: --help and a flag error must not wait for TensorFlow.
        from flowers17_tfdata import phases

        phases.run(config)
    except UserError as error:
        kind = "stopped" if isinstance(error, Preempted) else "error"
        # A path may hold a line break.
        print(f"{kind}: {one_line(error, 2000)}", file=sys.stderr)
        return error.exit_code
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
