"""A mixed-integer linear program solved by HiGHS in a separate process: ``python milp_process.py INPUT OUTPUT``.

HiGHS ignores Ctrl-C and sometimes its own time limit, but a process can be killed. This file runs as a script and
imports only numpy and scipy, so that it starts within a second.
"""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, sparse

_DIGEST_LENGTH = hashlib.sha256().digest_size


def write_arrays(path: Path, arrays: Mapping[str, npt.ArrayLike]) -> None:
    """Write a checksum and arrays in numpy's format; a temporary name first, so the file is complete or absent."""
    body = io.BytesIO()
    named: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    np.savez(body, **named)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_bytes(hashlib.sha256(body.getbuffer()).digest() + body.getbuffer())
    unfinished.replace(path)


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays from :func:`write_arrays`.

    Raises:
        ValueError: when the file was altered; it is then not parsed.
    """
    data = path.read_bytes()
    body = data[_DIGEST_LENGTH:]
    if hashlib.sha256(body).digest() != data[:_DIGEST_LENGTH]:
        raise ValueError(f"{path} is damaged: its checksum does not match")
    with np.load(io.BytesIO(body), allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def main(source: str, target: str) -> None:
    """Solve the program in one file; write solution, bound and nodes to another."""
    stored = read_arrays(Path(source))
    matrix = sparse.csr_array(
        (stored["data"], stored["indices"], stored["indptr"]), shape=tuple(stored["shape"].tolist())
    )
    result = optimize.milp(
        stored["objective"],
        integrality=stored["integrality"],
        bounds=optimize.Bounds(0.0, 1.0),
        constraints=optimize.LinearConstraint(matrix, stored["low"], stored["high"]),
        options={"time_limit": float(stored["seconds"]), "mip_rel_gap": float(stored["gap"])},
    )
    bound = result.get("mip_dual_bound")
    answer = {
        "x": np.zeros(0) if result.x is None else result.x,
        "bound": np.float64(-np.inf if bound is None else bound),
        "nodes": np.int64(result.get("mip_node_count") or 0),
        "infeasible": np.bool_(result.status == 2),
    }
    write_arrays(Path(target), answer)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
