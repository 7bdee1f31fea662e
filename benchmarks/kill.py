"""Kill ``measure`` and ``save`` at random moments and look at what is left: ``python -m benchmarks.kill``.

A measurement killed again and again and resumed from its cache must end with the same table bit for bit, and every
file that can be seen in its folder must be whole. A file that is saved over and over must be the old one or the new
one at every moment.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import qubo_compress as qc
from benchmarks import networks
from qubo_compress.testing import same_table

EXAMPLES = 96
MENU = qc.Menu(bits=(2, 4, 8), sparsity=(0.0, 0.5))


@dataclass(frozen=True)
class Outcome:
    """What a series of kills left behind.

    Attributes:
        what: ``"measure"`` or ``"save"``.
        kills: children that SIGKILL ended.
        finished: children that were done before their time came.
        looked_at: files opened after the kills.
        damaged: those that could not be read.
        leftovers: hidden temporary files that killed children left.
        resumed: finished parts that resumed measurements read back.
        identical: whether every table, or every file, was bit for bit what it had to be.
    """

    what: str
    kills: int
    finished: int
    looked_at: int
    damaged: int
    leftovers: int
    resumed: int
    identical: bool


def killed_after(seconds: float, work: Callable[[], object]) -> bool:
    """Run ``work`` in a forked child and kill it; whether it was killed, not done before."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as cause:
            print(f"the child failed: {cause!r}", file=sys.stderr)
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("a child failed on its own; see above")
    return os.WIFSIGNALED(status)


def kill_measure(kills: int, seed: int, folder: Path) -> Outcome:
    """Kill measurements of the digits network until there were ``kills``, resuming each until it is done."""
    network = networks.load("digits", calibration_examples=EXAMPLES)

    def measure(cache: Path | None) -> qc.SensitivityTable:
        return qc.measure(network.model, network.calibration, menu=MENU, cache=cache, progress=False)

    measure(None)
    start = time.perf_counter()
    wanted = measure(None)
    duration = time.perf_counter() - start
    chance = random.Random(seed)
    done = finished = looked_at = damaged = leftovers = resumed = lives = 0
    identical = True
    while done < kills:
        cache = folder / f"cache{lives}"
        lives += 1
        for _ in range(4):
            if done == kills:
                break
            if killed_after(chance.uniform(0.1, 1.0) * duration, lambda cache=cache: measure(cache)):  # type: ignore[misc]
                done += 1
            else:
                finished += 1
            seen, bad, left = _inspect(cache)
            looked_at, damaged, leftovers = looked_at + seen, damaged + bad, leftovers + left
        table = measure(cache)
        resumed += table.provenance.resumed
        identical = identical and same_table(table, wanted)
    return Outcome("measure", done, finished, looked_at, damaged, leftovers, resumed, identical)


def kill_save(kills: int, seed: int, folder: Path) -> Outcome:
    """Kill children that save two networks in turn over one file."""
    network = networks.load("digits", calibration_examples=EXAMPLES)
    table = qc.measure(network.model, network.calibration, menu=MENU, metric="magnitude", progress=False)
    weights = [name for name in table.group_names if "conv" in name]
    small = [table.plan(dict.fromkeys(weights, choice)).apply(network.model) for choice in ("quantize(bits=2)", "keep")]
    contents, path = [], folder / "net.safetensors"
    for net in small:
        qc.save(net, path)
        contents.append(path.read_bytes())

    def save_for_ever() -> None:
        while True:
            for net in small:
                qc.save(net, path)

    chance = random.Random(seed)
    damaged = 0
    identical = True
    for _ in range(kills):
        killed_after(chance.uniform(0.0, 0.15), save_for_ever)
        data = path.read_bytes()
        identical = identical and data in contents
        try:
            net = qc.load(path, _other_weights(network.model))
            held = small[contents.index(data)] if data in contents else net
            pairs = zip(net.parameters(), held.parameters(), strict=True)
            identical = identical and all(torch.equal(a, b) for a, b in pairs)
        except qc.QuboCompressError:
            damaged += 1
    leftovers = len(list(folder.glob(".*")))
    return Outcome("save", kills, 0, kills, damaged, leftovers, 0, identical)


def _inspect(cache: Path) -> tuple[int, int, int]:
    """Visible files, those that cannot be read, and hidden ones."""
    seen = damaged = 0
    visible = [path for path in cache.glob("*") if not path.name.startswith(".")]
    for path in visible:
        seen += 1
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
                continue
            with np.load(path, allow_pickle=False) as stored:
                for name in stored.files:
                    stored[name]
        except Exception:  # any failure at all is what is counted here
            damaged += 1
    return seen, damaged, len(list(cache.glob(".*")))


def _other_weights(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    return other


def main() -> int:
    """Kill, print a table, and fail when anything was damaged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a forked child must not inherit a pool of threads
    folder = Path(tempfile.mkdtemp())
    try:
        outcomes = [kill(options.kills, options.seed, folder) for kill in (kill_measure, kill_save)]
    finally:
        shutil.rmtree(folder)
    names = list(asdict(outcomes[0]))
    print(" | ".join(names))
    for outcome in outcomes:
        print(" | ".join(f"{asdict(outcome)[name]!s:>{len(name)}}" for name in names))
    return int(any(outcome.damaged or not outcome.identical for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
