"""One file read, and what became of it."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.form import Format

LONGEST_SECONDS, MOST_BYTES = 1.0, 200e6
"""What reading a file of less than 1 MB may take."""

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Outcome:
    """What became of a file.

    Attributes:
        kind: ``"refused"``, ``"same"``, ``"silent"`` (it was read as something that nobody wrote), ``"other"``
            (likewise, but crafted or of a format without a checksum) or ``"foreign"``.
        said: type and message of the error.
        seconds: CPU time.
        memory: bytes above what the process had.
    """

    kind: str
    said: str
    seconds: float
    memory: float


def tried(form: Format, path: Path, known: set[object], may_differ: bool) -> Outcome:
    """Read a file."""
    before = _reset_peak()
    start = time.process_time()
    kind, said = "same", ""
    try:
        found = form.read(path)
        if found not in known:
            kind = "other" if may_differ else "silent"
    except form.refusals as refusal:
        kind, said = "refused", f"{type(refusal).__name__}: {refusal}"
        if not (said.isprintable() and (not form.named or path.name in said or str(path.parent) in said)):
            kind, said = "foreign", f"an unprintable message, or one without the file's name: {said!r}"
    except Exception as failure:
        kind, said = "foreign", f"{type(failure).__name__}: {failure}"
    seconds = time.process_time() - start
    return Outcome(kind, said, seconds, max(0.0, _peak() - before))


def _reset_peak() -> float:
    """Bytes that the process holds now, from which its peak counts; 0 where the system does not tell."""
    gc.collect(0)
    try:
        _RESET.write_text("5")
    except OSError:
        return _peak()
    return _peak()


def _peak() -> float:
    if not _STATUS.exists():
        return 0.0
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return 1024.0 * int(line.split()[1])
