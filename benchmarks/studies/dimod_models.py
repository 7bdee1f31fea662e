"""Models of D-Wave's examples, solved by ours and by others: energy, bound, proof, CPU seconds.

    python -m benchmarks.studies.dimod_models [--seconds 5] [table]

Every solver runs in a separate process on one thread; CPU seconds are of that process without compiling, and with
reading the model. ``lp:`` are other packages on the file that ``dimod.lp`` writes of the same model.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dimod
import numpy as np

from benchmarks.records import RESULTS
from benchmarks.study import Study, grid
from qubo_compress.errors import QuboCompressError

ROOT = RESULTS.parents[1]

PACKED = (4, 4, 6, 4, 6, 4, 6, 5, 6, 4, 6, 4, 6, 6, 6)
"""Weights of the 15 items in the printed answer of D-Wave's bin packing example; the capacity is 51."""

KNAPSACK = ((35, 12), (85, 27), (30, 11), (50, 17), (70, 20), (80, 10), (55, 15))
"""Values and weights of ``data/small.csv`` in dwave-examples/knapsack."""

BORDERS = (
    "AB BC, AB NT, AB SK, BC NT, BC YT, MB NU, MB ON, MB SK, NB NS, NB QC, NL QC, NT NU, NT SK, NT YT, ON QC"
)  # fmt: skip
"""Neighbours among the provinces and territories of Canada, as in D-Wave's map colouring examples."""


def bin_packing() -> dimod.ConstrainedQuadraticModel:
    """The page "Bin Packing: Binary CQM" of D-Wave's documentation: 15 items, as many bins, and an optimum of 2."""
    return packing(PACKED, 51, len(PACKED), discrete=False)


def small_bin_packing() -> dimod.ConstrainedQuadraticModel:
    """The same model of four items with fractions, small enough for brute force; 2 bins are the optimum."""
    return packing((0.9, 0.7, 0.2, 0.1), 1.0, 4, discrete=True)


def packing(weights: tuple[float, ...], capacity: float, bins: int, discrete: bool) -> dimod.ConstrainedQuadraticModel:
    """Fewest bins of a capacity for items of these weights."""
    cqm = dimod.ConstrainedQuadraticModel()
    used = [dimod.Binary(f"bin_used_{j}") for j in range(bins)]
    placed = [[f"item_{i}_in_bin_{j}" for j in range(bins)] for i in range(len(weights))]
    cqm.set_objective(dimod.quicksum(used))
    for i, places in enumerate(placed):
        if discrete:
            cqm.add_discrete(places, label=f"item_placing_{i}")
        else:
            cqm.add_constraint(dimod.quicksum(map(dimod.Binary, places)) == 1, label=f"item_placing_{i}")
    for j in range(bins):
        load = dimod.quicksum(weight * dimod.Binary(places[j]) for weight, places in zip(weights, placed, strict=True))
        cqm.add_constraint(load - capacity * used[j] <= 0, label=f"capacity_bin_{j}")
    return cqm


def knapsack() -> dimod.ConstrainedQuadraticModel:
    """``build_knapsack_cqm`` of dwave-examples/knapsack on its small data, at 80 % of the total weight."""
    cqm = dimod.ConstrainedQuadraticModel()
    items = [dimod.Binary(f"item_{i}") for i in range(len(KNAPSACK))]
    cqm.set_objective(dimod.quicksum(-value * item for item, (value, _) in zip(items, KNAPSACK, strict=True)))
    load = dimod.quicksum(weight * item for item, (_, weight) in zip(items, KNAPSACK, strict=True))
    cqm.add_constraint(load <= int(0.8 * sum(weight for _, weight in KNAPSACK)), label="capacity")
    return cqm


def several_knapsacks() -> dimod.ConstrainedQuadraticModel:
    """40 items in at most one of four knapsacks each, with pairs of items that are worth more together."""
    rng = np.random.default_rng(0)
    values, weights = rng.integers(10, 60, size=40), rng.integers(5, 30, size=40)
    cqm = dimod.ConstrainedQuadraticModel()
    placed = [[dimod.Binary(f"item_{i}_in_{j}") for j in range(4)] for i in range(40)]
    worth = dimod.quicksum(-int(values[i]) * dimod.quicksum(placed[i]) for i in range(40))
    both = [(i, i + 1, int(rng.integers(5, 15))) for i in range(0, 39, 3)]
    cqm.set_objective(
        worth + dimod.quicksum(-more * placed[i][j] * placed[k][j] for i, k, more in both for j in range(4))
    )
    for i, places in enumerate(placed):
        cqm.add_constraint(dimod.quicksum(places) <= 1, label=f"once_{i}")
    for j in range(4):
        load = dimod.quicksum(int(weights[i]) * placed[i][j] for i in range(40))
        cqm.add_constraint(load <= int(weights.sum() // 6), label=f"knapsack_{j}")
    return cqm


def map_colouring() -> dimod.ConstrainedQuadraticModel:
    """The provinces of Canada in three colours, one discrete variable each: neighbours of one colour cost 1."""
    pairs = [pair.split() for pair in BORDERS.split(", ")]
    cqm = dimod.ConstrainedQuadraticModel()
    names = sorted({name for pair in pairs for name in pair})
    same = [dimod.Binary(f"{u}_{c}") * dimod.Binary(f"{v}_{c}") for u, v in pairs for c in range(3)]
    cqm.set_objective(dimod.quicksum(same))
    for name in names:
        cqm.add_discrete([f"{name}_{c}" for c in range(3)], label=name)
    return cqm


MODELS: dict[str, Callable[[], dimod.ConstrainedQuadraticModel]] = {
    "bin packing 4": small_bin_packing,
    "bin packing 15": bin_packing,
    "knapsack 7": knapsack,
    "4 knapsacks, pairs": several_knapsacks,
    "map colouring": map_colouring,
}
OURS = ("auto", "exact", "annealer", "scip")
OTHERS = ("ExactCQMSolver", "lp:scip", "lp:highs")
MOST_SAMPLES = 2**21
"""Brute force is left out beyond this many samples."""

STUDY = Study(__doc__, "dimod", seconds=5.0)


@STUDY.step(lambda o: grid(model=MODELS, solver=[*OURS, *OTHERS]))
def solved(options: Any, model: str, solver: str) -> dict[str, Any]:
    """One solver on one model, in a separate process."""
    code = f"from benchmarks.studies import dimod_models as m; m.child({model!r}, {solver!r}, {options.seconds!r})"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        return {"failure": done.stderr.strip().splitlines()[-1][:200]}
    return json.loads(done.stdout.splitlines()[-1])


def child(model: str, solver: str, seconds: float) -> None:
    """Solve, and print a record."""
    cqm = MODELS[model]()
    call = {"ExactCQMSolver": brute_force, "lp:scip": scip_on_file, "lp:highs": highs_on_file}.get(solver, ours)
    if call is ours:
        with contextlib.suppress(QuboCompressError):
            call(cqm, solver, 0.5)  # what is compiled, or read from the cache, once per process does not count
    begin, wall = time.process_time(), time.perf_counter()
    record = call(cqm, solver, seconds)
    taken = {"cpu_seconds": time.process_time() - begin, "wall": time.perf_counter() - wall}
    print(json.dumps({**taken, **record, "variables": len(cqm.variables), "constraints": len(cqm.constraints)}))


def ours(cqm: dimod.ConstrainedQuadraticModel, solver: str, seconds: float) -> dict[str, Any]:
    """A solver of this library, as a sampler of dimod."""
    from qubo_compress.solvers import DimodSampler

    options = {"threads": 1} if solver != "scip" else {}
    found = DimodSampler(solver, **options).sample_cqm(cqm, time_limit=seconds)
    best, proven = found.first, found.info["status"] == "optimal"
    return {
        "energy": float(best.energy),
        "feasible": bool(best.is_feasible),
        "bound": found.info["bound"],
        "proven": proven,
    }


def brute_force(cqm: dimod.ConstrainedQuadraticModel, solver: str, seconds: float) -> dict[str, Any]:
    """Brute force by dimod's own exact solver, which tries every sample that respects the discrete constraints."""
    free = len(cqm.variables) - sum(len(cqm.constraints[label].lhs.variables) for label in cqm.discrete)
    samples = 2.0**free * math.prod(len(cqm.constraints[label].lhs.variables) for label in cqm.discrete)
    if samples > MOST_SAMPLES:
        return {"failure": f"would try {samples:.0e} samples"}
    found = dimod.ExactCQMSolver().sample_cqm(cqm).filter(lambda one: one.is_feasible)
    energy = float(found.first.energy)
    return {"energy": energy, "feasible": True, "bound": energy, "proven": True}


def file_of(cqm: dimod.ConstrainedQuadraticModel) -> str:
    """The path of an LP file as dimod writes it."""
    path = Path(tempfile.mkdtemp()) / "model.lp"
    path.write_text(dimod.lp.dumps(cqm))
    return str(path)


def scip_on_file(cqm: dimod.ConstrainedQuadraticModel, solver: str, seconds: float) -> dict[str, Any]:
    """SCIP on the model as it is."""
    import pyscipopt

    model = pyscipopt.Model()
    model.hideOutput()
    model.readProblem(file_of(cqm))
    model.setParam("limits/time", seconds)
    model.optimize()
    return {"energy": model.getObjVal(), "feasible": True, "bound": model.getDualbound(),
            "proven": model.getStatus() == "optimal"}  # fmt: skip


def highs_on_file(cqm: dimod.ConstrainedQuadraticModel, solver: str, seconds: float) -> dict[str, Any]:
    """HiGHS on the model as it is; it takes no products of integers."""
    import highspy

    model = highspy.Highs()
    model.silent()
    model.setOptionValue("threads", 1)
    model.setOptionValue("time_limit", seconds)
    if not cqm.objective.is_linear():
        return {"failure": "takes no products of binaries"}
    model.readModel(file_of(cqm))
    model.run()
    info, status = model.getInfo(), model.getModelStatus()
    proven = status == highspy.HighsModelStatus.kOptimal
    energy, bound = info.objective_function_value, info.mip_dual_bound
    return {"energy": energy, "feasible": info.primal_solution_status == 2, "bound": bound, "proven": proven}


@STUDY.table
def tables(options: Any) -> str:
    """One row per model and solver."""
    lines = [
        f"# Models of D-Wave's examples\n\n{options.seconds:g} s, one thread; CPU seconds without compiling.\n",
        "| model | variables, constraints | solver | energy | bound | proven | CPU s |",
        "| --- | ---: | --- | ---: | ---: | --- | ---: |",
    ]
    for record in STUDY.records():
        size = f"{record.get('variables', '')}, {record.get('constraints', '')}"
        if "failure" in record:
            lines.append(f"| {record['model']} | {size} | {record['solver']} | {record['failure']} | | | |")
            continue
        bound = "" if record["bound"] is None else f"{record['bound']:.6g}"
        lines.append(
            f"| {record['model']} | {size} | {record['solver']} | {record['energy']:.6g} | {bound} | "
            f"{'yes' if record['proven'] else 'no'} | {record['cpu_seconds']:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    STUDY.main()
