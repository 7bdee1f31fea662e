"""The content of a report, gathered once from a result: numbers, rows and sentences for any medium."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qubo_compress._internal.text import printable
from qubo_compress.budget import Budget
from qubo_compress.menu.operator import parse
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.network.groups import Group
from qubo_compress.network.private import CARRIED
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.page import numbers
from qubo_compress.plan import Compression, Plan
from qubo_compress.problem.choice_problem import FloatArray, IntArray
from qubo_compress.sensitivity.table import SensitivityTable

if TYPE_CHECKING:
    from qubo_compress.pipeline.compress import CompressionResult
    from qubo_compress.selection.evolution import Evolution

SPEED = (
    "In PyTorch, as here, the plan saves bytes, not time: the network computes with weights of the original shape and "
    "type. An exported file may run faster: result.elsewhere() measures it."
)
SMALLER = "The network is physically smaller: it stores and computes only the channels that are left."

_FILTER = re.compile(r"\[\d+\]$")


@dataclass(frozen=True)
class GroupRow:
    """One group of the plan, or several shown as one.

    Attributes:
        name: of the group, or of the joined groups.
        kind: ``"weight"``, ``"normalisation"``, ``"bias"``, ``"channels"`` or ``"mixed"``.
        choice: its choice, or a count of choices.
        bits: bits per stored value as coded, averaged over several groups.
        zeros: share of weights that are zero; None for vectors.
        values: how many values the group has.
        original_bytes, bytes: before and after.
        alone: loss change of this choice alone, in the table.
        groups: how many groups the row stands for.
    """

    name: str
    kind: str
    choice: str
    bits: float
    zeros: float | None
    values: int
    original_bytes: int
    bytes: int
    alone: float
    groups: int = 1

    @property
    def stored_bits(self) -> float:
        """Bits per value in the file, scales and masks included."""
        return 8 * self.bytes / max(1, self.values)


@dataclass(frozen=True)
class Bundles:
    """Groups joined so that they fit a picture or a table.

    Attributes:
        labels: one name per row shown.
        members: for each, the indices of its groups.
        sentence: what was joined; "" if every group has its own row.
    """

    labels: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]
    sentence: str


@dataclass(frozen=True)
class KeptRow:
    """A tensor or group that was not compressed, and why."""

    name: str
    nbytes: int
    reason: str


def about_speed(result: CompressionResult) -> str:
    """Whether the network runs faster, and what removing channels was compared with."""
    said = SPEED if result.plan.removal is None else SMALLER
    if result.decisions is None:
        return said
    trials = [
        f"{trial.name} ({trial.removed:,} coupled sets removed)" * (trial.removed > 0) or trial.name
        for trial in result.decisions.trials
    ]
    measured = [
        "no plan fits" if trial.measure is None else f"{trial.measure:.3g}" for trial in result.decisions.trials
    ]
    compared = "; ".join(f"{name}: {value}" for name, value in zip(trials, measured, strict=True))
    return f"{said} Measured distance from the original of the best plans: {compared}."


def group_rows(result: CompressionResult) -> tuple[GroupRow, ...]:
    """One row per group, in the order of the network."""
    table, plan = result.table, result.plan
    if table.removals is not None:
        return _channel_rows(table, plan)
    stored = _compression(result).stored
    chosen = chosen_indices(table, plan.choices)
    rows = []
    for group, position in zip(table.layout.groups, chosen, strict=True):
        packed = stored[group.name]
        zeros = 1.0 - packed.nonzeros / max(1, group.numel) if group.kind == "weight" else None
        rows.append(
            GroupRow(
                name=printable(group.name),
                kind=group.kind,
                choice=plan.choices[group.name],
                bits=_bits(group, plan.choices[group.name], packed),
                zeros=zeros,
                values=group.numel,
                original_bytes=group.nbytes,
                bytes=int(table.costs["bytes"][position]),
                alone=float(table.linear[position]),
            )
        )
    return tuple(rows)


def _channel_rows(table: SensitivityTable, plan: Plan) -> tuple[GroupRow, ...]:
    """One row per decision about channels; its bytes are those that it takes beside what always stays."""
    rows = []
    for number, (group, first) in enumerate(zip(table.layout.groups, table.offsets[:-1], strict=True)):
        own, choice = int(table.costs["bytes"][first]), plan.choices[group.name]
        kept = choice == "keep"
        alone = float(table.linear[first + table.choices[number].index(choice)])
        rows.append(
            GroupRow(printable(group.name), group.kind, choice, 32.0 * kept, None, own // 4, own, own * kept, alone)
        )
    return tuple(rows)


def _bits(group: Group, choice: str, packed: Stored) -> float:
    # A kept normalisation includes a 64-bit counter, which must not count as a vector's bits.
    return 8.0 * group.members[0].dtype.itemsize if choice == "keep" else float(packed.weight_bits)


def _compression(result: CompressionResult) -> Compression:
    found: Compression = getattr(result.model, CARRIED)
    return found


def chosen_indices(table: SensitivityTable, choices: Mapping[str, str]) -> IntArray:
    """(G,) positions of a plan's choices among all choices of the table."""
    return np.asarray(table.offsets[:-1] + table.assignment(choices), dtype=np.int64)


def bundle(rows: Sequence[GroupRow], *, most: int, vectors_from: int) -> Bundles:
    """Join groups until there are at most ``most`` rows.

    Filters are joined to their layer first, then biases and normalisations to one row (from
    ``vectors_from`` rows on), then the smallest groups to one row.

    Args:
        rows: one per group.
        most: rows that fit.
        vectors_from: number of rows above which biases and normalisations are joined.
    """
    parts: list[tuple[str, list[int]]] = [(row.name, [number]) for number, row in enumerate(rows)]
    said = []
    if len(parts) > most:
        joined: dict[str, list[int]] = {}
        for name, members in parts:
            joined.setdefault(_FILTER.sub("", name), []).extend(members)
        if len(joined) < len(parts):
            said.append("the filters or channels of a layer are joined into one row")
        parts = list(joined.items())
    # Coupled channels are neither weights nor vectors: they were joined to layers above, if there are many.
    own = ("weight", "channels")
    vectors = [members[0] for _, members in parts if rows[members[0]].kind not in own]
    if len(parts) > vectors_from and len(vectors) > 1:
        parts = [(name, members) for name, members in parts if rows[members[0]].kind in own]
        parts.append((f"{len(vectors)} biases, normalisations", vectors))
        said.append(f"{len(vectors)} biases and normalisations are joined into one row")
    if len(parts) > most:
        sizes = [sum(rows[i].original_bytes for i in members) for _, members in parts]
        largest = set(np.argsort(sizes, kind="stable")[::-1][: most - 1].tolist())
        rest = [members for number, (_, members) in enumerate(parts) if number not in largest]
        parts = [part for number, part in enumerate(parts) if number in largest]
        parts.append((f"{len(rest)} smaller rows", [i for members in rest for i in members]))
        said.append(f"only the {most - 1} largest rows are shown, the other {len(rest)} are joined into one")
    sentence = f"There are {len(rows)} groups: {', and '.join(said)}." if said else ""
    return Bundles(tuple(name for name, _ in parts), tuple(tuple(members) for _, members in parts), sentence)


def bundled_rows(rows: Sequence[GroupRow], bundles: Bundles) -> tuple[GroupRow, ...]:
    """Rows of joined groups: sums of bytes, values and losses; averages of bits and zeros by value."""
    return tuple(
        rows[members[0]] if len(members) == 1 else _joined(label, [rows[i] for i in members])
        for label, members in zip(bundles.labels, bundles.members, strict=True)
    )


def _joined(label: str, rows: Sequence[GroupRow]) -> GroupRow:
    values = sum(row.values for row in rows)
    weights = [row for row in rows if row.zeros is not None]
    weighed = sum(row.values for row in weights)
    kinds = {row.kind for row in rows}
    counts = Counter(row.choice for row in rows).most_common()
    listed = "; ".join(f"{count} × {choice}" for choice, count in counts[:4])
    return GroupRow(
        name=label,
        kind=kinds.pop() if len(kinds) == 1 else "mixed",
        choice=listed + (f"; {len(counts) - 4} more" if len(counts) > 4 else ""),
        bits=sum(row.bits * row.values for row in rows) / max(1, values),
        zeros=sum((row.zeros or 0.0) * row.values for row in weights) / weighed if weighed else None,
        values=values,
        original_bytes=sum(row.original_bytes for row in rows),
        bytes=sum(row.bytes for row in rows),
        alone=sum(row.alone for row in rows),
        groups=len(rows),
    )


def bundled_factor(result: CompressionResult, bundles: Bundles) -> tuple[FloatArray, bool] | None:
    """(R, R) inner products between rows of the plan in units of the loss, or None without cross terms.

    Feature rows add up, so those of joined groups are summed exactly. The diagonal is what a row adds alone. The second
    value says whether the matrix comes from a factor, and so is positive semidefinite.
    """
    table = result.table
    chosen = chosen_indices(table, result.plan.choices)
    if table.factor is not None:
        features = table.factor[chosen].astype(np.float64)
        summed = np.stack([features[list(members)].sum(0) for members in bundles.members])
        return summed @ summed.T, True
    if table.pairs is None:
        return None
    between = np.asarray(table.pairs[chosen][:, chosen].todense(), dtype=np.float64)
    member = np.zeros((len(bundles.members), len(chosen)))
    for row, members in enumerate(bundles.members):
        member[row, list(members)] = 1.0
    return member @ between @ member.T, False


def strongest_pairs(result: CompressionResult, most: int = 12) -> tuple[tuple[str, str, float, float], ...]:
    """(name, name, loss that the pair adds, cosine) of the pairs of groups that matter most; the cosine may be NaN."""
    chosen = chosen_indices(result.table, result.plan.choices)
    singles = tuple((number,) for number in range(len(chosen)))
    found = bundled_factor(result, Bundles(result.table.group_names, singles, ""))
    if found is None or len(chosen) < 2:
        return ()
    between, is_gram = found
    first, second = np.tril_indices(len(chosen), -1)
    order = np.argsort(-np.abs(between[first, second]), kind="stable")[:most]
    length = np.sqrt(np.clip(np.diag(between), 0, None)) if is_gram else np.zeros(len(chosen))
    rows = []
    for a, b in zip(second[order].tolist(), first[order].tolist(), strict=True):
        added, scale = float(between[a, b]), float(length[a] * length[b])
        if added:
            names = (printable(result.table.group_names[a]), printable(result.table.group_names[b]))
            rows.append((*names, added, added / scale if scale > 0 else np.nan))
    return tuple(rows)


def kept_rows(result: CompressionResult) -> tuple[KeptRow, ...]:
    """Everything stored unchanged: tensors outside all groups, then groups for which ``keep`` was chosen."""
    layout = result.table.layout
    rows = [KeptRow(printable(item.name), item.nbytes, printable(item.reason)) for item in layout.kept]
    removals = result.table.removals if result.decisions is None else result.decisions.table.removals
    pinned = [] if removals is None else removals.channels.pinned
    rows += [KeptRow(printable(item.name), 0, f"{item.count} sets of channels: {item.reason}") for item in pinned]
    if result.table.removals is not None:
        return tuple(rows)
    for number, group in enumerate(layout.groups):
        if result.plan.choices[group.name] == "keep":
            rows.append(KeptRow(printable(group.name), group.nbytes, _why_kept(result, number, group)))
    return tuple(rows)


def _why_kept(result: CompressionResult, number: int, group: Group) -> str:
    table = result.table
    offered = table.choices[number]
    start = int(table.offsets[number])
    if group.name in table.kept_because:
        return table.kept_because[group.name]
    if len(offered) == 1:
        return _refusals(result, group)
    if int(table.allowed[start : start + len(offered)].sum()) == 1:
        return "it was pinned to keep"
    return "the plan keeps it: the budget leaves room for that"


def _refusals(result: CompressionResult, group: Group) -> str:
    parts = NetworkTensors(result.original).parts(group)
    found = [parse(name).refusal(group, parts) for name in result.table.menu_names if name != "keep"]
    reasons = list(dict.fromkeys(reason for reason in found if reason))
    return "no choice of the menu suits it" + (f": {'; '.join(reasons)}" if reasons else "")


def shared_tensors(result: CompressionResult) -> tuple[tuple[str, str], ...]:
    """(name, first name) of each parameter that shares a tensor, which is stored once."""
    return tuple((name, first) for name, first in result.table.layout.aliases.items() if name != first)


def budget_rows(result: CompressionResult) -> tuple[tuple[str, int, int], ...]:
    """(name, limit, used) for every budget that was set."""
    table = result.table
    chosen = chosen_indices(table, result.plan.choices)
    # Not the table's own sizes: it may be about what is left of the network.
    limits = result.budget.limits(result.plan.original_bytes, result.plan.parameters)
    costs, fixed = table.costs_under(result.budget)
    return tuple(
        (
            name,
            limit,
            int(fixed.get(name, 0))
            + int(costs[name][chosen].sum())
            + (int(table.pair_costs[name][chosen][:, chosen].sum()) // 2 if name in table.pair_costs else 0),
        )
        for name, limit in limits.items()
    )


# ------------------------------------------------------------------------------------------- sentences


def about_calibration(result: CompressionResult) -> tuple[str, ...]:
    """How the costs were measured, and what the results are based on."""
    facts = result.table.provenance
    held_out = result.before.examples
    said = [
        f"Costs come from the metric {facts.metric} with the loss {facts.loss} on {facts.examples:,} calibration "
        f"examples: {facts.evaluations:,} runs of the network over all of them, {facts.seconds:.1f} s"
        + (f", {facts.resumed:,} parts read back from the cache." if facts.resumed else ".")
    ]
    if result.table.factor is not None:
        said.append(
            f"Cross terms come from a factor of rank {result.table.factor.shape[1]}; reducing its rank dropped "
            f"{100 * facts.dropped:.2g} % of its energy."
        )
        said.append(_trust_sentence(facts.trust))
    elif result.table.pairs is not None:
        said.append("Cross terms were measured pair by pair.")
    else:
        said.append("There are no cross terms: this metric measures every choice separately.")
    if facts.shrinkage:
        said.append(_shrinkage_sentence(facts.shrinkage))
    rounds = len(result.rounds) - 1
    if rounds:
        extra = sum(found.table.provenance.evaluations for found in result.rounds[1:])
        seconds = sum(found.table.provenance.seconds for found in result.rounds[1:])
        taken = sum(found.accepted for found in result.rounds[1:])
        said.append(
            f"{rounds} refinement round{'s' * (rounds > 1)} measured again from the plan found ({extra:,} more runs, "
            f"{seconds:.1f} s); {taken or 'none'} improved it."
        )
    if result.evolution is not None:
        said.append(search_sentence(result.evolution))
    whose = "validation examples given" if result.held_out_is_validation else "calibration examples set aside"
    said.append(
        f"Loss and accuracy are from the {held_out:,} {whose}. These chose between plans, so judge the final "
        "network on examples that it has never seen."
    )
    return tuple(said)


def search_sentence(search: Evolution) -> str:
    """What a search on the network did, and how its best plan improved."""
    said = f"A search on the network forwarded {search.evaluations:,} examples"
    if not search.trace:
        return said + " and found no plan."
    steps = [
        f"{numbers.number(loss)} after {spent:,} ({examples:,} examples)"
        for spent, loss, examples in (search.trace[0], *search.trace[-1:])
    ]
    return said + f"; its best plan measured {' and '.join(dict.fromkeys(steps))}, on other examples than those below."


def _shrinkage_sentence(share: float) -> str:
    """What a choice alone is charged.

    Example:
        >>> _shrinkage_sentence(1.0)[:96]
        "A choice alone is charged for how far it moves the outputs from the original's (the divergence),"
    """
    if share >= 1.0:
        return (
            "A choice alone is charged for how far it moves the outputs from the original's (the divergence), not for "
            "the change of the loss, which would reward luck with the labels of few examples."
        )
    return (
        f"A choice alone is charged for the change of the loss, {100 * (1 - share):.0f} %, and for how far it moves "
        f"the outputs from the original's (the divergence), {100 * share:.0f} %: the loss alone would reward luck with "
        "the labels of few examples."
    )


def _trust_sentence(trust: float) -> str:
    """How much of the measured pair energies counts.

    Example:
        >>> _trust_sentence(1.0)
        'What two choices cost together counts in full.'
    """
    if trust >= 1.0:
        return "What two choices cost together counts in full."
    return (
        f"What two choices cost together counts {100 * trust:.0f} % of the measured value: that share repeats from one "
        "half of the examples to the other half, and the rest is chance."
    )


def budget_text(budget: Budget) -> str:
    """The budget as the user set it."""
    given = [
        ("ratio", "ratio {:g}"), ("bytes", "{:,} bytes"), ("bits_per_weight", "{:g} bits per weight"),
        ("macs", "{:,} multiplications"), ("bit_operations", "{:,} bit operations"), ("cells", "{:,} cells"),
        ("harmful_flips", "at most {:.3%} harmful flips"), ("latency_ms", "{:g} ms"),
    ]  # fmt: skip
    return ", ".join(form.format(getattr(budget, name)) for name, form in given if getattr(budget, name) is not None)


def gap_text(gap: float | None) -> str:
    """A relative gap in percent, or in multiples if it is huge."""
    if gap is None:
        return "no bound"
    return f"{100 * gap:.2g} %" if gap < 1 else f"{gap:.3g} times the value"
