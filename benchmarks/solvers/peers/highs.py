"""HiGHS: branch and cut on the linearised problem."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Any, ClassVar

import numpy as np

from benchmarks.solvers.peers.linearised import NO_LIMIT, Linearised, assignment_of, linearised
from qubo_compress._internal.optional import require
from qubo_compress.solvers import Search, Solver

_SCALE = 1e3
"""Typical difference between choices in the programme: HiGHS' tolerances are absolute."""

_TOLERANCE = 1e-6
"""What a node or a reduced cost may lack in the programme's units; deducted for every group and coupled pair."""

_GAP = 2e-7
"""Relative gap at which HiGHS stops, below that of an optimal solution."""


@dataclass(frozen=True)
class Highs(Solver):
    """HiGHS with one thread; the bound is its dual bound less its tolerances."""

    name: ClassVar[str] = "highs"
    optimises: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("highspy",)

    def run(self, search: Search) -> None:
        """Solve until proven or out of time."""
        highspy = require("highspy", "benchmarks")
        with search.stage("build"):
            programme = linearised(search.problem, search.deadline)
            if programme is None:
                return
            solver = _passed(highspy, programme)
        solver.setOptionValue("random_seed", int(search.rng.integers(2**31)))
        solver.setOptionValue("time_limit", max(0.01, search.seconds_left))
        sizes = programme.network.sizes

        def keep(event: Any) -> None:
            _keep(search, np.asarray(event.data_out.mip_solution), sizes)

        solver.cbMipImprovingSolution.subscribe(keep)
        solver.run()
        info = solver.getInfo()
        _keep(search, np.asarray(solver.getSolution().col_value), sizes)
        search.work = search.most_work(max(0, int(info.mip_node_count)) + 1)
        search.infeasible = solver.getModelStatus() == highspy.HighsModelStatus.kInfeasible
        search.details["resolution"] = programme.resolution
        if np.isfinite(info.mip_dual_bound) and not search.infeasible:
            counted = 1 + programme.groups + programme.tables
            units = (info.mip_dual_bound - _TOLERANCE * counted) / (_SCALE * programme.network.unit)
            search.bound = programme.energy(max(0, floor(units)))


def _keep(search: Search, x: np.ndarray, sizes: np.ndarray) -> None:
    if x.size >= search.problem.num_choices:
        found = assignment_of(x, sizes)
        if search.problem.is_feasible(found):
            search.keep(found)


def _passed(highspy: Any, programme: Linearised) -> Any:
    """HiGHS with the programme; choices are whole, the other variables are between zero and one."""
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    solver.setOptionValue("mip_rel_gap", _GAP)
    solver.setOptionValue("mip_abs_gap", 1e-6)
    scale = _scales(programme)
    matrix, model = programme.matrix, highspy.HighsLp()
    model.num_col_, model.num_row_ = matrix.shape[1], matrix.shape[0]
    model.col_cost_ = _SCALE * programme.network.unit * programme.costs
    model.col_lower_, model.col_upper_ = np.zeros(matrix.shape[1]), np.ones(matrix.shape[1])
    model.row_lower_ = np.where(programme.low <= -NO_LIMIT, -np.inf, programme.low / scale)
    model.row_upper_ = np.where(programme.high >= NO_LIMIT, np.inf, programme.high / scale)
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_, model.a_matrix_.index_ = matrix.indptr, matrix.indices
    model.a_matrix_.value_ = matrix.data / np.repeat(scale, np.diff(matrix.indptr))
    choices = int(programme.network.sizes.sum())
    kinds = (highspy.HighsVarType.kInteger, highspy.HighsVarType.kContinuous)
    model.integrality_ = [kinds[column >= choices] for column in range(matrix.shape[1])]
    solver.passModel(model)
    return solver


def _scales(programme: Linearised) -> np.ndarray:
    """(M,) the largest number of each row: tolerances are for numbers of moderate size."""
    matrix = programme.matrix
    return np.maximum.reduceat(np.abs(matrix.data), matrix.indptr[:-1]).astype(np.float64)
