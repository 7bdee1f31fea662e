"""A process that searches one minor embedding: a task on its standard input, chains on its standard output.

It runs as a script and imports nothing from the library, which would only take time.
"""

from __future__ import annotations

import json
import sys


def _main() -> None:
    import minorminer

    task = json.load(sys.stdin)
    found = minorminer.find_embedding(
        [tuple(pair) for pair in task["source"]],
        [tuple(pair) for pair in task["target"]],
        random_seed=task["seed"],
        timeout=task["timeout"],
    )
    json.dump({str(variable): list(map(int, chain)) for variable, chain in found.items()}, sys.stdout)


if __name__ == "__main__":
    _main()
