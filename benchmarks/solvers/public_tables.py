"""The page of ``benchmarks.studies.solvers_public``: findings as text, and the tables that they are taken from."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

from benchmarks.records import Record, markdown, matching, newest
from benchmarks.solvers.contenders import CONTENDERS
from benchmarks.solvers.public import INSTANCES

MOMENTS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Seconds of the anytime table."""

EQUAL = 1e-6
"""Relative distance within which two energies are the same."""


NOTES = """\
Distances are in percent of the best known value; where that is zero, they are differences. A bound counts as a proof
if it leaves a relative gap of at most 1e-6, or, where all energies are whole numbers, if the next whole number is the
energy found. *No answer*: nothing that meets the budgets was found in time. *Killed*: two seconds and a fifth of the
limit late, with whatever had been found. *Too large*: beyond Gurobi's free licence (200 variables with products). A
time with < is the whole search: that solver does not say when. SCIP, CP-SAT and HiGHS get a linearised model from
Python, and building it is within the limit. Five settings of CP-SAT were tried, none of HiGHS, Gurobi and SCIP.
`exact` and `auto` call toulbar2 and HiGHS, too. One seed. Import and compile: the first start in a fresh checkout, on
the busy machine.
"""


def report(records: list[Record]) -> str:
    """The whole page."""
    records = newest(records, "contender", "instance", "seconds", "seed")
    best = best_values(records)
    limits = sorted({record["seconds"] for record in records})
    longest = matching(records, seconds=limits[-1])
    parts = {
        "Who finds, who proves, and where the annealer loses": findings(longest, best),
        "How to read the tables": NOTES,
        "The instances": instance_table(records, best),
        **{f"All contenders after {limit:g} s": contender_table(matching(records, seconds=limit), best)
           for limit in limits},
        f"Above the best known value, after {limits[-1]:g} s": cell_table(longest, best, shown_gap),
        f"Bounds: below the best known value, after {limits[-1]:g} s": cell_table(longest, best, shown_bound),
        f"Seconds to the best known value, of {limits[-1]:g}": cell_table(longest, best, shown_seconds),
        f"Anytime: instances at the best known value so long after the start, of {limits[-1]:g} s":
            anytime_table(longest, best),
    }  # fmt: skip
    return "\n".join(f"{'#' if number == 0 else '##'} {title}\n\n{part}" for number, (title, part) in
                     enumerate(parts.items()))  # fmt: skip


def best_values(records: list[Record]) -> dict[str, float]:
    """Instance -> the least energy found or stated.

    Raises:
        ValueError: if an energy lies below a stated optimum, or a bound above the best value: one of them is wrong.
    """
    best: dict[str, float] = {}
    for record in records:
        name = record["instance"]
        known = INSTANCES[name].known
        least = best.setdefault(name, math.inf if known is None else known)
        energy = record.get("energy", math.inf)
        if known is not None and energy < known and not same(energy, known):
            raise ValueError(f"{name}: {record['contender']} found {energy}, below the stated optimum {known}")
        best[name] = min(least, energy)
    for record in records:
        value, bound = best[record["instance"]], record.get("bound")
        if bound is not None and bound > value and not same(bound, value):
            raise ValueError(f"{record['instance']}: {record['contender']} claims a bound of {bound} above {value}")
    return best


def same(first: float, second: float) -> bool:
    """Whether two energies are equal, up to rounding."""
    return math.isclose(first, second, rel_tol=EQUAL, abs_tol=1e-12)


def found(record: Record, best: dict[str, float]) -> bool:
    """Whether the best known value was reached."""
    return "energy" in record and same(record["energy"], best[record["instance"]])


def distance(apart: float, best: float) -> str:
    """A difference in percent of the best value, or as it is where that is zero."""
    if best == 0.0:
        return "0" if apart == 0.0 else f"+{apart:g}"
    return percent(abs(apart) / abs(best))


def percent(share: float) -> str:
    """A share in percent, to three digits."""
    return f"{100 * share:,.0f} %" if share >= 10.0 else f"{100 * share:.3g} %"


def shown_gap(record: Record, best: dict[str, float]) -> str:
    """How far the answer is above the best known value."""
    if "energy" not in record:
        return _failure(record)
    value = best[record["instance"]]
    return "**0**" if found(record, best) else distance(record["energy"] - value, value)


def shown_bound(record: Record, best: dict[str, float]) -> str:
    """How far the bound is below the best known value, or that it was proven."""
    if "energy" not in record:
        return _failure(record)
    if record["proven"]:
        return f"**proven**, {record['taken']:.2g} s"
    value = best[record["instance"]]
    return "none" if record["bound"] is None else distance(value - record["bound"], value)


def shown_seconds(record: Record, best: dict[str, float]) -> str:
    """When the best known value was found."""
    seconds = seconds_to_best(record, best)
    if math.isinf(seconds):
        return "-"
    return f"{'< ' if not record['trace'] else ''}{seconds:.2g}"


def seconds_to_best(record: Record, best: dict[str, float]) -> float:
    """Seconds until the best known value was found; until the end for a solver that does not say when."""
    if not found(record, best):
        return math.inf
    hits = (seconds for seconds, energy in record["trace"] if same(energy, best[record["instance"]]))
    return float(next(hits, min(record["taken"], record["seconds"])))


def _failure(record: Record) -> str:
    error = str(record["error"])
    return {"ProblemTooLarge": "too large", "UnsupportedProblem": "not taken", "killed": "killed"}.get(
        error.partition(":")[0].partition(" ")[0], "no answer"
    )


def took_part(record: Record) -> bool:
    """Whether the contender took the instance at all."""
    return _failure(record) not in ("too large", "not taken") if "error" in record else True


def _contenders(records: list[Record]) -> list[str]:
    present = {record["contender"] for record in records}
    return [name for name in CONTENDERS if name in present]


def cell_table(records: list[Record], best: dict[str, float], cell: Callable[[Record, dict[str, float]], str]) -> str:
    """Rows: instances. Columns: contenders; the first seed."""
    names = _contenders(records)
    rows = []
    for instance in dict.fromkeys(record["instance"] for record in records):
        cells = {r["contender"]: r for r in matching(records, instance=instance) if r["seed"] == 0}
        rows.append([instance, *(cell(cells[name], best) if name in cells else "" for name in names)])
    return markdown(["instance", *(f"`{name}`" for name in names)], rows)


def instance_table(records: list[Record], best: dict[str, float]) -> str:
    """Sizes, sources and known values."""
    rows = []
    for name in dict.fromkeys(record["instance"] for record in records):
        public = INSTANCES[name]
        problem = public.make()
        provers = [n for n in _contenders(records) if any(r.get("proven") for r in matching(
            records, instance=name, contender=n))]  # fmt: skip
        pairs = 0 if problem.pairs is None else problem.pairs.nnz // 2
        value = f"{best[name]:,.6g}" if abs(best[name]) < 1e5 else f"{best[name]:,.0f}"
        rows.append([
            name, f"{problem.num_groups}", f"{problem.num_choices}", f"{pairs:,}", f"{problem.num_budgets}", value,
            "stated" if public.known is not None else "best found here",
            ", ".join(f"`{n}`" for n in provers) or "nobody", public.source,
        ])  # fmt: skip
    header = ["instance", "groups", "choices", "pairs", "budgets", "value", "", "proven here by", "source"]
    return markdown(header, rows)


def contender_table(records: list[Record], best: dict[str, float]) -> str:
    """One row each: what was found and proven, and what it took."""
    rows = []
    for name in _contenders(records):
        mine = [record for record in matching(records, contender=name) if took_part(record)]
        answered = [record for record in mine if "energy" in record]
        hits = [seconds_to_best(record, best) for record in answered if found(record, best)]
        cpu = [
            record["cpu_seconds"] / record["taken"]
            for record in mine
            if record.get("cpu_seconds") and record["taken"] > 1.0
        ]
        started = [record["started"] for record in mine if record["started"] is not None]
        rows.append([
            f"`{name}`", f"{len(hits)} of {len(mine)}", f"{sum(r['proven'] for r in answered)} of {len(mine)}",
            f"{len(mine) - len(answered)}", _mean_gap(answered, best),
            f"{statistics.median(hits):.2g}" if hits else "-",
            f"{statistics.median(cpu):.2f}" if cpu else "-",
            f"{max((r['taken'] / r['seconds'] for r in mine if 'taken' in r), default=0.0):.0%}",
            f"{max(started):.0f}" if started else "-",
        ])  # fmt: skip
    header = ["contender", "at the best known value", "proven", "without answer", "mean distance of the others",
              "median seconds to the best", "CPU seconds per second", "longest, share of limit",
              "import and compile, s"]  # fmt: skip
    return markdown(header, rows)


def _mean_gap(answered: list[Record], best: dict[str, float]) -> str:
    """Mean distance of the answers that are not the best known, where that is not zero."""
    gaps = [
        abs(record["energy"] - best[record["instance"]]) / abs(best[record["instance"]])
        for record in answered
        if not found(record, best) and best[record["instance"]] != 0.0
    ]
    return percent(statistics.mean(gaps)) if gaps else "-"


def anytime_table(records: list[Record], best: dict[str, float]) -> str:
    """Rows: contenders. Columns: moments."""
    rows = []
    for name in _contenders(records):
        mine = [record for record in matching(records, contender=name) if took_part(record)]
        reached = [seconds_to_best(record, best) for record in mine]
        rows.append([f"`{name}`", *(f"{sum(s <= moment for s in reached)}" for moment in MOMENTS), f"{len(mine)}"])
    return markdown(["contender", *(f"{moment:g} s" for moment in MOMENTS), "of"], rows)


def findings(records: list[Record], best: dict[str, float]) -> str:
    """What the tables say, in sentences."""
    limit = records[0]["seconds"]
    names = _contenders(records)
    lines = [
        f"One process, one thread, one shared processor each, {limit:g} s of wall clock, building included. Problems "
        "of others, in their published numbers or by their published formulas. Nothing here is a quantum computer. "
        f"{_load(records)}\n",
    ]
    for verb, test in (("finds", found), ("proves", lambda record, best: bool(record.get("proven")))):
        counts = {n: sum(test(r, best) for r in matching(records, contender=n)) for n in names}
        taken = {n: sum(took_part(r) for r in matching(records, contender=n)) for n in names}
        ranked = sorted(names, key=lambda n: -counts[n])
        what = "the best known value" if verb == "finds" else "it"
        lines.append(f"* **Who {verb} {what}:** " + ", ".join(f"`{n}` {counts[n]} of {taken[n]}" for n in ranked) + ".")
    for own in ("annealer", "auto"):
        lines.append(_losses(own, records, best))
    alone = [r["instance"] for r in matching(records, contender="auto") if found(r, best) and not any(
        found(o, best) for o in matching(records, instance=r["instance"])
        if o["contender"] in ("scip", "cp-sat", "highs", "gurobi", "cfn"))]  # fmt: skip
    lines.append("* **What only ours find:** " + ("; ".join(dict.fromkeys(alone)) or "nothing") + ".")
    lines += [_unproven_by_auto(records), _open(records, best)]
    return "\n".join(lines) + "\n"


def _load(records: list[Record]) -> str:
    """What the machine was busy with meanwhile."""
    shares = [r["cpu_seconds"] / r["taken"] for r in records if r.get("cpu_seconds") and r["taken"] > 1.0]
    if not shares:
        return ""
    return (
        f"Other work ran on the machine: a contender had a median of {statistics.median(shares):.2f} CPU seconds for "
        f"each second (between {min(shares):.2f} and {max(shares):.2f})."
    )


def _unproven_by_auto(records: list[Record]) -> str:
    """What others prove and `auto` does not."""
    lost = []
    for mine in matching(records, contender="auto"):
        rivals = matching(records, instance=mine["instance"], seed=mine["seed"])
        provers = [f"`{r['contender']}`" for r in rivals if r.get("proven")]
        if provers and not mine.get("proven"):
            lost.append(f"{mine['instance']} ({', '.join(provers)})")
    return "* **What others prove and `auto` does not:** " + ("; ".join(lost) or "nothing") + "."


def _open(records: list[Record], best: dict[str, float]) -> str:
    """The greatest bound on each instance that nobody proves."""
    bounds = []
    for instance in dict.fromkeys(record["instance"] for record in records):
        known = [r for r in matching(records, instance=instance) if r.get("bound") is not None]
        if known and not any(r["proven"] for r in known):
            first = max(known, key=lambda r: float(r["bound"]))
            below = distance(best[instance] - first["bound"], best[instance])
            bounds.append(f"{instance} (`{first['contender']}`, {below} below)")
    return "* **What nobody proves, and whose bound is greatest:** " + ("; ".join(bounds) or "nothing") + "."


def _losses(own: str, records: list[Record], best: dict[str, float]) -> str:
    """Where one contender is behind another, in value or in proof."""
    behind = []
    for mine in matching(records, contender=own):
        if found(mine, best):
            continue
        better = [
            f"`{r['contender']}`" for r in matching(records, instance=mine["instance"], seed=mine["seed"])
            if r.get("energy", math.inf) < mine.get("energy", math.inf) - 1e-9 * abs(best[mine["instance"]])
        ]  # fmt: skip
        behind.append(f"{mine['instance']} ({shown_gap(mine, best)}; ahead: {', '.join(better) or 'nobody'})")
    return f"* **Where `{own}` misses it:** " + ("; ".join(behind) or "nowhere") + "."
