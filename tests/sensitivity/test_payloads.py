"""Choices that are made from calibration data: their bytes travel from the table to the plan to the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.calibration.statistics import Calibration, Statistic
from qubo_compress.errors import CacheMismatch, InvalidMenu, UnknownName, WrongModel
from qubo_compress.menu.keep import Keep, KeptTensors
from qubo_compress.menu.operator import needs_data, operators
from qubo_compress.network.groups import Group
from qubo_compress.testing import check_operator


@dataclass(frozen=True)
class Count(Statistic):
    """How many examples there are: a stand-in for a statistic of the data."""

    statistic_name: ClassVar[str] = "count"
    collected: ClassVar[list[str]] = []

    def collect(self, calibration: Calibration, group: Group) -> tuple[int, ...]:
        self.collected.append(group.name)
        rows = sum(calibration.run(part.inputs).shape[0] for part in calibration.examples.slices)
        return (rows,) * len(group.members)

    def imagined(self, group: Group, parts: Sequence[Tensor], generator: torch.Generator) -> tuple[int, ...]:
        return (7,) * len(group.members)


@dataclass(frozen=True)
class Shrunk(Keep):
    """Weights less a share that depends on the number of examples."""

    operator_name: ClassVar[str] = "shrunk"
    share: float = 0.5

    @property
    def needs(self) -> tuple[Statistic, ...]:
        return (Count(),)

    def refusal(self, group: Group, parts: Sequence[Tensor]) -> str | None:
        return None if group.kind == "weight" else "only weights are shrunk"

    def encode(self, group: Group, parts: Sequence[Tensor]) -> KeptTensors:
        raise needs_data(self)

    def encode_with(self, group: Group, parts: Sequence[Tensor], evidence: Mapping[Any, Any]) -> KeptTensors:
        counts = evidence[Count()]
        return KeptTensors(tuple((p * (1 - self.share / n)).cpu() for p, n in zip(parts, counts, strict=True)))


@pytest.fixture(autouse=True)
def shrunk() -> Iterator[None]:
    operators.add("shrunk", Shrunk)
    Count.collected.clear()
    yield
    del operators._entries["shrunk"]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(20, 5, generator=generator), torch.randint(3, (20,), generator=generator))]


def measured(net: nn.Module, batches: Any, **options: Any) -> qc.SensitivityTable:
    menu = qc.Menu([Shrunk(), Shrunk(0.25), qc.menu.parse("quantize(bits=4)")])
    return qc.measure(net, batches, menu=menu, progress=False, **options)


def chosen(table: qc.SensitivityTable) -> qc.Plan:
    return table.plan({"0.weight": "shrunk", "2.weight": "shrunk(share=0.25)", "0.bias": "keep"})


def test_it_conforms() -> None:
    check_operator(Shrunk())


def test_statistics_are_gathered_once_per_group(net: nn.Module, batches: Any) -> None:
    measured(net, batches)
    assert Count.collected == ["0.weight", "2.weight"]


def test_a_plan_applies_what_was_made_from_the_data(net: nn.Module, batches: Any) -> None:
    small = chosen(measured(net, batches)).apply(net)
    assert torch.equal(small[0].weight, net[0].weight * (1 - 0.5 / 20))
    assert torch.equal(small[2].weight, net[2].weight * (1 - 0.25 / 20))


def test_files_and_plans_come_back(net: nn.Module, batches: Any, tmp_path: Path) -> None:
    plan = chosen(measured(net, batches))
    small = plan.apply(net)
    assert qc.save(small, tmp_path / "net.safetensors") == plan.bytes
    loaded = qc.load(tmp_path / "net.safetensors", net)
    assert torch.equal(loaded[0].weight, small[0].weight)
    plan.save(tmp_path / "plan.json")
    again = qc.Plan.load(tmp_path / "plan.json")
    assert again == plan
    assert torch.equal(again.apply(net)[0].weight, small[0].weight)
    net[0].bias.data.add_(1.0)
    with pytest.raises(WrongModel):
        again.apply(net)


def test_a_plan_without_its_payload_is_refused(net: nn.Module, batches: Any) -> None:
    plan = chosen(measured(net, batches))
    bare = qc.Plan(**{**plan.__dict__, "payloads": {}})
    with pytest.raises(InvalidMenu, match="calibration data"):
        bare.apply(net)


def test_a_cache_brings_the_payloads_back(net: nn.Module, batches: Any, tmp_path: Path) -> None:
    first = measured(net, batches, cache=tmp_path)
    Count.collected.clear()
    second = measured(net, batches, cache=tmp_path)
    assert Count.collected == []
    assert second.payloads == first.payloads
    assert chosen(second).apply(net)[0].weight.equal(chosen(first).apply(net)[0].weight)


def test_a_cache_of_choices_made_otherwise_is_refused(
    net: nn.Module, batches: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Choices and their measurements of before damping was validated; the version was the same."""
    measure = import_module("qubo_compress.sensitivity.measure")  # the package has a function of that name
    signature = measure._signature
    with monkeypatch.context() as earlier:
        earlier.setattr(
            measure,
            "_signature",
            lambda *given: {
                name: text.replace(f"made={measure.MADE} ", "") for name, text in signature(*given).items()
            },
        )
        measured(net, batches, cache=tmp_path)
    with pytest.raises(CacheMismatch, match="options"):
        measured(net, batches, cache=tmp_path)


def test_a_round_knows_the_optimism_of_the_choices_it_takes_over() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    menu = qc.Menu(["compensate(bits=3)", "compensate(bits=5)", "quantize(bits=8)"])
    data = [torch.randn(24, 12, generator=torch.Generator().manual_seed(1))]
    result = qc.compress(net, data, qc.Budget(ratio=3), menu=menu, rounds=1, progress=False, recover=False)
    first, second = (found.table for found in result.rounds)
    assert first.optimism is not None and first.optimism.max() > 1.1
    assert second.optimism is not None
    keys = [
        [(group, name) for group, names in zip(table.group_names, table.choices, strict=True) for name in names]
        for table in (first, second)
    ]
    known = dict(zip(keys[0], first.optimism.tolist(), strict=True))
    assert second.optimism.tolist() == [known[key] for key in keys[1]]


def test_stitching_and_refinement_use_the_payloads(net: nn.Module, batches: Any) -> None:
    table = measured(net, batches)
    loss = qc.StitchedLoss(net, table, batches)
    plan = chosen(table)
    small = plan.apply(net)
    expected = nn.functional.cross_entropy(small(batches[0][0]), batches[0][1])
    assert loss(table.assignment(plan.choices)) == pytest.approx(expected.item(), rel=1e-5)
    Count.collected.clear()
    menu = qc.Menu([Shrunk(), qc.menu.parse("quantize(bits=4)")])
    result = qc.compress(
        net, batches * 4, qc.Budget(bytes=450), menu=menu, rounds=1, progress=False, recover=False, time_limit=0.5
    )
    assert sorted(Count.collected) == ["0.weight", "2.weight"]
    assert result.plan.bytes <= 450


def test_a_narrowed_table_is_the_table_of_the_shorter_menu(net: nn.Module, batches: Any) -> None:
    menu = [Shrunk(), Shrunk(0.25), qc.menu.parse("quantize(bits=4)"), qc.menu.parse("quantize(bits=8)")]
    wide = qc.measure(net, batches, menu=qc.Menu(menu), progress=False)
    narrow = wide.narrowed(["shrunk", "quantize(bits=8)"])
    fresh = qc.measure(net, batches, menu=qc.Menu([menu[0], menu[3]]), progress=False)
    assert narrow.choices == fresh.choices and narrow.menu_names == fresh.menu_names
    assert narrow.fixed_costs == fresh.fixed_costs and narrow.payloads == fresh.payloads
    assert narrow.linear == pytest.approx(fresh.linear, abs=1e-7)
    plan = narrow.plan({"0.weight": "shrunk", "2.weight": "quantize(bits=8)"})
    assert plan.predicted_loss == pytest.approx(fresh.predict(plan.choices), abs=1e-6)
    assert wide.plan(plan.choices).bytes >= plan.bytes
    with pytest.raises(UnknownName, match="quantize"):
        wide.narrowed(["quantize(bits=5)"])
    with pytest.raises(InvalidMenu, match="pinned"):
        wide.pin("0.weight", "quantize(bits=4)").narrowed(["shrunk"])


def test_only_layers_whose_inputs_are_seen_are_offered_what_must_watch_them() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)  # its out_proj is used, never called
            self.turned = nn.Linear(8, 8)  # only its transpose is used, which is another tensor
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            mixed = self.attention(x, x, x, need_weights=False)[0].mean(1)
            return self.head(mixed @ self.turned.weight.T)

    torch.manual_seed(0)
    net = Attention().eval()
    menu = qc.Menu([qc.menu.parse("compensate(bits=3)"), qc.menu.parse("quantize(bits=4)")])
    table = qc.measure(net, [(torch.randn(6, 4, 8), torch.arange(6) % 3)], menu=menu, progress=False)
    offered = dict(zip(table.group_names, table.choices, strict=True))
    for seen in ("head.weight", "attention.out_proj.weight", "attention.in_proj_weight"):
        assert offered[seen] == ("keep", "compensate(bits=3)", "quantize(bits=4)"), seen
    assert offered["turned.weight"] == ("keep", "quantize(bits=4)")
