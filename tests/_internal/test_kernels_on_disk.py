"""Kernels compile and run where nothing can be written to the disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import qubo_compress as qc
from qubo_compress._internal.compiling import compiled

@compiled
def doubled(value: float) -> float:
    return 2.0 * value

assert doubled(3.0) == 6.0
from qubo_compress.menu.coding import kernels as entropy_kernels
from qubo_compress.menu.storage import row_kernels
from qubo_compress.solvers.annealer import kernels as annealer_kernels
from qubo_compress.solvers.exact import price_kernels
print("imported and used")
"""


def test_kernels_run_where_no_folder_can_be_written_to(tmp_path: Path) -> None:
    nowhere = tmp_path / "a file, not a folder"
    nowhere.write_text("")
    # Folders below a file cannot be made, not even by root: neither the package's cache nor the user's.
    environment = {
        **os.environ, "NUMBA_CACHE_DIR": str(nowhere / "cache"), "HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    environment["NUMBA_CACHE_LOCATOR_CLASSES"] = "UserProvidedCacheLocator"  # not the package's folder, which root may
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "imported and used"
    said = done.stderr.strip().splitlines()
    assert len(said) == 1 and "cannot be kept on disk" in said[0] and "NUMBA_CACHE_DIR" in said[0]


MODULE = """
from qubo_compress._internal.compiling import compiled

@compiled
def doubled(value: float) -> float:
    return 2.0 * value
"""


def test_a_package_that_cannot_be_written_to_keeps_its_kernels_in_the_users_folder(tmp_path: Path) -> None:
    installed, cache = tmp_path / "installed", tmp_path / "user"
    installed.mkdir()
    (installed / "kernels.py").write_text(MODULE)
    # No folder can take the place of a file, not even for root, who may write to read-only folders.
    (installed / "__pycache__").write_text("")
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": f"{installed}:{Path(__file__).parents[2]}"}
    program = "import kernels; kernels.doubled(3.0); print(sum(kernels.doubled.stats.cache_hits.values()))"
    hits = [
        subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()
        for _ in range(2)
    ]
    assert hits == ["0", "1"]
    assert list(cache.rglob("*.nbi"))
