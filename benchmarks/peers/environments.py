"""Environments of other packages: made by ``venv`` and ``pip``, and processes that run in them.

A package that cannot be installed, or whose process fails, is an ``Unavailable`` with a message that says why.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import THREAD_VARIABLES

TOOLS = Path(__file__).parent / "tools"
READY = "ready.json"
TORCH = "torch==2.13.0"
"""The version that has a wheel for the processor alone here; a tool that needs another one says so."""

LONGEST_MESSAGE = 300


class Unavailable(RuntimeError):
    """A package does not install here, or does not run; the message is its last words."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with some packages.

    Attributes:
        folder: where it is, or will be made; None is the environment that runs this.
        packages: as pip names them.
    """

    folder: Path | None
    packages: tuple[str, ...] = ()

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return Path(sys.executable) if self.folder is None else self.folder / "bin" / "python"

    def versions(self) -> dict[str, str]:
        """Installed packages and their versions; makes the environment where there is none.

        Raises:
            Unavailable: when pip cannot install the packages; what it said is kept for the next call.
        """
        if self.folder is None:
            return {}
        ready = self.folder / READY
        if not ready.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            ready.write_text(json.dumps(self._made(self.folder)))
        found = json.loads(ready.read_text())
        if "failed" in found:
            raise Unavailable(found["failed"])
        return dict(found)

    def _made(self, folder: Path) -> dict[str, str]:
        if not self.python.exists():
            subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True)
        if self.packages:
            command = [self.python, "-m", "pip", "install", "--no-input", "--progress-bar", "off", *self.packages]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                return {"failed": f"pip install {' '.join(self.packages)}: {last_words(done.stderr)}"}
        listed = subprocess.run(
            [self.python, "-m", "pip", "list", "--format", "json"], capture_output=True, text=True, check=True
        )
        return {one["name"]: one["version"] for one in json.loads(listed.stdout)}

    def run(self, script: str, job: Path, seconds: float) -> float:
        """Run one of the tools' scripts on the folder of a job.

        Args:
            script: name of a file in ``tools``.
            job: see ``benchmarks.peers.jobs``.
            seconds: of the processor, after which the process ends.

        Returns:
            CPU seconds of the whole process and of those that it started, imports included.

        Raises:
            Unavailable: when the package is not installed, or the process fails.
        """
        self.versions()
        command = ["bash", "-c", f'ulimit -t {int(seconds)}; exec "$@"', "tool", self.python, TOOLS / script, job]
        environment = os.environ | dict.fromkeys(THREAD_VARIABLES, "1") | {"CUDA_VISIBLE_DEVICES": ""}
        environment.pop("PYTHONPATH", None)
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(command, stdout=said, stderr=said, env=environment, cwd=job)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            said.seek(0)
            text = said.read().decode(errors="replace")
        (job / "log.txt").write_text(text)
        spent = used.ru_utime + used.ru_stime
        if process.returncode == -signal.SIGKILL and spent > 0.9 * int(seconds):
            raise Unavailable(f"{script} was stopped after {spent:.0f} s of the processor, of {int(seconds)} allowed")
        if process.returncode:
            raise Unavailable(f"{script} ended with {process.returncode}: {last_words(text)}")
        return spent


def last_words(text: str) -> str:
    r"""The line that says what went wrong: the last error, or the last that is not empty; shortened.

    Example:
        >>> last_words("a warning\nERROR: no matching distribution\n\n")
        'ERROR: no matching distribution'
    """
    lines = [
        line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("[notice]", "WARNING"))
    ]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return [*lines, *errors][-1][:LONGEST_MESSAGE] if lines else "nothing was said"
