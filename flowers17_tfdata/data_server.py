"""The tf.data service's processes: `flowers17-data-server`.

One dispatcher, and a worker on each machine that decodes and augments:

    flowers17-data-server dispatcher --port=5050
    flowers17-data-server worker --dispatcher=HOST:5050

They run until SIGTERM or Ctrl-C. Anyone who can reach their ports can use them:
keep them on a private network.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import threading

from flowers17_tfdata.errors import one_line


def main() -> int:
    """Runs the server that the command line asks for; returns its exit code."""
    options = _parse()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Imported here: --help must not wait for TensorFlow.
    import tensorflow as tf

    service = tf.data.experimental.service
    try:
        if options.role == "dispatcher":
            server = service.DispatchServer(
                service.DispatcherConfig(port=options.port)
            )
            print(f"dispatcher: {server.target}", flush=True)
        else:
            host = options.host or _host_name(options.dispatcher)
            server = service.WorkerServer(
                service.WorkerConfig(
                    dispatcher_address=options.dispatcher,
                    worker_address=f"{host}:%port%",
                    port=options.port,
                )
            )
            print(f"worker: {host}, of {options.dispatcher}", flush=True)
    except (tf.errors.OpError, RuntimeError) as error:
        print(f"error: {options.role}: {one_line(error)}", file=sys.stderr)
        return 1
    # Not server.join(): Ctrl-C does not reach Python during it.
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="flowers17-data-server",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    roles = parser.add_subparsers(dest="role", required=True)
    dispatcher = roles.add_parser(
        "dispatcher", help="Hands out work; one for all data workers."
    )
    dispatcher.add_argument("--port", type=int, default=5050)
    worker = roles.add_parser("worker", help="Decodes and augments.")
    worker.add_argument("--dispatcher", required=True, metavar="HOST:PORT")
    worker.add_argument(
        "--port", type=int, default=0, help="0 takes any free port."
    )
    worker.add_argument(
        "--host", default="", help="This machine's name for the trainers."
    )
    return parser.parse_args()


def _host_name(dispatcher: str) -> str:
    """Returns the name by which trainers reach this machine."""
    if dispatcher.rpartition(":")[0] in ("localhost", "127.0.0.1"):
        return "localhost"
    return socket.gethostname()


if __name__ == "__main__":
    sys.exit(main())
