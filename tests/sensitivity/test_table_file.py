"""Tables on disk: what is solved from the file is what was measured, and files from elsewhere are checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn

import qubo_compress as qc
from qubo_compress._internal.arrays import array_writer, read_arrays
from qubo_compress.errors import CorruptArtifact, InvalidOption
from qubo_compress.network.discovery import discover
from qubo_compress.sensitivity.provenance import Provenance
from qubo_compress.sensitivity.table import SensitivityTable
from qubo_compress.sensitivity.table_file import FORMAT

NETWORK = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2))
CHOICES = (("keep", "quantize(bits=4)", "drawn"), ("keep",), ("keep", "quantize(bits=4)"), ("keep", "cast(bits=16)"))
COSTS = np.array([24, 9, 7, 8, 16, 6, 8, 4])


def by_hand(**changes: Any) -> SensitivityTable:
    """A table of a small network, with every field set."""
    pairs = np.zeros((8, 8))
    pairs[1, 5] = pairs[5, 1] = -0.25
    values: dict[str, Any] = {
        "layout": discover(NETWORK, "layer"),
        "menu_names": ("keep", "quantize(bits=4)", "drawn", "cast(bits=16)"),
        "choices": CHOICES,
        "linear": np.array([0, 0.5, 0.75, 0, 0, 0.125, 0, 0.1]),
        "costs": {"bytes": COSTS, "macs": COSTS[::-1].copy()},
        "fixed_costs": {"bytes": 200},
        "provenance": Provenance("pairwise", "kl", 16, 0.0, 8, 0.5, 0.0, 1.0, "weights", trust=0.5),
        "pairs": sparse.csr_array(pairs),
        "constant": 0.25,
        "divergence": np.arange(8) / 7,
        "allowed": np.array([True] * 5 + [False, True, True]),
        "payloads": {("0.weight", "drawn"): b"seven b"},
        "kept_because": {"0.bias": "it is short"},
    }
    return SensitivityTable(**{**values, **changes})


def same(one: SensitivityTable, other: SensitivityTable) -> bool:
    names = ("layout", "menu_names", "choices", "fixed_costs", "provenance", "constant", "payloads", "kept_because")
    arrays = ("linear", "factor", "divergence", "allowed")
    return (
        all(getattr(one, name) == getattr(other, name) for name in names)
        and all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)
        and list(one.costs) == list(other.costs)
        and all(np.array_equal(one.costs[name], other.costs[name]) for name in one.costs)
        and (one.pairs is None) == (other.pairs is None)
        and (one.pairs is None or np.array_equal(one.pairs.toarray(), other.pairs.toarray()))
    )


WHOLE = by_hand()


@pytest.mark.parametrize(
    "table",
    [WHOLE, by_hand(pairs=None, factor=np.ones((8, 2), dtype=np.float32)), by_hand(pairs=None, divergence=None)],
    ids=["pairs", "factor", "neither"],
)
def test_a_table_comes_back(table: SensitivityTable, tmp_path: Path) -> None:
    table.save(tmp_path / "table.npz")
    assert same(SensitivityTable.load(tmp_path / "table.npz"), table)


@pytest.mark.parametrize("groups", ["layer", "filter"])
def test_a_plan_of_a_loaded_table_is_the_plan(groups: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    data = [(torch.randn(24, 1, 6, 6), torch.arange(24) % 3)]
    menu = qc.Menu(["quantize(bits=2)", "quantize(bits=8)", "compensate(bits=3)", "fold(bits=16)"])
    table = qc.measure(network, data, menu, "magnitude", groups=groups, progress=False)
    table.minimum_bits(table.group_names[0], 8).save(tmp_path / "table.npz")
    loaded = SensitivityTable.load(tmp_path / "table.npz")
    budget = qc.Budget(bytes=int(1.3 * table.problem(qc.Budget(ratio=1)).smallest_totals()[0]))
    plans = [each.plan(qc.solve(each.problem(budget), "exact")) for each in (table, loaded)]
    assert plans[0] == plans[1] and plans[0].payloads == plans[1].payloads
    plans[1].save(tmp_path / "plan.json")
    applied = [plan.apply(network) for plan in (plans[0], qc.Plan.load(tmp_path / "plan.json"))]
    assert all(torch.equal(one, other) for one, other in zip(*(net.state_dict().values() for net in applied)))
    assert qc.save(applied[1], tmp_path / "net.safetensors") <= budget.bytes


def test_tables_about_channels_are_refused(tmp_path: Path) -> None:
    class Removals:
        prices = None

    with pytest.raises(InvalidOption, match="a table about channels .* cache= folder"):
        by_hand(removals=Removals()).save(tmp_path / "table.npz")
    assert not list(tmp_path.iterdir())


def altered(path: Path, said: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Write a file with a right checksum and other contents."""
    WHOLE.save(path)
    with path.open("rb") as handle:
        found = dict(read_arrays(handle).arrays)
    text = json.loads(found["said"].tobytes())
    for place, value in said.items():
        *parents, last = place.split("/")
        at = text
        for name in parents:
            at = at[int(name) if isinstance(at, list) else name]
        at[last] = value
    found["said"] = np.frombuffer(json.dumps(text).encode(), dtype=np.uint8)
    found |= arrays
    with path.open("wb") as handle:
        array_writer({name: value for name, value in found.items() if value is not None}, FORMAT, packed=True)(handle)


@pytest.mark.parametrize(
    ("said", "arrays", "reason"),
    [
        ({"choices": [["keep"]]}, {}, "choices of 1 groups"),
        ({"menu": ["keep"]}, {}, "not on its menu"),
        ({"menu": ["keep", 3]}, {}, "a name is no text"),
        ({"costs": ["bytes"]}, {}, "other costs than it names"),
        ({"costs": ["bits", "macs"]}, {}, "does not say what its choices cost"),
        ({"kept_because": {"a": 1}}, {}, "a name is no text"),
        ({"provenance/examples": "many"}, {}, "its examples cannot be 'many'"),
        ({"provenance": {}}, {}, "how it was measured"),
        ({"payloads": [["0.weight"]]}, {}, "the bytes of its choices"),
        ({"layout/groups/0/kind": "weird"}, {}, "no group is a 'weird'"),
        ({"layout/groups/0/members/0/dtype": "nn"}, {}, "no tensor has the type 'nn'"),
        ({"layout/groups/0/members/0/shape": [-1]}, {}, "no size is -1"),
        ({"layout/groups/0/members/0/rows": [3, 1]}, {}, "begin before they end"),
        ({"layout/rule": "x" * 5000}, {}, "at most 4000 letters"),
        ({"layout/more": 1}, {}, "does not describe a layout"),
        ({}, {"linear": np.zeros(7)}, "the rows of its pairs"),
        ({}, {"linear": np.array([np.nan] * 8)}, "finite"),
        ({}, {"linear": None}, "it lacks linear"),
        ({}, {"more": np.zeros(1)}, "'more' is not known"),
        ({}, {"allowed": np.zeros(8, dtype=bool)}, "no choice that is allowed"),
        ({}, {"allowed": np.ones(3, dtype=bool)}, "its allowed is of other choices"),
        ({}, {"costs": -np.ones((2, 8), dtype=np.int64)}, "negative"),
        ({}, {"costs": np.ones(8, dtype=np.int64)}, "along 1 axes"),
        ({}, {"pairs_data": None}, "a part of its pairs"),
        ({}, {"pairs_indices": np.array([5, 99])}, "rows of its pairs"),
        ({}, {"pairs_indices": np.array([4, 1])}, "symmetric"),
        ({}, {"payload_ends": np.array([99])}, "the bytes of its choices"),
    ],
)
def test_contradictions_are_refused(said: dict[str, Any], arrays: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    altered(path, said, arrays)
    with pytest.raises(CorruptArtifact, match=f"table.npz is not a complete sensitivity table .*{reason}"):
        SensitivityTable.load(path)
