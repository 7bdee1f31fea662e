"""Long fuzzing: files by the thousand in a process of their own, so that a crash is a count and not the end.

Run ``python -m tests.fuzz --minutes 30``. It prints one line per format: files, what became of them, the slowest and
the largest; and it ends with status 1 if there was a foreign exception, a silent change, a crash, a hang, or a file
that took more than a second or 200 MB. Such files are kept in ``out/fuzz/``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import os
import resource
import selectors
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fuzz import KEPT, NAMES
from tests.fuzz.form import made
from tests.fuzz.formats import formats
from tests.fuzz.trial import LONGEST_SECONDS, MOST_BYTES, tried

LONGEST_SILENCE = 120.0
"""Seconds after which a file is called a hang; machines are busy."""

ADDRESS_SPACE = 16 * 2**30

SMALL = 1e6
"""Bytes below which a file may take neither long nor much memory."""

BAD = ("foreign", "silent", "crash", "hang", "slow", "large")


def work(names: list[str], start: int, folder: Path) -> None:
    """Read file after file and print one line of JSON for each; where it is, is printed first, in case of a crash."""
    logging.disable(logging.WARNING)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    every = [formats()[name] for name in names]
    known = {form.name: form.known(folder) for form in every}
    for seed in itertools.count(start):
        for form in every:
            if seed % form.every:
                continue
            data, crafted = made(form, seed)
            path = folder / form.name_of_file
            path.write_bytes(data)
            print(json.dumps([form.name, seed, str(path)]), flush=True)
            found = tried(form, path, known[form.name], crafted or not form.checked)
            kinds = [found.kind]
            if len(data) < SMALL:
                kinds += ["slow"] * (found.seconds > LONGEST_SECONDS) + ["large"] * (found.memory > MOST_BYTES)
            for kind in set(kinds) & set(BAD):
                keep(kind, form.name, seed, data)
            print(json.dumps([kinds, found.said[:500], found.seconds, found.memory]), flush=True)


def keep(kind: str, name: str, seed: int, data: bytes) -> None:
    """Keep a file that is a finding. It cannot always be made again from its seed: what services say is recorded."""
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / f"{kind}_{name}_{seed}".replace(" ", "_")).write_bytes(data)


class Counts:
    """What is printed in the end."""

    def __init__(self, wanted: float) -> None:
        self.wanted = wanted
        self.kinds: dict[str, Counter[str]] = defaultdict(Counter)
        self.slowest: dict[str, float] = defaultdict(float)
        self.largest: dict[str, float] = defaultdict(float)

    def add(self, name: str, seed: int, kinds: list[str], said: str, seconds: float, memory: float) -> None:
        """Count one file, and print it if it is a finding."""
        self.kinds[name]["files"] += 1
        self.kinds[name].update(kinds)
        self.slowest[name] = max(self.slowest[name], seconds)
        self.largest[name] = max(self.largest[name], memory)
        for problem in set(kinds) & set(BAD):
            print(f"{problem}: {name}, seed {seed}: {said} ({seconds:.2f} s, {memory / 1e6:.0f} MB)", flush=True)

    def enough(self) -> bool:
        """Whether as many files were read as were wanted."""
        return sum(counts["files"] for counts in self.kinds.values()) >= self.wanted

    def bad(self) -> int:
        """Number of findings."""
        return sum(counts[kind] for counts in self.kinds.values() for kind in BAD)

    def show(self) -> None:
        """Print the table."""
        columns = ("files", "refused", "same", "other", *BAD)
        print(f"{'format':20}" + "".join(f"{column:>9}" for column in columns) + "  slowest s  largest MB")
        total: Counter[str] = Counter()
        for name, counts in self.kinds.items():
            total += counts
            line = "".join(f"{counts[column]:9,}" for column in columns)
            print(f"{name:20}{line}{self.slowest[name]:11.3f}{self.largest[name] / 1e6:12.1f}")
        print(f"{'all':20}" + "".join(f"{total[column]:9,}" for column in columns))


def fuzz(names: list[str], minutes: float, seed: int, files: float = math.inf) -> Counts:
    """Drive workers until the time is up or so many files were read."""
    counts, end = Counts(files), time.monotonic() + 60 * minutes
    while time.monotonic() < end and not counts.enough():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz", "--work", str(seed), "--folder", folder]
            command += ["--formats", ",".join(names)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as worker:
                current, pending = _followed(worker, counts, end)
                worker.kill()
            if worker.returncode == 1:
                raise RuntimeError(f"the fuzzer itself failed after seed {current[1] if current else seed}")
            if pending and time.monotonic() < end:
                kind = "hang" if worker.returncode == -9 else "crash"
                keep(kind, current[0], current[1], Path(current[2]).read_bytes())
                counts.add(current[0], current[1], [kind], f"the process ended with {worker.returncode}", 0.0, 0.0)
        seed = (current[1] if current else seed) + 1
    return counts


def _followed(worker: subprocess.Popen[bytes], counts: Counts, end: float) -> tuple[list[Any], bool]:
    """Count what a worker prints; the file that it was at in the end, and whether it had not finished it."""
    current: list[Any] = []
    pending = False
    for line in _lines(worker, end):
        said = json.loads(line)
        if pending:
            counts.add(current[0], current[1], *said)
        else:
            current = said
        pending = not pending
        if counts.enough():
            return current, False
    return current, pending and time.monotonic() < end


def _lines(worker: subprocess.Popen[bytes], end: float) -> Iterator[bytes]:
    """Line after line, until the worker ends or says nothing for too long, or the time is up."""
    assert worker.stdout is not None
    text, begun = b"", False
    with selectors.DefaultSelector() as selector:
        selector.register(worker.stdout, selectors.EVENT_READ)
        while time.monotonic() < end:
            # The first lines take as long as importing torch and making samples.
            if not selector.select(LONGEST_SILENCE if begun else 10 * LONGEST_SILENCE):
                return
            piece = os.read(worker.stdout.fileno(), 2**16)
            if not piece:
                worker.wait()
                return
            begun = True
            *whole, text = (text + piece).split(b"\n")
            yield from whole


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--files", type=float, default=math.inf, help="end sooner, after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", default=",".join(NAMES))
    parser.add_argument("--coverage", action="store_true", help="led by what code was reached, with atheris")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.coverage:
        # In a process of its own: what is searched must not have been imported before.
        command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz.coverage", "--minutes", str(given.minutes)]
        return subprocess.run(command, check=False).returncode
    names = given.formats.split(",")
    if given.work is not None:
        try:
            work(names, given.work, given.folder)
        except BaseException:
            traceback.print_exc()
            os._exit(1)  # threads of a service would be waited for
    counts = fuzz(names, given.minutes, given.seed, given.files)
    counts.show()
    return 1 if counts.bad() else 0


if __name__ == "__main__":
    sys.exit(main())
