"""A mixed-integer linear programme solved by HiGHS in a process of its own: ``python milp_process.py INPUT OUTPUT``.

HiGHS looks at neither Ctrl-C nor, at all times, at its own time limit. As a process it can be ended. This file is
run as a script and imports numpy and scipy only, so that it starts within a second.
"""

from __future__ import annotations

import sys

import numpy as np
from scipy import optimize, sparse


def main(source: str, target: str) -> None:
    """Solve the programme in one ``.npz`` file and write solution, bound and nodes to another."""
    with np.load(source, allow_pickle=False) as stored:
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
    np.savez(
        target,
        x=np.zeros(0) if result.x is None else result.x,
        bound=np.float64(-np.inf if bound is None else bound),
        nodes=np.int64(result.get("mip_node_count") or 0),
        infeasible=np.bool_(result.status == 2),
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
