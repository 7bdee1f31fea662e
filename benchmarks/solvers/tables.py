"""Tables and pictures of what ``python -m benchmarks.solvers`` recorded.

    python -m benchmarks.solvers.tables [--tier quick]

* gap: (energy - best) / (random - best), where best is the proven optimum or, where none is proven, the least energy
  that any run of any solver reached (marked ``*``), and random is the best of 1000 random assignments within it;
* time to target: the target lies one hundredth of the way from best to random; reached with 99 % confidence
  after t ln(0.01) / ln(1 - p), with p the share of runs that reached it by time t, at the best t;
* answers: share of runs that gave an answer within the budget.

Loops around samplers of binary models begin with a descent of ours, before any sample is drawn. Where that is what the
answer still was at the end in every run, the figure is marked ``d``; where no sample came in time at all, ``n``.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np

from benchmarks.records import RESULTS, markdown, read
from benchmarks.solvers.comparison import PATH
from benchmarks.solvers.comparison import cells as cells_of
from benchmarks.solvers.contestants import CONTESTANTS
from benchmarks.solvers.instances import problem_of
from benchmarks.solvers.plan_scores import key_of, scores
from qubo_compress import ChoiceProblem, solve
from qubo_compress._internal.files import write_atomically
from qubo_compress.problem.energy_scale import OPTIMAL_GAP

BEST = RESULTS / "solvers_best.json"
TARGET = 0.01
OPTIMUM = 1e-6
"""Share of the way from best to random within which a run counts as being at the optimum."""
_RANDOM_DRAWS = 1000
_TRACE_PRECISION = 3e-5
"""Of traces recorded before the annealer computed what stands in them afresh."""

Record = dict[str, Any]


def load_records(tier: str) -> list[Record]:
    """All records that belong to a tier, whichever tier they were run for."""
    wanted = {(cell.instance, cell.solver, cell.seed, cell.seconds) for cell in cells_of(tier)}
    return [r for r in read(PATH) if (r["instance"], r["solver"], r["seed"], r["seconds"]) in wanted]


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


def gap_table(records: list[Record], best: dict[str, dict[str, Any]]) -> str:
    """Rows: solvers. Columns: mean gaps per instance in percent, at all time limits; answers; longest solve; memory."""
    instances = _solved(records, best)
    limits = sorted({record["seconds"] for record in records})
    cells = grouped(records, "solver", "instance", "seconds")
    header = ["solver", *(f"{i}{'' if best[i]['proven'] else ' *'}" for i in instances)]
    header += ["answers", "longest solve, share of limit", "memory added, MB"]
    rows = []
    for solver in CONTESTANTS:
        mine = [record for record in records if record["solver"] == solver]
        if not mine:
            continue
        row = [f"`{solver}`"]
        for instance in instances:
            found = [cells.get((solver, instance, seconds), []) for seconds in limits]
            shown = [_percent(statistics.mean(gap_of(r, best) for r in part), part) if part else "-" for part in found]
            row.append(" / ".join(shown) if any(found) else "not run")
        row.append(f"{100 * statistics.mean('energy' in r for r in mine):.0f} %")
        row.append(f"{100 * max(r['taken'] / r['seconds'] for r in mine):.0f} %")
        added = [r["memory_added"] for r in mine if "memory_added" in r]
        row.append(f"{max(added):.0f}" if added else "-")
        rows.append(row)
    return markdown(header, rows)


def _solved(records: list[Record], best: dict[str, dict[str, Any]]) -> list[str]:
    """Instances, in the order of the records, for which anybody has an answer."""
    return [instance for instance in dict.fromkeys(r["instance"] for r in records) if instance in best]


def _percent(value: float, found: list[Record]) -> str:
    failed = sum("energy" not in record for record in found)
    note = f" ({failed} of {len(found)} without answer)" if failed else ""
    return f"{value:.2f}{_mark(found)}{note}"


def _mark(found: list[Record]) -> str:
    """What a loop owes to its sampler: ``n`` for no sample in time, ``d`` for nothing more than the first descent."""
    loops = [record for record in found if "rounds" in record.get("details", {})]
    if not loops:
        return ""
    if all(record["details"]["rounds"] == 0 for record in loops):
        return " n"
    started = all(record["trace"] and record["trace"][0][1] <= record["energy"] + 1e-12 for record in loops)
    return " d" if started else ""


def longest(records: list[Record]) -> list[Record]:
    """Of each solver's runs on each instance, those with its longest limit."""
    limits: dict[tuple[str, str], float] = {}
    for record in records:
        key = record["solver"], record["instance"]
        limits[key] = max(limits.get(key, 0.0), record["seconds"])
    return [record for record in records if record["seconds"] == limits[record["solver"], record["instance"]]]


def target_table(records: list[Record], best: dict[str, dict[str, Any]], share: float = TARGET) -> str:
    """Rows: solvers. Columns: time to target of each instance at the solver's longest limit, in seconds.

    The number of runs stands behind the time: one run says nothing about confidence. The last columns sum up: at how
    many instances the target was reached in all runs, and the median over these of the time.
    """
    instances = _solved(records, best)
    cells = grouped(longest(records), "solver", "instance")
    rows = []
    for solver in CONTESTANTS:
        times = [time_to_target(cells[solver, i], best, share) if (solver, i) in cells else None for i in instances]
        if any(t is not None for t in times):
            shown = ["not run" if t is None else _seconds(t) for t in times]
            runs = [len(cells.get((solver, i), [])) for i in instances]
            marks = [_mark(cells.get((solver, i), [])) for i in instances]
            summary = _summary([cells[solver, i] for i in instances if (solver, i) in cells], best, share)
            rows.append(
                [f"`{solver}`", *(f"{t} ({n}){m}" for t, n, m in zip(shown, runs, marks, strict=True)), *summary]
            )
    columns = [f"{i}{'' if best[i]['proven'] else ' *'}" for i in instances]
    return markdown(["solver", *columns, "reached in all runs", "median of these, s"], rows)


def _summary(cells: list[list[Record]], best: dict[str, dict[str, Any]], share: float) -> list[str]:
    hits = [[first_hit(record, best, share) for record in found] for found in cells]
    always = [statistics.median(times) for times in hits if all(map(math.isfinite, times))]
    return [f"{len(always)} of {len(cells)}", f"{statistics.median(always):.3g}" if always else "-"]


def _seconds(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:.3g}"


def outcome_table(records: list[Record], best: dict[str, dict[str, Any]]) -> str:
    """Measured instances at the longest limit: energy, test loss and accuracy of the plans, work done."""
    known = scores()
    rows = []
    for (instance, solver), found in grouped(longest(records), "instance", "solver").items():
        answered = [r for r in found if "energy" in r and key_of(instance, r["assignment"]) in known]
        plans = [known[key_of(instance, r["assignment"])] for r in answered]
        if not plans:
            continue
        rows.append(
            [
                instance,
                f"`{solver}`",
                f"{statistics.mean(r['energy'] for r in answered):.5f}",
                f"{statistics.mean(gap_of(r, best) for r in answered):.2f} %",
                f"{100 * statistics.mean(_excess(r, best) for r in answered):.2f} %",
                f"{statistics.mean(p['loss'] for p in plans):.4f}",
                f"{statistics.mean(p['accuracy'] for p in plans):.2f}",
                f"{statistics.median(r['details'].get('evaluations', r['work']) for r in answered):,.0f}",
            ]
        )
    header = ["instance", "solver", "energy", "gap", "above best, of its size", "test loss", "test accuracy %"]
    return markdown([*header, "work, each in its own unit"], rows)


def _excess(record: Record, best: dict[str, dict[str, Any]]) -> float:
    """How far the energy lies above the best known, as a share of that energy's own size."""
    least = best[record["instance"]]["energy"]
    return float((record["energy"] - least) / max(abs(least), 1e-9))


def timing_table(records: list[Record]) -> str:
    """Samplers of binary models at the longest limit: where the time went, in percent of the total."""
    stages = ("build", "embed", "queue", "programming", "sample", "anneal", "readout", "decode")
    rows = []
    for (solver,), found in grouped((r for r in longest(records) if "timing" in r), "solver").items():
        if CONTESTANTS[solver].kind != "binary sampler":
            continue
        row = [f"`{solver}`"]
        for stage in stages:
            shares = [100 * r["timing"][stage] / r["timing"]["total"] for r in found if stage in r["timing"]]
            row.append(f"{statistics.mean(shares):.1f}" if shares else "-")
        for name in ("samples_valid", "samples_within_budget"):
            drawn = sum(r["details"].get("samples", 0) for r in found)
            count = sum(r["details"].get(name, 0) for r in found)
            row.append(f"{100 * count / drawn:.0f}" if drawn else "-")
        rows.append(row)
    return markdown(["solver", *stages, "samples valid", "samples valid and within budget"], rows)


def main() -> None:
    """Write the tables and pictures of a tier."""
    from benchmarks.solvers.pictures import anytime_curves, performance_profile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", default="quick")
    tier = parser.parse_args().tier
    records = load_records(tier)
    best = best_known(read(PATH))
    limits = sorted({record["seconds"] for record in records})
    parts = {
        f"Gap in percent, after {' / '.join(f'{x:g} s' for x in limits)}": gap_table(records, best),
        "Time to target in seconds": target_table(records, best),
        "Time in seconds to the proven optimum, or (*) to the best known": target_table(records, best, OPTIMUM),
        "What the plans are worth": outcome_table(records, best),
        "Where the time of the samplers goes (percent), and what share of their samples is usable": timing_table(
            records
        ),
    }
    text = "\n".join(f"## {title}\n\n{part}" for title, part in parts.items())
    write_atomically(RESULTS / f"solvers_{tier}.md", lambda handle: handle.write(text.encode()))
    anytime_curves(records, best, RESULTS / f"anytime_{tier}.png")
    performance_profile(records, best, RESULTS / f"profile_{tier}.png")
    print(text)


if __name__ == "__main__":
    main()
