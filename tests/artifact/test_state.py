"""Everything that a state dict holds comes back, onto networks without memory too; or saving says what cannot."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.errors import CorruptArtifact, InvalidModel, WrongModel
from qubo_compress.menu.storage import file_format
from qubo_compress.network import discovery
from qubo_compress.network.extra_state import extra_entries, read_stored, stored_bytes

INPUTS = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))


class Whole(nn.Module):
    """A network whose state is more than floating-point tensors."""

    def __init__(self, factor: Any = 1.0) -> None:
        super().__init__()
        self.layer, self.norm, self.factor = nn.Linear(5, 3), nn.BatchNorm1d(3), factor
        for name, value in {
            "anchors": torch.empty(0),
            "none": torch.empty(3, 0, dtype=torch.float16),
            "scalar": torch.tensor(3),
            "packed": torch.arange(-4, 4, dtype=torch.int8),
            "mask": torch.tensor([True, False, True]),
            "complex": torch.tensor([1 + 2j]),
        }.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x)) * (self.factor["f"] if isinstance(self.factor, dict) else self.factor)

    def get_extra_state(self) -> Any:
        return self.factor

    def set_extra_state(self, state: Any) -> None:
        self.factor = state


def table_of(net: nn.Module) -> qc.SensitivityTable:
    menu = qc.Menu(bits=(2, 8), sparsity=(0.0,))
    return qc.measure(net, [(INPUTS, torch.arange(24) % 3)], menu, "magnitude", progress=False)


def saved(net: nn.Module, path: Path) -> nn.Module:
    plan = table_of(net).plan({})
    small = plan.apply(net)
    assert qc.save(small, path) == plan.bytes == path.stat().st_size
    return small


def alike(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype and one.shape == other.shape
    if isinstance(one, dict):
        return list(map(repr, one)) == list(map(repr, other)) and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    return repr(one) == repr(other)


def test_the_whole_state_comes_back(tmp_path: Path) -> None:
    net = Whole({"f": 5.0, "history": [torch.ones(2, 3), (1, None)], "name": "ä"}).eval()
    with torch.no_grad():
        net.norm.num_batches_tracked.fill_(2**40)
    small = saved(net, tmp_path / "net")
    loaded = qc.load(tmp_path / "net", Whole())
    assert loaded.state_dict().keys() == net.state_dict().keys()
    assert all(alike(value, loaded.state_dict()[name]) for name, value in small.state_dict().items())
    with torch.no_grad():
        assert torch.equal(loaded(INPUTS), net(INPUTS))
    assert qc.save(loaded, tmp_path / "again") == (tmp_path / "net").stat().st_size
    assert (tmp_path / "again").read_bytes() == (tmp_path / "net").read_bytes()


@pytest.mark.parametrize("scheme", ["per tensor", "per channel"])
def test_packed_quantized_layers_come_back(tmp_path: Path, scheme: str) -> None:
    quantization = torch.ao.quantization

    def quantized(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(5, 6), nn.Sequential(nn.ReLU(), nn.Linear(6, 3))).eval()
        rule = quantization.default_dynamic_qconfig
        if scheme == "per channel":
            rule = quantization.per_channel_dynamic_qconfig
        net[1] = quantization.quantize_dynamic(net[1], {nn.Linear: rule})
        return net

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net, other = quantized(0), quantized(1)
        saved(net, tmp_path / "net")
        loaded = qc.load(tmp_path / "net", other)
        assert not torch.equal(other(INPUTS), net(INPUTS))
        assert torch.equal(loaded(INPUTS), net(INPUTS))


class Unused(Whole):
    """Does not use its extra state."""

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)


@pytest.mark.parametrize("state", [{1, 2}, object(), lambda: 0, [{"a": [slice(1)]}], 2**70, torch.ones(2).to_sparse()])
def test_what_only_pickle_could_store_is_refused_by_name(state: Any, tmp_path: Path) -> None:
    net = Unused(state).eval()
    table = table_of(net)
    assert any("extra state" in kept.reason for kept in table.layout.kept)
    with pytest.raises(InvalidModel, match="_extra_state"):
        qc.save(table.plan({}).apply(net), tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_extra_state_that_has_grown_is_refused_and_room_is_left_for_counters(tmp_path: Path) -> None:
    small = table_of(net := Whole({"f": 1.0, "steps": 9}).eval()).plan({}).apply(net)
    small.factor["steps"] = 10**9
    size = qc.save(small, tmp_path / "net")
    assert qc.load(tmp_path / "net", Whole()).factor["steps"] == 10**9 and size == (tmp_path / "net").stat().st_size
    small.factor["log"] = "x" * 1000
    with pytest.raises(WrongModel, match="more than when the plan was made"):
        qc.save(small, tmp_path / "net")
    assert qc.load(tmp_path / "net", Whole()).factor["steps"] == 10**9


def test_a_network_that_refuses_its_state_is_named(tmp_path: Path) -> None:
    saved(Whole().eval(), tmp_path / "net")
    other = Whole()
    other.set_extra_state = lambda state: state[1]  # type: ignore[method-assign]
    with pytest.raises(WrongModel, match="does not take the extra state"):
        qc.load(tmp_path / "net", other)


def test_files_of_version_0_4_leave_the_architecture_its_state_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Whole(2.0).eval()
    with monkeypatch.context() as older:
        older.setattr(discovery, "extra_entries", lambda model: {})
        older.setattr(file_format, "extra_entries", lambda model: {})
        saved(net, tmp_path / "net")
    with pytest.warns(UserWarning, match=r"version 0\.4.*_extra_state"):
        assert qc.load(tmp_path / "net", Whole(7.0)).factor == 7.0


def test_a_network_without_memory_is_filled(tmp_path: Path) -> None:
    net = Whole({"f": 3.0}).eval()
    net.tied = net.layer
    saved(net, tmp_path / "net")
    with torch.device("meta"):
        empty = Whole()
        empty.tied = empty.layer
    assert all(tensor.is_meta for tensor in empty.state_dict().values() if isinstance(tensor, Tensor))
    loaded = qc.load(tmp_path / "net", empty)
    assert all(not tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    assert all(tensor.is_meta for tensor in empty.parameters()) and loaded.tied.weight is loaded.layer.weight
    with torch.no_grad():
        assert torch.equal(loaded(INPUTS), net(INPUTS))
    assert qc.save(loaded, tmp_path / "again") == (tmp_path / "net").stat().st_size


def test_what_no_file_holds_cannot_be_filled(tmp_path: Path) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)
            self.register_buffer("shift", torch.ones(3), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + self.shift

    saved(Shifted().eval(), tmp_path / "net")
    with torch.device("meta"):
        empty = Shifted()
    with pytest.raises(WrongModel, match="shift of this network is on the meta device"):
        qc.load(tmp_path / "net", empty)
    empty.shift = torch.full((3,), 2.0)
    assert torch.equal(qc.load(tmp_path / "net", empty).shift, empty.shift)


def test_tensors_that_are_no_rows_of_numbers_are_refused_early() -> None:
    net = nn.Sequential(nn.Linear(5, 3))
    net.register_buffer("links", torch.eye(3).to_sparse())
    with pytest.raises(InvalidModel, match="links is a torch.sparse_coo tensor"):
        table_of(net)


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=8), st.binary(max_size=8),
    st.sampled_from([torch.int8, torch.float16, torch.Size([2, 3]), np.float32(1.5), np.int8(3), bytearray(b"ab")]),
    st.builds(
        lambda shape, dtype: torch.zeros(shape, dtype=dtype),
        st.lists(st.integers(0, 3), max_size=3),
        st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float8_e4m3fn]),
    ),
    st.builds(lambda n: np.arange(n, dtype="<u2"), st.integers(0, 4)),
)  # fmt: skip
STATES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers(0, 9)), inner, max_size=3),
        st.dictionaries(st.text(max_size=3), inner, max_size=3).map(OrderedDict),
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(state=STATES)
def test_any_state_of_numbers_text_and_tensors_comes_back(state: Any) -> None:
    data = stored_bytes("state", state)
    value, used = read_stored(memoryview(data + b"what follows"))
    assert used == len(data) and alike(value, state)


@settings(max_examples=300, deadline=None)
@given(state=STATES, place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), cut=st.booleans())
def test_damaged_state_is_a_plain_refusal(state: Any, place: float, byte: int, cut: bool) -> None:
    data = bytearray(stored_bytes("state", state))
    data[int(place * len(data))] = byte
    del data[len(data) - (len(data) // 3 if cut else 0) :]
    try:
        read_stored(memoryview(data))
    except MemoryError:
        pytest.fail("memory was taken for what the bytes cannot hold")
    except Exception as refusal:  # which load turns into CorruptArtifact
        assert not isinstance(refusal, (InvalidModel, CorruptArtifact))


def test_ordinary_networks_have_no_extra_state_and_older_files_stay_as_they_are(sample: Any) -> None:
    net = sample("perceptron").model
    assert extra_entries(net) == {} and extra_entries(nn.DataParallel(copy.deepcopy(net))) == {}
