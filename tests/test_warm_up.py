"""After the warm-up nothing is compiled: neither by compressing nor by solving."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

AFTERWARDS = """
import qubo_compress as qc
from benchmarks.networks import load
from qubo_compress._internal.compiling import KERNELS
from qubo_compress.warm_up import warm_up

def compiled():
    return {(kernel.py_func.__module__, kernel.py_func.__name__, len(kernel.signatures)) for kernel in KERNELS}

warm_up()
before = compiled()
network = load("digits", calibration_examples=32)
for menu in (None, qc.Menu.of("quantize", "prune", "compensate", "trellis", coded=True)):
    qc.compress(network.model, network.calibration, qc.Budget(ratio=8), menu=menu, progress=False, time_limit=1.0)
print(sorted(compiled() - before))
"""


def test_after_the_warm_up_nothing_is_compiled() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AFTERWARDS], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
