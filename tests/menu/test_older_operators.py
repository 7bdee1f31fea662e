"""Operators written for 0.4, whose classes and stored forms name no base class, work for one more release and warn."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.calibration.statistics import Calibration, Statistic
from qubo_compress.menu.coding.coded import can_be_coded
from qubo_compress.menu.keep import Keep
from qubo_compress.menu.operator import Quick, operators
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.network.groups import Group
from qubo_compress.testing import check_operator


@pytest.fixture
def bare() -> Iterator[type]:
    """The class of an operator of 0.4, fresh for every test."""

    @dataclass(frozen=True)
    class Rounded:
        groups: Group
        whole: tuple[Tensor, ...]
        scale: float

        @property
        def nbytes(self) -> int:
            return sum(2 * values.numel() for values in self.whole)

        @property
        def nonzeros(self) -> int:
            return sum(int(torch.count_nonzero(values)) for values in self.whole)

        @property
        def weight_bits(self) -> int:
            return 16

        def to_bytes(self) -> bytes:
            return b"".join(values.numpy().astype("<i2").tobytes() for values in self.whole)

        def tensors(self) -> tuple[Tensor, ...]:
            pairs = zip(self.groups.members, self.whole, strict=True)
            return tuple((values * self.scale).to(member.dtype) for member, values in pairs)

        def project(self, values: Sequence[Tensor], refit: bool = False) -> Rounded:
            return Whole(self.scale).encode(self.groups, values)

    @dataclass(frozen=True)
    class Whole:
        operator_name: ClassVar[str] = "whole"
        scale: float = 0.25

        def refusal(self, group: Group, parts: Sequence[Tensor]) -> str | None:
            wrong = group.kind != "weight" or any(part.abs().max() * 4 > 3e4 for part in parts)
            return "only small weights are rounded" if wrong else None

        def encode(self, group: Group, parts: Sequence[Tensor]) -> Any:
            return Rounded(group, tuple((part.float() / self.scale).round().short() for part in parts), self.scale)

        def decode(self, group: Group, data: memoryview) -> tuple[Any, int]:
            found, used = [], 0
            for member in group.members:
                size = 2 * member.numel
                values = torch.frombuffer(bytearray(data[used : used + size]), dtype=torch.int16)
                found.append(values.reshape(member.part_shape))
                used += size
            return Rounded(group, tuple(found), self.scale), used

    yield Whole
    operators._entries.pop("whole", None)


def test_they_are_registered_with_a_warning_and_conform(bare: Any) -> None:
    with pytest.warns(DeprecationWarning, match=r"write class Whole\(Operator\) with Operator of qubo_compress.menu"):
        assert qc.menu.register(bare) is bare
    with pytest.warns(DeprecationWarning, match=r"write class Rounded\(Stored\)"):
        check_operator(bare(0.5))
    assert qc.menu.parse("whole(scale=0.5)") == bare(0.5)
    assert not can_be_coded(bare()) and bare().needs == () and bare().code_bits is None


def test_a_class_that_is_no_operator_is_refused() -> None:
    class Nothing:
        operator_name = "nothing"

    with pytest.raises(qc.QuboCompressError, match=r"write class Nothing\(qc.menu.Operator\)"):
        qc.menu.register(Nothing)
    assert "nothing" not in qc.menu.names()


def test_they_are_measured_planned_saved_and_read(bare: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    batches = [(torch.randn(20, 5), torch.randint(3, (20,)))]
    with pytest.warns(DeprecationWarning):
        qc.menu.register("whole", bare)
        table = qc.measure(net, batches, menu=qc.Menu([bare(), qc.menu.parse("quantize(bits=4)")]), progress=False)
    for group in ("0.weight", "2.weight"):
        table.pin(group, "whole")
    plan = table.plan(qc.solve(table.problem(qc.Budget(bytes=2000)), "greedy", seed=0))
    small = plan.apply(net)
    qc.save(small, tmp_path / "net.safetensors")
    again = qc.load(tmp_path / "net.safetensors", net)
    assert torch.equal(again[0].weight, (net[0].weight / 0.25).round() * 0.25)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(bare().encode(qc.menu.discover(net).groups[0], [net[0].weight.detach()]), Stored)


def test_quick_ones_stay_quick(bare: Any) -> None:
    @dataclass(frozen=True)
    class Quickly(Quick, bare):  # type: ignore[misc]
        pass

    with pytest.warns(DeprecationWarning, match="Quickly"):
        qc.menu.register(Quickly)
    assert Quickly().quick and Quickly().fit(None) == b""


def test_a_menu_takes_their_objects_and_nothing_else(bare: Any) -> None:
    with pytest.warns(DeprecationWarning, match="Whole"):
        assert qc.Menu([bare()]).names == ("keep", "whole")
    for wrong in (4, "whole(", object()):
        with pytest.raises((qc.errors.InvalidMenu, qc.errors.UnknownName)):
            qc.Menu([wrong])  # type: ignore[list-item]


def test_their_statistics_are_taken_along() -> None:
    @dataclass(frozen=True)
    class Examples:
        statistic_name: ClassVar[str] = "examples"

        def collect(self, calibration: Calibration, group: Group) -> tuple[int, ...]:
            return (len(calibration.examples.slices),) * len(group.members)

        def imagined(self, group: Group, parts: Sequence[Tensor], generator: torch.Generator) -> tuple[int, ...]:
            return (7,) * len(group.members)

    @dataclass(frozen=True)
    class Driven(Keep):
        operator_name: ClassVar[str] = "driven"

        @property
        def needs(self) -> Any:
            return (Examples(),)

    with pytest.warns(DeprecationWarning, match=r"write class Examples\(Statistic\)"):
        qc.Menu([Driven()])
    assert isinstance(Driven().needs[0], Statistic) and not Driven().needs[0].watches_inputs


@pytest.mark.parametrize("module", [qc.menu, qc.menu.operator])
def test_old_names_still_stand_for_the_new(module: Any) -> None:
    with pytest.warns(DeprecationWarning, match="Packed is now .*Stored"):
        assert module.Packed is Stored
    with pytest.raises(AttributeError, match="nothing"):
        module.nothing  # noqa: B018
