"""Kill tests of every writer: child processes die in the middle of writing, and what they leave is looked at.

Run ``python -m tests.fuzz.kills --rounds 200``. In every round a child writes one version of a file after the other, as
fast as it can, until it gets SIGKILL, SIGTERM or SIGINT at a random moment. Then the file must be there, be one whole
version that was written, and the next writer must leave nothing beside it. Status 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import qubo_compress as qc
from qubo_compress._internal.files import write_atomically
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.sensitivity.cache import UnitCache

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
LONGEST_DELAY = 0.1
VERSIONS = 7


@dataclass(frozen=True)
class Writer:
    """Something that writes a file.

    Attributes:
        name: for the table of counts.
        write: (path, version) writes that version.
        read: path -> the version that a whole file holds; raises when it is not whole.
    """

    name: str
    write: Callable[[Path, int], Any]
    read: Callable[[Path], int]


def writers() -> dict[str, Writer]:
    """All writers of the library, with files large enough to be killed within."""
    net = nn.Linear(300, 200).eval()
    menu = qc.Menu(bits=(8,), sparsity=(0.0,))
    table = qc.measure(net, [torch.zeros(2, 300)], menu, "magnitude", loss="kl", progress=False)
    plan = table.plan({})
    versions = []
    for version in range(VERSIONS):
        with torch.no_grad():
            net.bias.fill_(float(version))
        made = table.plan({})
        versions.append(replace(made, weights=NetworkTensors(net).signature()).apply(net))
    problem = qc.ChoiceProblem.random("dense", groups=16, choices=8, seed=0)

    def save_plan(path: Path, version: int) -> None:
        replace(plan, parameters=version, payloads={"weight": bytes([version]) * 300_000}).save(path)

    def load_plan(path: Path) -> int:
        found = qc.Plan.load(path)
        assert found.payloads["weight"] == bytes([found.parameters]) * 300_000
        return found.parameters

    def load_problem(path: Path) -> int:
        found = qc.ChoiceProblem.load(path)
        assert np.array_equal(found.factor, problem.factor)
        return int(found.constant)

    def save_unit(path: Path, version: int) -> None:
        path.unlink(missing_ok=True)  # a cache writes what is not there
        UnitCache(path.parent, {}).get(path.stem, lambda: {"a": np.full(100_000, version)})

    def load_unit(path: Path) -> int:
        found = UnitCache(path.parent, {}).get(path.stem, lambda: {"a": np.zeros(1, dtype=int)})["a"]
        assert (found == found[0]).all()
        return int(found[0])

    def load_text(path: Path) -> int:
        data = path.read_bytes()
        assert len(data) == 500_000 and len(set(data)) == 1
        return data[0]

    return {
        writer.name: writer
        for writer in (
            Writer("plan.save", save_plan, load_plan),
            Writer("save", lambda path, n: qc.save(versions[n], path), lambda path: int(qc.load(path, net).bias[0])),
            Writer("problem.save", lambda path, n: _problem(problem, n).save(path), load_problem),
            Writer("unit of a cache", save_unit, load_unit),
            Writer("text", lambda path, n: write_atomically(path, lambda h: h.write(bytes([n]) * 500_000)), load_text),
        )
    }


def _problem(problem: qc.ChoiceProblem, version: int) -> qc.ChoiceProblem:
    names = [name for name in problem.__dataclass_fields__ if name != "diagonal"]
    return qc.ChoiceProblem(**{**{name: getattr(problem, name) for name in names}, "constant": float(version)})


FAILED, INTERRUPTED = 3, 4
"""Exit codes of a child that did not end by itself."""


def forked(work: Callable[[], int]) -> int:
    """Start a process that does some work and exits with what it returns; its number."""
    # Libraries run code of their own after a fork, in which a Ctrl-C would be swallowed.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    number = os.fork()
    if number:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return number
    status = FAILED
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        status = work()
    except KeyboardInterrupt:
        status = INTERRUPTED
    finally:
        os._exit(status)


def child(writer: Writer, path: Path) -> int:
    """Start a process that writes version after version; its number."""

    def work() -> int:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        for version in itertools.count():
            writer.write(path, version % VERSIONS)
        return FAILED

    return forked(work)


def ended(number: int, sign: signal.Signals, patience: float = 5.0) -> None:
    """Send a signal and wait for the end; one that is swallowed, as Ctrl-C is within a destructor, is sent again."""
    while True:
        os.kill(number, sign)
        last = time.monotonic() + patience
        while time.monotonic() < last:
            if os.waitpid(number, os.WNOHANG)[0]:
                return
            time.sleep(0.001)


def killed(writer: Writer, folder: Path, chance: random.Random, counts: Counter[str]) -> None:
    """One round."""
    path = folder / "file.npz"
    unit = writer.name.startswith("unit")
    if not path.exists():
        writer.write(path, 0)
    number = child(writer, path)
    time.sleep(chance.uniform(0, LONGEST_DELAY))
    sign = chance.choice(SIGNALS)
    ended(number, sign)
    counts["rounds"] += 1
    counts[sign.name] += 1
    left = [item for item in folder.iterdir() if item.suffix == ".partial"]
    counts["within a write"] += bool(left)
    try:
        # A unit that is not there is measured again: only a damaged one is lost.
        counts["lost"] += not (unit and not path.exists()) and not 0 <= writer.read(path) < VERSIONS
    except Exception as failure:
        counts["lost"] += 1
        print(f"{writer.name}, {sign.name}: {type(failure).__name__}: {failure}", flush=True)
    writer.write(path, 1)
    counts["left over"] += sum(item.suffix == ".partial" for item in folder.iterdir())


def rounds(writer: Writer, count: int, seed: int = 0) -> Counter[str]:
    """So many rounds with one writer."""
    counts: Counter[str] = Counter()
    chance = random.Random(f"{writer.name} {seed}")
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(count):
            killed(writer, Path(folder), chance, counts)
    return counts


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="of each writer")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    columns = ("rounds", *(sign.name for sign in SIGNALS), "within a write", "lost", "left over")
    print(f"{'writer':18}" + "".join(f"{column:>16}" for column in columns))
    bad = 0
    for writer in writers().values():
        counts = rounds(writer, given.rounds, given.seed)
        bad += counts["lost"] + counts["left over"]
        print(f"{writer.name:18}" + "".join(f"{counts[column]:16}" for column in columns), flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
