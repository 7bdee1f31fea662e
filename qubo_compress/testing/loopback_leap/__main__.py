"""Start the server and print what a client needs: ``python -m qubo_compress.testing.loopback_leap``."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable, Sequence

from qubo_compress.testing.loopback_leap import ADVANTAGE2, Chip, LoopbackLeap
from qubo_compress.testing.loopback_leap.solvers import SHORT_MINIMUM


def main(arguments: Sequence[str] | None = None, wait: Callable[[], object] | None = None) -> None:
    """Serve until Ctrl-C.

    Args:
        arguments: of the command line; those of the process when left out.
        wait: what to do while serving; default: sleep forever.
    """
    parser = argparse.ArgumentParser(prog="python -m qubo_compress.testing.loopback_leap", description=__doc__)
    parser.add_argument("--zephyr", type=int, default=4, metavar="M", help="size of the Zephyr chip (default 4)")
    parser.add_argument("--pegasus", type=int, default=4, metavar="M", help="size of the Pegasus chip (default 4)")
    parser.add_argument("--advantage2", action="store_true", help="a Zephyr chip of size 12 with parts missing")
    parser.add_argument("--minimum-time", type=float, default=SHORT_MINIMUM, metavar="SECONDS",
                        help=f"least time limit of the hybrid solvers (default {SHORT_MINIMUM})")  # fmt: skip
    parser.add_argument("--documented-times", action="store_true", help="the least time limits that D-Wave documents")
    parser.add_argument("--eager", action="store_true", help="end hybrid problems after a tenth of a second")
    parser.add_argument("--infeasible-first", action="store_true", help="constrained: an infeasible sample comes first")
    options = parser.parse_args(arguments)
    zephyr = ADVANTAGE2 if options.advantage2 else Chip("zephyr", options.zephyr)
    server = LoopbackLeap(
        (zephyr, Chip("pegasus", options.pegasus)), minimum_time=options.minimum_time,
        documented_times=options.documented_times, eager=options.eager, infeasible_first=options.infeasible_first,
    )  # fmt: skip
    with server:
        print("A stand-in for Leap on this machine. Classical solvers answer; nothing here is quantum.")
        print(f"export DWAVE_API_ENDPOINT={server.endpoint}")
        print(f"export DWAVE_API_TOKEN={server.token}")
        print("export DWAVE_CACHE_ENABLED=false NO_PROXY=127.0.0.1")
        print(f"solvers: {', '.join(server.solver_names)}. Ctrl-C ends it.", flush=True)
        try:
            (wait or threading.Event().wait)()
        except KeyboardInterrupt:
            print("closing")


if __name__ == "__main__":
    main()
