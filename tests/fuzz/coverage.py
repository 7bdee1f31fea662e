"""Fuzzing led by coverage, where atheris is installed (``pip install 'qubo_compress[fuzz]'``).

Run ``python -m tests.fuzz.coverage --format plan --minutes 5``. It begins with the samples of the format and keeps what
reaches new lines of our readers, of :mod:`zipfile` and of :mod:`json`; a finding ends it and is kept in ``out/fuzz/``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from tests.fuzz import KEPT, NAMES


def main() -> None:
    """Command line; atheris does not return."""
    import atheris  # no part of the library or its tests

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--format", default="plan", choices=NAMES)
    given = parser.parse_args()
    readers = ["qubo_compress._internal", "qubo_compress.plan_file", "qubo_compress.problem_file", "zipfile", "json"]
    import_module("torch")  # and what it imports, which is not looked into
    import_module("scipy.sparse")
    with atheris.instrument_imports(include=readers, enable_loader_override=False):
        from tests.fuzz.formats import formats
        from tests.fuzz.trial import tried
    form = formats()[given.format]
    folder = Path(tempfile.mkdtemp())
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, sample in enumerate(form.samples):
        (corpus / str(number)).write_bytes(sample)
    known = form.known(folder)
    KEPT.mkdir(parents=True, exist_ok=True)

    def one(data: bytes) -> None:
        path = folder / form.name_of_file
        path.write_bytes(data)
        found = tried(form, path, known, may_differ=not form.checked)
        if found.kind in ("foreign", "silent"):
            raise AssertionError(f"{found.kind}: {found.said}")

    limits = [f"-max_total_time={int(60 * given.minutes)}", "-timeout=10", "-rss_limit_mb=4000", "-max_len=8192"]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={KEPT}/", str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
