"""Kill tests of whole calls: measuring, compressing with refinement, and recovering die at a random moment.

Run ``python -m tests.fuzz.kills_of_calls --kills 200``. A child makes the call until it gets SIGKILL, SIGTERM or
SIGINT. Then every file in sight must be whole, what the user had must be there, and the same call must end with the
same result, bit for bit, and leave no temporary file. Status 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress._internal.arrays import read_arrays
from qubo_compress.testing import same_table
from tests.fuzz.kills import FAILED, INTERRUPTED, SIGNALS, forked

MOST_KILLS_OF_A_FOLDER = 4
LONGEST_WAIT = 300.0
_DONE = 0


@dataclass(frozen=True)
class Call:
    """Something that takes long and may write files.

    Attributes:
        name: for the table of counts.
        make: folder -> result; called again in the same folder, it resumes where it can.
        same: whether two results are bit for bit the same.
        output: name of the file that it ends with, if any; the user has an older one under this name.
    """

    name: str
    make: Callable[[Path], Any]
    same: Callable[[Any, Any], bool]
    output: str | None = None


class Small(nn.Module):
    """A residual network of some hundred weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.inner, self.head = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.head((x + torch.relu(self.inner(x))).mean((2, 3)))


def same_network(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks hold the same bits."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def calls() -> dict[str, Call]:
    """The calls that may take hours."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Small().eval()
        batches = [(torch.randn(24, 3, 5, 5), torch.arange(24) % 4)]
    menu = qc.Menu(bits=(2, 4), sparsity=(0.0, 0.5))
    small = qc.measure(net, batches, menu, "magnitude", progress=False).plan({}).apply(net)
    budget = qc.Budget(ratio=3.0)

    def compress(folder: Path, **options: Any) -> nn.Module:
        found = qc.compress(
            net, batches, budget, menu=menu, cache=folder / "cache", progress=False, solver="greedy", **options
        )
        found.save(folder / "net.safetensors")
        return found.model

    def recover(folder: Path) -> nn.Module:
        found = qc.recover(small, batches, net, epochs=2, progress=False)
        qc.save(found, folder / "net.safetensors")
        return found

    def measure(folder: Path, metric: str) -> qc.SensitivityTable:
        return qc.measure(net, batches, menu, metric, cache=folder / "cache", progress=False)

    output = "net.safetensors"
    found = (
        Call("measure", lambda folder: measure(folder, "gauss-newton"), same_table),
        Call("measure by products", lambda folder: measure(folder, "products"), same_table),
        Call("compress", compress, same_network, output),
        Call("refinement", lambda folder: compress(folder, rounds=2, recover=False), same_network, output),
        Call("recover", recover, same_network, output),
    )
    return {call.name: call for call in found}


class Killer:
    """Kills one call again and again, and looks at what is left."""

    def __init__(self, call: Call, seed: int) -> None:
        self.call, self.counts = call, Counter[str]()
        self.chance = random.Random(f"{call.name} {seed}")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            call.make(folder)  # compiles
            self.old = b"" if call.output is None else (folder / call.output).read_bytes() + b"the older one"
        with tempfile.TemporaryDirectory() as name:
            begin = time.perf_counter()
            self.wanted = call.make(Path(name))
            self.seconds = time.perf_counter() - begin
            self.new = b"" if call.output is None else (Path(name) / call.output).read_bytes()

    def life(self, kills: int) -> None:
        """A folder in which the call is killed some times and then comes to its end."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "notes.txt").write_text("of the user")
            if self.call.output is not None:
                (folder / self.call.output).write_bytes(self.old)
            for _ in range(kills):
                self._killed(folder)
                self._look(folder)
            made = self.call.make(folder)
            self.counts["resumed"] += 1
            self._expect(self.call.same(made, self.wanted), "another result")
            left = [str(item.relative_to(folder)) for item in folder.rglob("*.partial")]
            self.counts["left over"] += len(left)
            self._expect((folder / "notes.txt").read_text() == "of the user", "a file of the user was changed")
            if self.call.output is not None:
                self._expect((folder / self.call.output).read_bytes() == self.new, "another file")

    def _killed(self, folder: Path) -> None:
        number = _child(self.call, folder)
        time.sleep(self.chance.uniform(0.0, self.seconds))
        sign = self.chance.choice(SIGNALS)
        status = _ended(number, sign)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == FAILED:
            self._expect(False, "the call failed")
        finished = os.WIFEXITED(status) and os.WEXITSTATUS(status) == _DONE
        self.counts["finished" if finished else "kills"] += 1
        self.counts[sign.name] += not finished
        self.sign = sign

    def _look(self, folder: Path) -> None:
        """Every file in sight is whole."""
        self.counts["within a write"] += any(folder.rglob("*.partial"))
        for path in folder.rglob("*"):
            if path.suffix in (".npz", ".signature"):
                with path.open("rb") as handle:
                    self._expect(read_arrays(handle).said is not None, f"{path.name} is not whole")
            elif path.suffix == ".json":
                json.loads(path.read_text())
        if self.call.output is not None:
            # Ctrl-C within a search means: take what you have. The file then is whole, and of another plan.
            data = (folder / self.call.output).read_bytes()
            whole = data in (self.old, self.new) or (self.sign == signal.SIGINT and self._loads(folder))
            self._expect(whole, "the output is neither the old nor the new one")

    def _loads(self, folder: Path) -> bool:
        assert self.call.output is not None
        try:
            qc.load(folder / self.call.output, Small())
        except qc.QuboCompressError:
            return False
        return True

    def _expect(self, held: bool, what: str) -> None:
        if not held:
            self.counts["lost"] += 1
            print(f"{self.call.name}: {what}", flush=True)


def _child(call: Call, folder: Path) -> int:
    """Start a process that makes the call once; its number."""

    def work() -> int:
        try:
            call.make(folder)
        except KeyboardInterrupt:
            return INTERRUPTED
        except SystemError as failure:
            # What numba makes of a Ctrl-C that arrives while compiled code returns.
            return INTERRUPTED if isinstance(failure.__cause__, KeyboardInterrupt) else FAILED
        except BaseException as failure:
            print(f"{call.name}: {type(failure).__name__}: {failure}", flush=True)
            return FAILED
        return _DONE

    return forked(work)


def _ended(number: int, sign: signal.Signals, patience: float = 10.0) -> int:
    """Send a signal and wait for the end; its status. A Ctrl-C that ended a search only is sent again."""
    end = time.monotonic() + LONGEST_WAIT
    while time.monotonic() < end:
        os.kill(number, sign)
        last = time.monotonic() + patience
        while time.monotonic() < last:
            ended, status = os.waitpid(number, os.WNOHANG)
            if ended:
                return status
            time.sleep(0.001)
    raise RuntimeError(f"a child survived {sign.name} for {LONGEST_WAIT:.0f} s")


def kills(call: Call, count: int, seed: int = 0) -> Counter[str]:
    """So many kills of one call."""
    killer = Killer(call, seed)
    while killer.counts["kills"] < count:
        left = count - killer.counts["kills"]
        killer.life(min(left, killer.chance.randint(1, MOST_KILLS_OF_A_FOLDER)))
    return killer.counts


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="of each call")
    parser.add_argument("--calls", help="names, separated by commas; all when left out")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)  # a forked child must not inherit a pool of threads
    np.seterr(all="ignore")
    every = calls()
    columns = ("kills", *(sign.name for sign in SIGNALS), "finished", "within a write", "resumed", "lost", "left over")
    print(f"{'call':20}" + "".join(f"{column:>16}" for column in columns), flush=True)
    bad = 0
    for name in every if given.calls is None else given.calls.split(","):
        counts = kills(every[name], given.kills, given.seed)
        bad += counts["lost"] + counts["left over"]
        print(f"{name:20}" + "".join(f"{counts[column]:16}" for column in columns), flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
