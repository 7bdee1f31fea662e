"""What a stranger gets: the built package in a fresh environment with only what it requires.

``make wheel``, or ``python -m tests.wheel [--folder out/wheel] [--python python3.12]``. Builds the source distribution
and, from it, the wheel; installs that into a fresh virtual environment; and there, in an empty folder, runs README's
first steps, asks for every extra that is missing, and has a typed script checked by mypy, which is this environment's.
Ends with sizes and import times. It takes some minutes, most of them pip's, and is therefore a step of its own in CI.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LARGEST_WHEEL = 2_000_000
"""Bytes: what was promised to whoever downloads it."""
NEEDED = ("qubo_compress/py.typed", "qubo_compress/example/example.npz", "qubo_compress/__init__.py")
UNWANTED = ("tests/", "benchmarks/", "notebooks/", "shared/")


def run(command: Sequence[str | Path], folder: Path) -> None:
    """Run a command in a folder, without this repository on the path; its output is shown.

    Raises:
        CalledProcessError: when it fails.
    """
    told = " ".join(str(part) for part in command)
    print(f"$ {told[:120]}", flush=True)
    outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    subprocess.run([str(part) for part in command], cwd=folder, env=outside, check=True)


def built(folder: Path) -> tuple[Path, Path]:
    """The source distribution, and the wheel that is built from it."""
    run([sys.executable, "-m", "build", "--quiet", "--outdir", folder, ROOT], folder)
    (source,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return source, wheel


def refuse_odd_contents(source: Path, wheel: Path) -> None:
    """End the run if something is missing from the wheel, or something is in it that is of no use there."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    with tarfile.open(source) as archive:
        sources = [name.partition("/")[2] for name in archive.getnames()]
    problems = [f"{name} is missing" for name in NEEDED if name not in names or name not in sources]
    problems += [f"{name} is not wanted" for name in [*names, *sources] if name.startswith(UNWANTED)]
    if wheel.stat().st_size > LARGEST_WHEEL:
        problems.append(f"{wheel.stat().st_size:,} bytes are more than {LARGEST_WHEEL:,}")
    if problems:
        raise SystemExit(f"{wheel.name}: {'; '.join(problems[:10])}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "wheel", help="emptied first")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the fresh environment")
    parser.add_argument("--constraints", type=Path, default=ROOT / "constraints.txt", help="versions for pip")
    options = parser.parse_args()
    folder = options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir(parents=True)
    source, wheel = built(folder)
    refuse_odd_contents(source, wheel)
    run([options.python, "-m", "venv", folder / "fresh"], folder)
    fresh = folder / "fresh" / "bin" / "python"
    run([fresh, "-m", "pip", "install", "--quiet", "--no-compile", "--constraint", options.constraints, wheel], folder)
    run([fresh, "-m", "qubo_compress.warm_up"], elsewhere)
    run([fresh, HERE / "first_steps.py"], elsewhere)
    run([fresh, HERE / "missing_extras.py"], elsewhere)
    run([sys.executable, "-m", "mypy", "--strict", "--cache-dir", folder / "mypy", "--python-executable", fresh,
         HERE / "typed_script.py"], elsewhere)  # fmt: skip
    run([fresh, HERE / "import_times.py"], elsewhere)
    print(f"{wheel.name}: {wheel.stat().st_size:,} bytes; {source.name}: {source.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
