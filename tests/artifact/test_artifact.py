"""Plans and files: the bytes that were promised, the bits that were stored, and no damaged file read in silence."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import qubo_compress as qc
from qubo_compress.network import discovery
from qubo_compress.network.older_groups import WEIGHTED
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.testing import same_snapshot, snapshot

MENU = qc.Menu(bits=(2, 3, 8), sparsity=(0.0, 0.5))
RULES: dict[str, Any] = {
    "layer": "layer",
    "filter": "filter",
    "expression": r"(weight)",
    "function": lambda name, module: None if "head" in name else type(module).__name__,
}


def table_of(sample: Any, rule: Any = "layer", metric: str = "magnitude") -> qc.SensitivityTable:
    return qc.measure(sample.model, sample.batches, menu=MENU, metric=metric, groups=rule, progress=False)


def random_plan(table: qc.SensitivityTable, seed: int) -> qc.Plan:
    chance = random.Random(seed)
    return table.plan(
        {group: chance.choice(names) for group, names in zip(table.group_names, table.choices, strict=True)}
    )


def same_tensors(first: nn.Module, second: nn.Module) -> bool:
    one, other = NetworkTensors(first), NetworkTensors(second)
    return one.keys() == other.keys() and all(
        torch.equal(tensor, other[name]) and tensor.dtype == other[name].dtype for name, tensor in one.items()
    )


def scrambled(model: nn.Module) -> nn.Module:
    """The same architecture with other weights."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in NetworkTensors(other).values():
            tensor.copy_(torch.rand_like(tensor.float()) + 1)
    return other


@pytest.mark.parametrize("rule", RULES)
def test_the_file_is_exactly_as_large_as_the_plan_and_loads_bit_for_bit(
    any_sample: Any, rule: str, tmp_path: Path, forward: Callable[..., torch.Tensor]
) -> None:
    table = table_of(any_sample, RULES[rule])
    before = snapshot(any_sample.model)
    for seed in range(3):
        plan = random_plan(table, seed)
        small = plan.apply(any_sample.model)
        path = tmp_path / "net.safetensors"
        assert qc.save(small, path) == plan.bytes == path.stat().st_size
        other = scrambled(any_sample.model)
        net = qc.load(path, other)
        assert same_tensors(net, small) and not net.training
        inputs = any_sample.batches[0][0]
        with torch.no_grad():
            assert torch.equal(forward(net, inputs), forward(small, inputs))
        assert qc.save(net, tmp_path / "again.safetensors") == plan.bytes
        assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert same_snapshot(before, snapshot(any_sample.model))


def test_keeping_everything_changes_nothing(any_sample: Any, tmp_path: Path) -> None:
    plan = table_of(any_sample).plan({})
    assert same_tensors(plan.apply(any_sample.model), any_sample.model)
    assert qc.save(plan.apply(any_sample.model), tmp_path / "net") == plan.bytes
    assert same_tensors(qc.load(tmp_path / "net", scrambled(any_sample.model)), any_sample.model)


def test_solved_plans_are_never_above_the_budget(any_sample: Any, tmp_path: Path) -> None:
    table = table_of(any_sample)
    sizes = [table.problem(qc.Budget(bytes=1 << 30)).smallest_totals()[0], table.plan({}).bytes]
    for share in (0.0, 0.3, 0.9):
        limit = int(sizes[0] + share * (sizes[1] - sizes[0]))
        plan = table.plan(qc.solve(table.problem(qc.Budget(bytes=limit)), "greedy", time_limit=1.0))
        assert qc.save(plan.apply(any_sample.model), tmp_path / "net") == plan.bytes <= limit


def test_dtype_and_structure_survive(sample: Callable[[str], Any]) -> None:
    found = sample("bfloat16")
    small = random_plan(table_of(found), 0).apply(found.model)
    assert all(p.dtype == torch.bfloat16 for p in small.parameters())
    tied = sample("tied")
    small = random_plan(table_of(tied), 1).apply(tied.model)
    assert small.head.weight is small.embedding.weight
    assert all(isinstance(p, nn.Parameter) for p in small.parameters())


@pytest.fixture
def saved(sample: Callable[[str], Any], tmp_path: Path) -> tuple[Path, Any]:
    found = sample("grouped-view-inplace")
    qc.save(random_plan(table_of(found), 3).apply(found.model), tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors", found


REFUSALS = (qc.errors.CorruptArtifact, qc.errors.WrongModel)


def test_truncated_files_are_refused(saved: tuple[Path, Any]) -> None:
    path, found = saved
    data = path.read_bytes()
    for length in sorted({0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1, *range(0, len(data), 97)}):
        path.write_bytes(data[:length])
        with pytest.raises(qc.errors.CorruptArtifact, match=r"net\.safetensors"):
            qc.load(path, found.model)
    path.write_bytes(data + b"\0")
    with pytest.raises(qc.errors.CorruptArtifact):
        qc.load(path, found.model)


def test_every_altered_bit_is_noticed(saved: tuple[Path, Any]) -> None:
    path, found = saved
    data = bytearray(path.read_bytes())
    chance = random.Random(0)
    header = 8 + int.from_bytes(data[:8], "little")
    positions = [*range(8), *chance.sample(range(8, header), 150), *chance.sample(range(header, len(data)), 60)]
    for position in positions:
        bit = 1 << chance.randrange(8)
        data[position] ^= bit
        path.write_bytes(data)
        with pytest.raises(REFUSALS):
            qc.load(path, found.model)
        data[position] ^= bit
    path.write_bytes(data)
    qc.load(path, found.model)


def test_an_altered_grouping_is_noticed(saved: tuple[Path, Any]) -> None:
    path, found = saved
    data = path.read_bytes()
    assert data.count(b'"layer"') == 1
    path.write_bytes(data.replace(b'"layer"', b'"lazer"'))
    with pytest.raises(REFUSALS):
        qc.load(path, found.model)


def test_foreign_files_are_refused(saved: tuple[Path, Any], tmp_path: Path) -> None:
    path, found = saved
    save_file({"payload": torch.zeros(4)}, tmp_path / "other.safetensors")
    save_file({"x": torch.zeros(4)}, tmp_path / "named.safetensors", metadata={"format": "qubo_compress 1"})
    (tmp_path / "text.safetensors").write_text("no")
    for name in ("other", "named", "text"):
        with pytest.raises(qc.errors.CorruptArtifact, match=name):
            qc.load(tmp_path / f"{name}.safetensors", found.model)
    with pytest.raises(FileNotFoundError):
        qc.load(tmp_path / "absent.safetensors", found.model)


def test_other_architectures_are_refused(saved: tuple[Path, Any], sample: Callable[[str], Any]) -> None:
    path, found = saved
    for other in (sample("perceptron").model, nn.Linear(3, 3), copy.deepcopy(found.model).half()):
        with pytest.raises(qc.errors.WrongModel, match="another architecture"):
            qc.load(path, other)
    wider = copy.deepcopy(found.model)
    wider.head = nn.Linear(24, 4)
    with pytest.raises(qc.errors.WrongModel):
        qc.load(path, wider)


def test_the_shape_of_a_kept_tensor_belongs_to_the_architecture(tmp_path: Path) -> None:
    class Holding(nn.Module):
        def __init__(self, shape: tuple[int, int]) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.register_buffer("table", torch.ones(shape))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) * self.table.sum()

    model = Holding((2, 3))
    table = qc.measure(model, [torch.ones(2, 2)], metric="magnitude", loss="kl", progress=False)
    qc.save(table.plan({}).apply(model), tmp_path / "net")
    with pytest.raises(qc.errors.WrongModel):
        qc.load(tmp_path / "net", Holding((3, 2)))


def test_plans_are_refused_by_other_weights(sample: Callable[[str], Any]) -> None:
    found = sample("perceptron")
    plan = random_plan(table_of(found), 0)
    for other in (scrambled(found.model), sample("twice").model):
        with pytest.raises(qc.errors.WrongModel, match="other weights"):
            plan.apply(other)
    with torch.no_grad():
        found.model[0].weight[0, 0] += 1e-3
    with pytest.raises(qc.errors.WrongModel):
        plan.apply(found.model)


class Mixed(nn.Module):
    """Layers of which version 0.3 compressed some only."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Embedding(7, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.recurrent, self.head = nn.LayerNorm(8), nn.GRU(8, 6, batch_first=True), nn.Linear(6, 3)
        self.position = nn.Parameter(torch.ones(5, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(x) + self.position
        hidden = self.norm(hidden + self.attention(hidden, hidden, hidden)[0])
        return self.head(self.recurrent(hidden)[0].mean(1))


@pytest.mark.parametrize(
    "rule", ["layer", "filter", "(weight)", lambda name, module: type(module).__name__ if "embed" in name else None]
)
def test_files_and_plans_of_version_0_3_are_called_that(
    rule: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, tokens = Mixed().eval(), torch.arange(40).reshape(8, 5) % 7
    here, path = discovery.role_of, tmp_path / "net"

    def in_0_3(module: nn.Module, attribute: str) -> Any:
        return here(module, attribute) if isinstance(module, WEIGHTED) else None

    with monkeypatch.context() as patched:
        patched.setattr(discovery, "role_of", in_0_3)
        table = qc.measure(net, [(tokens, torch.arange(8) % 3)], MENU, "magnitude", groups=rule, progress=False)
        plan = table.plan({})
        qc.save(plan.apply(net), path)
        assert "attention.in_proj_weight" in {item.name for item in table.layout.kept}
        assert same_tensors(qc.load(path, net), net)
    for refused in (lambda: qc.load(path, net), lambda: plan.apply(net)):
        with pytest.raises(qc.errors.WrongModel, match=r"version 0\.3.*attention\.in_proj_bias.*again, or") as caught:
            refused()
        assert "another architecture" not in str(caught.value)
    other = Mixed().eval()
    other.head = nn.Linear(6, 4)
    with pytest.raises(qc.errors.WrongModel, match="another architecture"):
        qc.load(path, other)


def test_only_networks_on_their_grid_are_saved(sample: Callable[[str], Any], tmp_path: Path) -> None:
    found = sample("perceptron")
    with pytest.raises(qc.errors.WrongModel, match="apply a plan"):
        qc.save(found.model, tmp_path / "net")
    small = table_of(found).plan({"0.weight": "quantize(bits=3)"}).apply(found.model)
    with torch.no_grad():
        small[0].weight[0, 0] += 1e-3
    with pytest.raises(qc.errors.WrongModel, match=r"0\.weight was changed"):
        qc.save(small, tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_plans_round_trip_as_json(any_sample: Any, tmp_path: Path) -> None:
    plan = random_plan(table_of(any_sample), 5)
    plan.save(tmp_path / "plan.json")
    again = qc.Plan.load(tmp_path / "plan.json")
    assert again == plan
    assert same_tensors(again.apply(any_sample.model), plan.apply(any_sample.model))


def test_damaged_plans_are_refused(sample: Callable[[str], Any], tmp_path: Path) -> None:
    found = sample("perceptron")
    path = tmp_path / "plan.json"
    random_plan(table_of(found), 5).save(path)
    text = path.read_text()
    for damaged in (text[:-20], "", "[]", '{"format": "other"}', text.replace('"choices"', '"chosen"')):
        path.write_text(damaged)
        with pytest.raises(qc.errors.CorruptArtifact, match=r"plan\.json"):
            qc.Plan.load(path)
    plan = random_plan(table_of(found), 5)
    replace(plan, choices={name: choice for name, choice in plan.choices.items() if name != "0.weight"}).save(path)
    with pytest.raises(qc.errors.WrongModel, match=r"0\.weight"):
        qc.Plan.load(path).apply(found.model)


def test_buffers_that_are_not_persistent_come_from_the_architecture(
    sample: Callable[[str], Any], tmp_path: Path
) -> None:
    found = sample("tuple-inputs")
    qc.save(random_plan(table_of(found), 2).apply(found.model), tmp_path / "net")
    other = scrambled(found.model)
    other.shift.fill_(9.0)
    net = qc.load(tmp_path / "net", other)
    assert torch.equal(net.shift, other.shift) and torch.equal(net.mask, found.model.mask)
