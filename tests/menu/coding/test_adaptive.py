"""The adaptive coder: what it writes it reads, in few bytes, and nothing else."""

from __future__ import annotations

import functools
import math
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress.menu.coding import coded
from qubo_compress.menu.coding.adaptive.arithmetic import PLACE, code_fields, finish, reading, writing
from qubo_compress.menu.coding.adaptive.counting import count_tensor
from qubo_compress.menu.coding.adaptive.group import MARK, AdaptiveReader, adaptive_bytes, adaptive_sizes
from qubo_compress.menu.coding.adaptive.rates import rate_table
from qubo_compress.menu.coding.adaptive.sizes import LEVELS, new_sums, start_number, start_size
from qubo_compress.menu.coding.adaptive.stream import LARGEST_MAGNITUDE, AdaptiveStream
from qubo_compress.menu.coding.adaptive.tables import EXPONENTIAL, LOGARITHM, LOGIT, RAREST, SQUASH, STRETCH
from qubo_compress.menu.coding.adaptive.tensor import Geometry
from qubo_compress.menu.coding.coded import Coded, CodedGroup
from qubo_compress.menu.coding.contexts import shapes_of
from qubo_compress.menu.coding.layout import SECOND_QUANTIZER, CodeLayout, states_of
from qubo_compress.menu.coding.lengths import varint
from qubo_compress.menu.coding.parts import PartRecorder, recorded
from qubo_compress.menu.coding.writer import coded_bytes
from qubo_compress.network.groups import Group, Member


def drawn(layout: CodeLayout, spread: float, seed: int = 0) -> np.ndarray:
    """(rows, columns) codes whose sizes depend on rows and columns."""
    rng = np.random.default_rng(seed)
    rows, columns = np.exp(0.5 * rng.normal(size=(layout.rows, 1))), np.exp(0.5 * rng.normal(size=layout.columns))
    codes: np.ndarray = np.rint(rng.laplace(size=(layout.rows, layout.columns)) * rows * columns * spread)
    return codes.clip(-LARGEST_MAGNITUDE, LARGEST_MAGNITUDE).astype(np.int64)


def coded_alone(codes: np.ndarray, layout: CodeLayout) -> bytes:
    stream = AdaptiveStream.writer(64 + 4 * codes.size)
    stream.tensor(codes.copy(), int(codes.min()), int(codes.max()), layout)
    data = stream.finish()
    assert data is not None
    return data


LAYOUTS = st.builds(
    lambda rows, channels, positions, states: CodeLayout(rows, channels * positions, positions, states),
    st.integers(1, 12), st.integers(1, 5), st.sampled_from([1, 2, 9, 25]), st.sampled_from([0, 4, 8]),
)  # fmt: skip


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.tuples(LAYOUTS, st.floats(0.01, 3000.0), st.booleans()), min_size=1, max_size=3), st.data())
def test_tensors_and_bytes_come_back_one_after_the_other(parts: list[Any], data: st.DataObject) -> None:
    stream = AdaptiveStream.writer(1 << 20)
    raw = np.frombuffer(data.draw(st.binary(max_size=80)), dtype=np.uint8).astype(np.int64)
    written = []
    for number, (layout, spread, sparse) in enumerate(parts):
        codes = drawn(layout, spread, number)
        present = np.random.default_rng(number).random(codes.shape) < 0.5 if sparse else None
        codes[~present if sparse else codes != codes] = 0
        low, high = int(codes.min()), int(codes.max())
        stream.tensor(codes.copy(), low, high, layout, present)
        stream.raw(raw.copy())
        written.append((codes, low, high, layout, present))
    stored = stream.finish()
    assert stored is not None
    reader = AdaptiveStream.reader(memoryview(stored))
    for codes, low, high, layout, present in written:
        found, bytes_found = np.zeros_like(codes), np.zeros_like(raw)
        reader.tensor(found, low, high, layout, present)
        reader.raw(bytes_found)
        assert np.array_equal(found, codes) and np.array_equal(bytes_found, raw)
    assert reader.place >= len(stored)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.integers(0, 255), max_size=40))
def test_the_end_is_as_short_as_it_can_be(values: list[int]) -> None:
    coder, data = writing(), np.zeros(64, dtype=np.uint8)
    code_fields(np.array(values, dtype=np.int64), 8, coder, data)
    size = finish(coder, data)
    assert size <= len(values) + 1 and (size == 0 or data[size - 1])
    found = np.zeros(len(values), dtype=np.int64)
    code_fields(found, 8, reading(data[:size]), data[:size].copy())
    assert found.tolist() == values


def test_bytes_that_do_not_fit_are_counted() -> None:
    values = np.arange(200, dtype=np.int64) % 256
    whole, none = writing(), writing()
    code_fields(values.copy(), 8, whole, np.zeros(400, dtype=np.uint8))
    code_fields(values.copy(), 8, none, np.zeros(3, dtype=np.uint8))
    assert none[PLACE] == whole[PLACE] and finish(none, np.zeros(3, dtype=np.uint8)) > 3


def test_tables_are_those_of_their_formulas() -> None:
    logits = np.arange(-2048, 2048) / 256
    assert np.abs(SQUASH - (65536 / (1 + np.exp(-logits))).clip(RAREST, 65536 - RAREST)).max() <= 1
    chances = (np.arange(4096) + 0.5) / 4096
    logits = (256 * np.log(chances / (1 - chances))).clip(-LOGIT, LOGIT)
    assert np.abs(STRETCH - logits)[2:-2].max() <= 1
    assert np.abs(LOGARITHM - 16 * np.log2(1 + (np.arange(32) + 0.5) / 32)).max() <= 0.5
    assert np.abs(EXPONENTIAL - 65536 * 2 ** (np.arange(16) / 16)).max() <= 1


@pytest.mark.parametrize("states", [0, 4, 8])
@pytest.mark.parametrize(("shape", "spread"), [((64, 288, 9), 0.4), ((96, 200, 1), 1.5), ((600, 25, 25), 8.0)])
def test_codes_take_fewer_bytes_than_their_entropy(shape: Any, spread: float, states: int) -> None:
    """Sizes differ by rows and columns, which one histogram for all codes does not know."""
    layout = CodeLayout(*shape, states)
    codes = drawn(layout, spread)
    counts = np.unique(codes, return_counts=True)[1]
    entropy = -float((counts * np.log2(counts / codes.size)).sum()) / 8
    assert len(coded_alone(codes, layout)) < 0.99 * entropy


def test_even_codes_cost_little_more_than_their_entropy() -> None:
    """Nothing is to be learned from numbers that are alike everywhere."""
    rng = np.random.default_rng(0)
    for spread in (0.3, 1.0, 30.0):
        codes = np.rint(rng.normal(size=(100, 100)) * spread).astype(np.int64)
        counts = np.unique(codes, return_counts=True)[1]
        entropy = -float((counts * np.log2(counts / codes.size)).sum()) / 8
        assert len(coded_alone(codes, CodeLayout(100, 100))) < 1.015 * entropy + 8


def test_small_tensors_cost_little_to_learn() -> None:
    rng = np.random.default_rng(1)
    codes = [np.rint(rng.laplace(size=(10, 10)) * 0.7).astype(np.int64) for _ in range(40)]
    shares = np.unique(np.stack(codes), return_counts=True)[1] / 4000
    entropy = -100 * float((shares * np.log2(shares)).sum()) / 8
    assert np.mean([len(coded_alone(c, CodeLayout(10, 10))) for c in codes]) < entropy + 2.5


def test_states_of_a_trellis_are_contexts() -> None:
    """Codes that are zero in one quantizer and not in the other cost almost nothing."""
    codes = np.zeros((200, 40), dtype=np.int64)
    for row in range(200):
        codes[row] = 1 + SECOND_QUANTIZER[4][states_of(codes[: row + 1], 4)[row]]
    known, unknown = (len(coded_alone(codes, CodeLayout(200, 40, 1, states))) for states in (4, 0))
    assert known < 0.75 * unknown


def test_the_format_stays_what_it_was() -> None:
    shapes = {1800: (10, 20, 9)}
    recorder = PartRecorder(shapes)
    values = (np.arange(1800) ** 2 % 37 % 7 - 3) * (np.arange(1800) % 20 < 12)
    recorder.mask(values != 0)
    recorder.codes(values[values != 0], -3, 3)
    recorder.codes(values, -3, 3, CodeLayout(10, 180, 9, 8))
    recorder.codes(300 * values, -900, 900)
    recorder.raw(values.astype("<f4").tobytes())
    recorder.raw(b"step")
    data = adaptive_bytes(recorder.parts)
    assert (len(data), zlib.crc32(data)) == FORMAT
    reader = AdaptiveReader(memoryview(data + b"\xff"), shapes)
    assert np.array_equal(reader.mask(1800), values != 0)
    assert np.array_equal(reader.codes(int((values != 0).sum()), -3, 3), values[values != 0])
    assert np.array_equal(reader.codes(1800, -3, 3, CodeLayout(10, 180, 9, 8)), values)
    assert np.array_equal(reader.codes(1800, -900, 900), 300 * values)
    assert bytes(reader.raw(7200)) == values.astype("<f4").tobytes() and bytes(reader.raw(4)) == b"step"
    reader.finish()
    assert reader.used == len(data)


FORMAT = (2682, 3573893261)


def _read(data: bytes) -> None:
    reader = AdaptiveReader(memoryview(data), {1800: (10, 20, 9)})
    survivors = reader.mask(1800)
    reader.codes(int(survivors.sum()), -3, 3)
    reader.raw(120)
    reader.finish()


@functools.cache
def _stored() -> bytes:
    recorder = PartRecorder({1800: (10, 20, 9)})
    values = drawn(CodeLayout(10, 180, 9), 1.0).clip(-3, 3).reshape(-1)
    recorder.mask(values != 0)
    recorder.codes(values[values != 0], -3, 3)
    recorder.raw(np.linspace(0.1, 1.0, 60).astype("<f2").tobytes())
    return adaptive_bytes(recorder.parts)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.data())
def test_damaged_bytes_are_refused_or_read_as_other_numbers(data: st.DataObject) -> None:
    damaged = bytearray(_stored())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(1, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        _read(bytes(damaged))
    except ValueError:
        return


def test_what_is_cut_short_is_always_noticed() -> None:
    stored = _stored()
    _read(stored)
    for length in range(1, len(stored), 5):
        with pytest.raises(ValueError, match="cut short|middle of a length"):
            _read(stored[:length])


def test_more_bytes_than_the_parts_need_are_noticed() -> None:
    stored = _stored()
    body = stored[1 + len(varint(len(stored))) :]
    longer = body + b"\x07" * 9
    with pytest.raises(ValueError, match="more than their parts"):
        _read(MARK + varint(len(longer) + 3) + longer)


def test_counts_cannot_ask_for_memory() -> None:
    data = memoryview(MARK + varint(8) + b"\x01" * 6)
    for ask in ("raw", "mask"):
        with pytest.raises(ValueError, match="are wanted of a group of 8 bytes"):
            getattr(AdaptiveReader(data, {}), ask)(1 << 40)
    with pytest.raises(ValueError, match="are wanted of a group of 8 bytes"):
        AdaptiveReader(data, {}).codes(1 << 40, -3, 3)
    with pytest.raises(ValueError, match="not those of a tensor"):
        AdaptiveReader(data, {}).codes(10, -3, 3, CodeLayout(4, 4))
    with pytest.raises(ValueError, match="too large"):
        AdaptiveReader(data, {}).codes(10, -40_000, 3)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(LAYOUTS, st.floats(0.01, 3000.0))
def test_what_is_counted_is_what_is_coded(layout: CodeLayout, spread: float) -> None:
    codes = drawn(layout, spread)
    top, stream = int(np.abs(codes).max()), AdaptiveStream.writer(0)
    levels = stream.tensor(codes.copy(), -top, top, layout)
    counts, found = np.zeros_like(stream.counts[layout.states > 0]), np.zeros(codes.T.shape, dtype=np.uint8)
    sums = new_sums(layout.rows, layout.positions, start_size(start_number(codes)))
    count_tensor(np.ascontiguousarray(codes.T), Geometry.of(layout, -top, top), sums, counts, found)
    assert np.array_equal(counts, stream.counts[layout.states > 0])
    assert np.array_equal(found, levels.T % LEVELS)


@pytest.mark.parametrize("states", [0, 4])
def test_rates_are_what_the_coder_takes(states: int) -> None:
    layout = CodeLayout(128, 180, 9, states)
    codes = drawn(layout, 0.8)
    rates = rate_table(codes, layout)
    quantizer = SECOND_QUANTIZER[states][states_of(codes, states)] if states else np.zeros_like(codes)
    assert rates.bits.shape[0] == (2 if states else 1)
    estimate = float(rates.bits[quantizer, rates.levels, np.abs(codes)].sum())
    assert estimate == pytest.approx(8 * len(coded_alone(codes, layout)), rel=0.06)
    assert rate_table(codes, layout, 500).bits.shape[2] == 501


def test_rates_rise_with_the_magnitude_where_little_is_expected() -> None:
    rates = rate_table(drawn(CodeLayout(64, 90, 9), 0.5), CodeLayout(64, 90, 9))
    level = int(np.median(rates.levels))
    assert (np.diff(rates.bits[0, level, :6]) > 0).all()
    assert math.isclose(float(np.exp2(-rates.bits[0, level]).sum()), 0.55, abs_tol=0.45)


def group_of(*shape: int) -> tuple[Group, torch.Tensor]:
    weight = torch.from_numpy(drawn(CodeLayout.of(shape), 1.0).reshape(shape) * 0.01).float()
    weight += 0.003 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return Group("w", "weight", (Member("w", shape, torch.float32),), "Conv2d"), weight


@pytest.mark.parametrize(
    ("shape", "name"),
    [((32, 24, 3, 3), "quantize(bits=4)"), ((48, 1, 5, 5), "quantize(bits=5)"), ((60, 80), "quantize(bits=3)")],
)
def test_groups_are_adaptive_and_those_of_older_files_are_still_read(
    shape: tuple[int, ...], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("constriction")
    group, weight = group_of(*shape)
    packed = Coded(of=name).encode(group, [weight])
    older = coded_bytes(packed.inner, packed.shapes)
    assert packed.codings is None and packed.to_bytes()[:1] == MARK and packed.nbytes < len(older)
    monkeypatch.setattr(coded, "can_be_adaptive", lambda parts: False)
    before = Coded(of=name).encode(group, [weight])
    assert before.codings is not None and before.to_bytes()[2 : len(older) // 2] == older[2 : len(older) // 2]
    for stored in (packed, before):
        found, used = Coded(of=name).decode(group, memoryview(stored.to_bytes() + b"\x01"))
        assert used == stored.nbytes == len(found.to_bytes()) and found.to_bytes() == stored.to_bytes()
        assert replace(found, written=None).to_bytes() == stored.to_bytes()  # coded again, they are the same
        assert torch.equal(found.tensors()[0], packed.inner.tensors()[0])


def test_what_is_known_of_the_bytes_goes_when_values_change() -> None:
    group, weight = group_of(12, 8)
    packed = Coded(of="quantize(bits=4)").encode(group, [weight])
    assert packed.written is not None and packed.written == replace(packed, written=None).to_bytes()
    moved = packed.project([0.5 * weight])
    assert len(packed.within(packed.nbytes + 5).to_bytes()) == packed.nbytes + 5
    found, _ = Coded(of="quantize(bits=4)").decode(group, memoryview(moved.to_bytes()))
    assert torch.equal(found.tensors()[0], moved.tensors()[0]) and not torch.equal(found.tensors()[0], weight)


@pytest.mark.parametrize("refit", [False, True])
def test_later_values_fit_with_little_more_error(refit: bool) -> None:
    group, weight = group_of(32, 24, 3, 3)
    packed = Coded(of="quantize(bits=4)").encode(group, [weight])
    assert isinstance(packed, CodedGroup) and packed.codings is None
    drift = weight + 0.2 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    moved = packed.project([drift], refit)
    free = packed.inner.project([drift], refit)
    assert len(moved.to_bytes()) == moved.nbytes == packed.nbytes
    errors = [float((found.tensors()[0] - drift).norm()) for found in (moved, free, packed)]
    assert errors[0] < 1.2 * errors[1] and errors[0] < errors[2]


def test_sizes_are_exact_and_say_what_codes_cost() -> None:
    group, weight = group_of(32, 24, 3, 3)
    packed = Coded(of="quantize(bits=4)").encode(group, [weight])
    parts = recorded(packed.inner, shapes_of(group))
    size, sizes = adaptive_sizes(parts)
    assert size == len(adaptive_bytes(parts))
    (numbers,) = [item for item in sizes if item.bits is not None]
    estimate = float(numbers.bits[numbers.where, numbers.part.symbols].sum())  # type: ignore[index, union-attr]
    assert estimate == pytest.approx(8 * size, rel=0.12)


def test_a_trellis_of_one_row_is_plain() -> None:
    recorder = PartRecorder({})
    values = drawn(CodeLayout(1, 60), 1.0).reshape(-1)
    recorder.codes(values, -9, 9, CodeLayout(1, 60, 1, 8))
    size, (sizes,) = adaptive_sizes(recorder.parts)
    data = adaptive_bytes(recorder.parts)
    assert size == len(data) and sizes.where is not None and sizes.bits is not None
    reader = AdaptiveReader(memoryview(data), {})
    assert np.array_equal(reader.codes(60, -9, 9, CodeLayout(1, 60, 1, 8)), values)
