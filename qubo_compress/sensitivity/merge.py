"""Merges tables that were measured on different examples; see :meth:`SensitivityTable.merge`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from qubo_compress.errors import InvalidBatches, TablesDiffer
from qubo_compress.problem.choice_problem import FactorArray, FloatArray, IntArray
from qubo_compress.sensitivity.factor import reduce_features
from qubo_compress.sensitivity.ranks import Arrays, Ranks
from qubo_compress.sensitivity.shrinkage import agreement_of_parts, limited_rows

if TYPE_CHECKING:
    from qubo_compress.sensitivity.provenance import Provenance
    from qubo_compress.sensitivity.table import SensitivityTable

FLIPS = "harmful_flips"
"""The only cost that depends on the examples."""


def shares_of(tables: Sequence[SensitivityTable], weights: Sequence[float] | None) -> FloatArray:
    """(tables,) shares that sum to one: of the examples, or of the given weights."""
    if not tables:
        raise TablesDiffer("merge was given no tables; give at least one")
    if weights is None:
        weights = [table.provenance.examples for table in tables]
    given = np.asarray(weights, dtype=np.float64)
    if given.shape != (len(tables),) or not bool(np.isfinite(given).all() and (given > 0).all()):
        raise InvalidBatches(f"weights must be positive numbers, one for each of {len(tables)} tables; got {weights!r}")
    return np.asarray(given / given.sum())


def refuse_different(tables: Sequence[SensitivityTable]) -> None:
    """Raise :class:`TablesDiffer`, naming the difference, unless all tables have the same choices."""
    first = tables[0]
    if any(table.constant != 0.0 for table in tables):
        raise TablesDiffer(
            "a table that was measured around a plan cannot be merged; merge tables of the uncompressed network"
        )
    for number, table in enumerate(tables[1:], start=1):
        pairs = zip(_what(first).items(), _what(table).values(), strict=True)
        different = [name for (name, one), other in pairs if not _equal(one, other)]
        if different:
            raise TablesDiffer(
                f"table {number} differs from table 0 in its {', '.join(different)}. Measure the same network with "
                "the same menu, groups, metric and loss on every part of the examples" + _ADVICE.get(different[0], "")
            )
    if first.factor is not None and first.factor.any():
        for number, table in enumerate(tables):
            for other in range(number):
                if np.array_equal(table.linear, tables[other].linear) and _equal(table.factor, tables[other].factor):
                    raise TablesDiffer(f"tables {other} and {number} are the same; give each part of the examples once")


_ADVICE = {
    "choices made from data": "; choices such as 'compensate' come out otherwise on other examples: give all examples "
    "to one measurement, which torch.distributed can share, or leave them off the menu",
    "shrinkage": "; give measure a number for shrinkage instead of 'auto'",
}


def _what(table: SensitivityTable) -> dict[str, Any]:
    """Everything that tables of the same choices have in common."""
    costs = {name: values for name, values in table.costs.items() if name != FLIPS}
    fixed = {name: value for name, value in table.fixed_costs.items() if name != FLIPS}
    fits = None if table.fits is None else (table.fits.data, table.fits.ends)
    return {
        "weights": table.provenance.weights,
        "groups": (table.layout.rule, table.layout.groups),
        "menu": (table.menu_names, table.choices),
        "metric": table.provenance.metric,
        "loss": table.provenance.loss,
        "shrinkage": table.provenance.shrinkage,
        "kind of interactions": (table.factor is None, table.pairs is None),
        "divergence": table.divergence is None,
        "choices made from data": dict(table.payloads),
        "costs": (costs, fixed),
        "stored scales": fits,
        "counted flips": FLIPS in table.costs,
    }


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and np.array_equal(one, other)
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def tables_of_ranks(
    table: SensitivityTable, ranks: Ranks, weight: float | None
) -> tuple[list[SensitivityTable], list[float]]:
    """The tables of all ranks and their weights, on every rank; only measured numbers are sent.

    Raises:
        RanksDisagree: unless all are tables of the same choices.
    """
    ranks.require_same({name: _digest(value) for name, value in _what(table).items()})
    own = table.provenance
    known = [getattr(own, name) for name in _COUNTED]
    arrays: Arrays = {"linear": table.linear, "allowed": table.allowed, "constant": np.array(table.constant)}
    arrays["provenance"] = np.array([own.examples if weight is None else weight, *known], dtype=np.float64)
    for name in ("factor", "divergence"):
        if getattr(table, name) is not None:
            arrays[name] = getattr(table, name)
    if table.pairs is not None:
        arrays |= {f"pairs.{name}": getattr(table.pairs, name) for name in _SPARSE}
    if FLIPS in table.costs:
        arrays |= {FLIPS: table.costs[FLIPS], f"fixed.{FLIPS}": np.array(table.fixed_costs[FLIPS])}
    every = [given for given in ranks.exchange(arrays) if given is not None]
    return [_table_of(table, given) for given in every], [float(given["provenance"][0]) for given in every]


_COUNTED = ("examples", "evaluations", "resumed", "baseline_loss", "seconds", "dropped", "trust")

_SPARSE = ("data", "indices", "indptr")


def _table_of(table: SensitivityTable, given: Arrays) -> SensitivityTable:
    """A table of the same choices with another rank's measurements."""
    numbers = dict(zip(_COUNTED, given["provenance"][1:].tolist(), strict=True))
    whole = {name: int(numbers[name]) for name in _COUNTED[:3]}
    fields: dict[str, Any] = {
        name: given[name] for name in ("linear", "allowed", "factor", "divergence") if name in given
    }
    if table.pairs is not None:
        fields["pairs"] = sparse.csr_array(tuple(given[f"pairs.{name}"] for name in _SPARSE), shape=table.pairs.shape)
    if FLIPS in given:
        fields["costs"] = {**table.costs, FLIPS: given[FLIPS]}
        fields["fixed_costs"] = {**table.fixed_costs, FLIPS: int(given[f"fixed.{FLIPS}"])}
    provenance = replace(table.provenance, **{**numbers, **whole})
    return replace(table, **fields, constant=float(given["constant"]), provenance=provenance)


def _digest(value: Any) -> str:
    return hashlib.sha256(_described(value)).hexdigest()


def _described(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        return f"{value.dtype.str}{value.shape}".encode() + value.tobytes()
    if isinstance(value, Mapping):
        return b"".join(repr(name).encode() + _described(held) for name, held in sorted(value.items()))
    if isinstance(value, tuple):
        return b"".join(_described(held) + b"," for held in value)
    return repr(value).encode()


def merged_fields(
    tables: Sequence[SensitivityTable], shares: FloatArray, max_rank: int | None, seed: int
) -> dict[str, Any]:
    """The fields of the merged table that differ from the first one."""
    first = tables[0]
    fields: dict[str, Any] = {"linear": _mean([table.linear for table in tables], shares)}
    fields["allowed"] = np.logical_and.reduce([table.allowed for table in tables])
    trust, dropped = first.provenance.trust, 0.0
    if first.divergence is not None:
        fields["divergence"] = _mean([np.asarray(table.divergence) for table in tables], shares)
    if first.pairs is not None:
        fields["pairs"] = sum(share * table.pairs for share, table in zip(shares, tables, strict=True))
    if first.factor is not None:
        rows, trust, lost = _joined_rows(tables, shares, seed)
        if first.divergence is not None:
            rows = limited_rows(rows, fields["divergence"])
        factor, dropped = reduce_features(rows, max_rank, seed)
        dropped = lost + (1.0 - lost) * dropped
        fields["factor"] = np.asarray(factor * np.float32(math.sqrt(trust)), dtype=np.float32)
    if FLIPS in first.costs:
        cost, fixed = _merged_flips(tables, shares)
        fields["costs"] = {**first.costs, FLIPS: cost}
        fields["fixed_costs"] = {**first.fixed_costs, FLIPS: fixed}
    fields["provenance"] = _provenance(tables, shares, trust, dropped)
    return fields


def _mean(arrays: Sequence[FloatArray], shares: FloatArray) -> FloatArray:
    return np.asarray(np.einsum("k,kv->v", shares, np.stack(arrays)))


def _joined_rows(tables: Sequence[SensitivityTable], shares: FloatArray, seed: int) -> tuple[FactorArray, float, float]:
    """(V, columns) concatenated rows, their trust, and the share that was dropped before."""
    trusts = [table.provenance.trust for table in tables]
    # A table with no trust has no rows left: its pairs count as zero.
    known = [number for number, trust in enumerate(trusts) if trust > 0]
    if not known:
        return np.zeros((tables[0].linear.size, 1), dtype=np.float32), 0.0, 0.0
    rows = [_without_trust(tables[k]) for k in known]
    trust = _joined_trust([trusts[k] for k in known], rows, shares[known], tables, seed)
    norms = [shares[k] * float(np.einsum("vc,vc->", p, p, dtype=np.float64)) for k, p in zip(known, rows, strict=True)]
    whole = sum(n / max(1.0 - tables[k].provenance.dropped, 1e-12) for n, k in zip(norms, known, strict=True))
    lost = max(0.0, 1.0 - sum(norms) / whole) if whole > 0 else 0.0
    joined = np.concatenate([np.float32(math.sqrt(shares[k])) * p for k, p in zip(known, rows, strict=True)], axis=1)
    return joined, trust, lost


def _without_trust(table: SensitivityTable) -> FactorArray:
    return np.asarray(np.asarray(table.factor) / np.float32(math.sqrt(table.provenance.trust)), dtype=np.float32)


def _joined_trust(
    trusts: list[float],
    rows: Sequence[FactorArray],
    shares: FloatArray,
    tables: Sequence[SensitivityTable],
    seed: int,
) -> float:
    # Trusts measured on different examples are never equal: equal ones were set by the user.
    if len(set(trusts)) == 1:
        return trusts[0]
    return agreement_of_parts(rows, shares / shares.sum(), tables[0].offsets, np.random.default_rng(seed))


def _merged_flips(tables: Sequence[SensitivityTable], shares: FloatArray) -> tuple[IntArray, int]:
    """Mean flips in millionths, rounded up; costs are at least zero in every group."""
    offsets = tables[0].offsets
    mean = np.ceil(_mean([table.costs[FLIPS].astype(np.float64) for table in tables], shares) - 1e-6).astype(np.int64)
    least = np.minimum.reduceat(mean, offsets[:-1])
    fixed = float(np.dot(shares, [float(table.fixed_costs[FLIPS]) for table in tables]))
    return mean - np.repeat(least, np.diff(offsets)), int(least.sum()) + math.ceil(fixed - 1e-6)


def _provenance(tables: Sequence[SensitivityTable], shares: FloatArray, trust: float, dropped: float) -> Provenance:
    every = [table.provenance for table in tables]
    return replace(
        every[0],
        examples=sum(one.examples for one in every),
        baseline_loss=float(np.dot(shares, [one.baseline_loss for one in every])),
        # Evaluations count runs over all examples, and each table ran only over its own.
        evaluations=round(float(np.dot(shares, [one.evaluations for one in every]))),
        seconds=sum(one.seconds for one in every),
        dropped=dropped,
        resumed=sum(one.resumed for one in every),
        trust=trust,
    )
