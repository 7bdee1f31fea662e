"""Gaps and times to target of recorded solves, which tables and pictures are made of."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np

from benchmarks.records import RESULTS, Record
from benchmarks.solvers.instances import problem_of
from qubo_compress import ChoiceProblem, solve
from qubo_compress._internal.files import write_atomically
from qubo_compress.problem.energy_scale import OPTIMAL_GAP

BEST = RESULTS / "solvers_best.json"
TARGET = 0.01
OPTIMUM = 1e-6
"""Share of the way from best to random within which a run counts as being at the optimum."""
_RANDOM_DRAWS = 1000
_TRACE_PRECISION = 3e-5
"""For traces recorded before the annealer recomputed their energies."""


def best_known(records: Iterable[Record]) -> dict[str, dict[str, Any]]:
    """Instance -> least energy known, whether it is proven, and by whom; merged with what is on file."""
    best: dict[str, dict[str, Any]] = json.loads(BEST.read_text()) if BEST.exists() else {}
    for record in records:
        if "energy" not in record:
            continue
        entry = best.setdefault(record["instance"], {"energy": math.inf, "bound": -math.inf, "by": ""})
        if record["energy"] < entry["energy"]:
            entry.update(energy=record["energy"], by=record["solver"])
        if record["bound"] is not None:
            entry["bound"] = max(entry["bound"], record["bound"])
    for instance, entry in best.items():
        if entry["bound"] > entry["energy"] + OPTIMAL_GAP * max(abs(entry["energy"]), 1e-9):
            raise ValueError(f"{instance}: a bound of {entry['bound']} above the energy {entry['energy']} was recorded")
        gap = (entry["energy"] - entry["bound"]) / max(abs(entry["energy"]), 1e-9)
        entry["proven"] = bool(gap <= OPTIMAL_GAP)
    text = json.dumps(best, indent=1, sort_keys=True).encode()
    write_atomically(BEST, lambda handle: handle.write(text))
    return best


@lru_cache
def random_energy(instance: str) -> float:
    """The best of 1000 random assignments within the budgets; each is drawn with its own bent towards small choices."""
    problem, rng = problem_of(instance), np.random.default_rng(0)
    order = _by_cost(problem)
    energies: list[float] = []
    for _ in range(100 * _RANDOM_DRAWS):
        position = (rng.random(problem.num_groups) ** rng.uniform(0.1, 1.0) * problem.group_sizes).astype(np.int64)
        draw = order[problem.group_offsets[:-1] + position] - problem.group_offsets[:-1]
        if problem.is_feasible(draw):
            energies.append(problem.energy(draw))
            if len(energies) == _RANDOM_DRAWS:
                break
    if energies:
        return min(energies)
    return solve(problem, "random", time_limit=1.0).energy  # budgets that random draws never meet


def _by_cost(problem: ChoiceProblem) -> np.ndarray:
    """(V,) choices of each group from the most expensive to the cheapest."""
    group = np.repeat(np.arange(problem.num_groups), problem.group_sizes)
    return np.lexsort((-problem.costs.sum(axis=0), group))


def gap_of(record: Record, best: dict[str, dict[str, Any]], energy: float | None = None) -> float:
    """Gap of a record, in percent of the way from best to random; 100 where there was no answer."""
    if "energy" not in record:
        return 100.0
    least = best[record["instance"]]["energy"]
    value = record["energy"] if energy is None else energy
    return max(0.0, 100.0 * (value - least) / max(random_energy(record["instance"]) - least, 1e-12))


def first_hit(record: Record, best: dict[str, dict[str, Any]], share: float = TARGET) -> float:
    """Seconds after which a run was within the target; infinite when it never was.

    Energies in traces may be sums in single precision: one that agrees with the verified answer is it.
    """
    if "energy" not in record:
        return math.inf
    reached = gap_of(record, best) <= 100.0 * share
    for seconds, energy in record["trace"]:
        same = energy <= record["energy"] + _TRACE_PRECISION * abs(record["energy"])
        if (same and reached) or (not same and gap_of(record, best, energy) <= 100.0 * share):
            return float(seconds)
    return float(record["taken"]) if reached else math.inf


def time_to_target(records: list[Record], best: dict[str, dict[str, Any]], share: float = TARGET) -> float:
    """Seconds to reach the target with 99 % confidence, restarts counted; infinite when no run reached it."""
    hits = sorted(first_hit(record, best, share) for record in records)
    found = math.inf
    for number, seconds in enumerate(hits, 1):
        if math.isfinite(seconds):
            p = number / len(hits)
            repeats = 1.0 if p == 1.0 else max(1.0, math.log(0.01) / math.log(1.0 - p))
            found = min(found, max(seconds, 1e-5) * repeats)
    return found


def grouped(records: Iterable[Record], *names: str) -> dict[tuple[Any, ...], list[Record]]:
    """Records by the values of some fields."""
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        groups[tuple(record[name] for name in names)].append(record)
    return groups


def longest(records: list[Record]) -> list[Record]:
    """Of each solver's runs on each instance, those with its longest limit."""
    limits: dict[tuple[str, str], float] = {}
    for record in records:
        key = record["solver"], record["instance"]
        limits[key] = max(limits.get(key, 0.0), record["seconds"])
    return [record for record in records if record["seconds"] == limits[record["solver"], record["instance"]]]
