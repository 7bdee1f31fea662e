"""Fuzzing led by what code was reached, with atheris, where it is installed.

Run ``python -m tests.fuzz --coverage --minutes 5``. The first byte of an input says which format the rest is, and
whether its checksum is set right before it is read, so that the search gets behind it. What was reached is kept in
``out/fuzz/corpus`` and gone on from; a finding ends the run and is kept in ``out/fuzz``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import zipfile
from pathlib import Path

try:
    import atheris
except ImportError:  # there are wheels for Linux only
    atheris = None

ROOT = Path(__file__).parents[2]


def _compiled() -> list[str]:
    """Modules with functions that numba compiles, which it cannot once they are instrumented."""
    files = [
        path
        for path in (ROOT / "qubo_compress").rglob("*.py")
        if "numba" in (text := path.read_text()) or "compiling import" in text
    ]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]


# What is searched must be imported under instrumentation, and so before anything else imports it.
instrumented = (
    contextlib.nullcontext() if atheris is None else atheris.instrument_imports(["qubo_compress"], _compiled())
)
with instrumented:
    from qubo_compress._internal.arrays import _checksum
    from qubo_compress._internal.checked_json import with_checksum
    from qubo_compress.menu.storage.file_format import file_digest
    from tests.fuzz import KEPT, NAMES
    from tests.fuzz.formats import formats
    from tests.fuzz.trial import MOST_BYTES, tried

SLOW = ("service answer",)
LARGEST = 100_000
"""Bytes of an input."""

LONGEST_SECONDS = 60


def cover(minutes: float) -> int:
    """Search for so many minutes; does not return where there is something to search with."""
    if atheris is None:
        print("atheris is not installed here (pip install atheris, on Linux): nothing was searched")
        return 0
    chosen = [formats()[name] for name in NAMES if name not in SLOW]
    folder = Path(tempfile.mkdtemp())
    known = [form.known(folder) for form in chosen]
    corpus = KEPT / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, form in enumerate(chosen):
        for count, sample in enumerate(form.samples):
            for sealed in (0, 128):
                (corpus / f"{form.name}_{count}_{sealed}").write_bytes(bytes([number + sealed]) + sample)

    def one(data: bytes) -> None:
        if not data:
            return
        form, sealed = chosen[data[0] % 128 % len(chosen)], data[0] >= 128
        content = resealed(form.name, data[1:]) if sealed else data[1:]
        path = folder / form.name_of_file
        path.write_bytes(content)
        found = tried(form, path, known[chosen.index(form)], may_differ=sealed or not form.checked)
        if found.kind in ("foreign", "silent") or found.memory > MOST_BYTES:
            raise AssertionError(f"{found.kind}: {form.name}: {found.said} ({found.memory / 1e6:.0f} MB)")

    options = [f"-max_total_time={round(60 * minutes)}", f"-max_len={LARGEST}", f"-timeout={LONGEST_SECONDS}"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={KEPT}/", "-print_final_stats=1", str(corpus)], one)
    atheris.Fuzz()
    return 0


def resealed(name: str, data: bytes) -> bytes:
    """The same file with a right checksum, where it has a place for one."""
    try:
        if name in ("plan", "embeddings"):
            values = json.loads(data)
            values.pop("checksum", None)
            return with_checksum(values)
        if name == "network":
            length = int.from_bytes(data[:8], "little")
            header, payload = json.loads(data[8 : 8 + length]), data[8 + length :]
            said = header["__metadata__"]
            said["digest"] = file_digest(said, payload)
            text = json.dumps(header).encode()
            return len(text).to_bytes(8, "little") + text + payload
        if data[:2] == b"PK":
            file = io.BytesIO(data)
            with zipfile.ZipFile(file, "a") as archive:
                said = json.loads(archive.comment)
                said.pop("checksum", None)
                archive.comment = json.dumps({**said, "checksum": _checksum(archive.infolist(), said)}).encode()
            return file.getvalue()
    except Exception:  # damaged beyond that
        return data
    return data


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    sys.exit(cover(parser.parse_args().minutes))
