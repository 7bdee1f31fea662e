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

import math
import statistics
from typing import Any

from benchmarks.records import RESULTS, Record, markdown, read, write
from benchmarks.solvers.comparison import PATH
from benchmarks.solvers.comparison import cells as cells_of
from benchmarks.solvers.contestants import CONTESTANTS
from benchmarks.solvers.gaps import OPTIMUM, TARGET, best_known, first_hit, gap_of, grouped, longest, time_to_target
from benchmarks.solvers.pictures import anytime_curves, performance_profile
from benchmarks.solvers.plan_scores import key_of, scores
from benchmarks.study import command_line


def load_records(tier: str) -> list[Record]:
    """All records that belong to a tier, whichever tier they were run for."""
    wanted = {(cell.instance, cell.solver, cell.seed, cell.seconds) for cell in cells_of(tier)}
    return [r for r in read(PATH) if (r["instance"], r["solver"], r["seed"], r["seconds"]) in wanted]


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
    tier = command_line(__doc__, tier="quick").tier
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
    write(f"solvers_{tier}.md", text)
    anytime_curves(records, best, RESULTS / f"anytime_{tier}.png")
    performance_profile(records, best, RESULTS / f"profile_{tier}.png")


if __name__ == "__main__":
    main()
