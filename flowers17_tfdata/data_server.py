"""The tf.data service's processes: `flowers17-data-server`.

One dispatcher, and a worker on each machine that decodes and augments:

    flowers17-data-server dispatcher --port=5050
    flowers17-data-server worker --dispatcher=HOST:5050

They run until SIGTERM or Ctrl-C. Whoever reaches their ports can use them:
keep them on a network of your own.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time

_LOCAL = ("localhost", "127.0.0.1")


def main(argv: list[str]) -> int:
    """Runs one server; returns its exit code."""
    options = _parse(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Imported here: --help must not wait for TensorFlow.
    import tensorflow as tf

    try:
        server = _start(options)
    except (tf.errors.OpError, RuntimeError) as error:
        text = " ".join(str(error).split())
        print(f"error: {options.role}: {text}", file=sys.stderr)
        return 1
    try:
        # Not join(): Ctrl-C does not reach Python within it.
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        return 0
    finally:
        del server


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="flowers17-data-server",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    roles = parser.add_subparsers(dest="role", required=True)
    dispatcher = roles.add_parser("dispatcher", help="One for all workers.")
    dispatcher.add_argument("--port", type=int, default=5050)
    worker = roles.add_parser("worker", help="Decodes and augments.")
    worker.add_argument("--dispatcher", required=True, metavar="HOST:PORT")
    worker.add_argument("--port", type=int, default=0, help="0: any.")
    worker.add_argument(
        "--host", default="", help="This machine, as the trainers know it."
    )
    return parser.parse_args(argv[1:])


def _start(options: argparse.Namespace):
    import tensorflow as tf

    service = tf.data.experimental.service
    if options.role == "dispatcher":
        server = service.DispatchServer(
            service.DispatcherConfig(port=options.port)
        )
        print(f"dispatcher: {server.target}", flush=True)
        return server
    local = options.dispatcher.rpartition(":")[0] in _LOCAL
    host = options.host or ("localhost" if local else socket.gethostname())
    server = service.WorkerServer(
        service.WorkerConfig(
            dispatcher_address=options.dispatcher,
            worker_address=f"{host}:%port%",
            port=options.port,
        )
    )
    print(f"worker: {host}, of {options.dispatcher}", flush=True)
    return server


def run() -> None:
    """The console script."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    run()
