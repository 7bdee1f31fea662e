"""Coded streams come back as they were, take what their entropy says, and refuse altered bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress.menu.entropy_models import (
    GAUSSIAN,
    GEOMETRIC,
    HISTOGRAM,
    MOST_SYMBOLS,
    Decaying,
    best_model,
    bits_of,
    read_model,
)
from qubo_compress.menu.entropy_writer import CodedReader, CodedWriter, SizeWriter, read_varint, varint
from qubo_compress.menu.packing import pack_mask, unpack_mask
from qubo_compress.menu.streams import PlainReader, PlainWriter

pytest.importorskip("constriction")
pytestmark = pytest.mark.filterwarnings("error:.*encountered in:RuntimeWarning")

Stream = tuple[str, Any]


def write(writer: Any, streams: list[Stream]) -> Any:
    for kind, value in streams:
        if kind == "codes":
            writer.codes(*value)
        else:
            getattr(writer, kind)(value)
    return writer


def read(reader: Any, streams: list[Stream]) -> None:
    """Read in the same order and compare."""
    for kind, value in streams:
        if kind == "raw":
            assert bytes(reader.raw(len(value))) == value
        elif kind == "mask":
            np.testing.assert_array_equal(reader.mask(value.size), value)
        else:
            numbers, low, high = value
            np.testing.assert_array_equal(reader.codes(numbers.size, low, high), numbers)


@st.composite
def codes(draw: st.DrawFn) -> Stream:
    low = draw(st.sampled_from([-32767, -127, -7, -3, -1, 0, 0, 1, 5]))
    high = low + draw(st.sampled_from([0, 1, 2, 3, 6, 14, 254, 255, 256, 4095, 4096, 65534]))
    count = draw(st.sampled_from([0, 1, 2, 7, 100, 3000]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([0.0, 0.3, 2.0, 40.0, 1e4]))
    centre = draw(st.sampled_from([low, high, (low + high) // 2, min(max(0, low), high)]))
    numbers = np.clip(np.round(centre + spread * rng.standard_t(3, count)), low, high).astype(np.int64)
    return "codes", (numbers, low, high)


@st.composite
def masks(draw: st.DrawFn) -> Stream:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count, share = draw(st.sampled_from([0, 1, 9, 2000])), draw(st.sampled_from([0.0, 0.001, 0.1, 0.5, 0.95, 1.0]))
    return "mask", rng.random(count) < share


STREAMS = st.lists(st.one_of(codes(), masks(), st.tuples(st.just("raw"), st.binary(max_size=40))), max_size=6)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(streams=STREAMS, spare=st.integers(0, 9), behind=st.binary(max_size=5))
def test_every_stream_comes_back(streams: list[Stream], spare: int, behind: bytes) -> None:
    data = write(CodedWriter(), streams).data()
    reader = CodedReader(memoryview(data + behind))
    read(reader, streams)
    assert reader.used == len(data)
    capacity = len(data) + spare
    padded = write(CodedWriter(), streams).data(capacity)
    assert len(padded) == capacity
    reader = CodedReader(memoryview(padded + behind))
    read(reader, streams)
    assert reader.used == capacity
    with pytest.raises(ValueError, match="do not fit"):
        write(CodedWriter(), streams).data(len(data) - 1)
    plain = write(PlainWriter(), streams).data()
    read(PlainReader(memoryview(plain)), streams)
    # A tag per stream, two lengths of up to three bytes, and the coder's last words.
    assert len(data) <= len(plain) + len(streams) + 6 + 8
    assert abs(len(data) - write(SizeWriter(), streams).total) <= 12 + 0.002 * len(data)


def entropy_bytes(numbers: npt.NDArray[np.int64]) -> float:
    counts = np.unique(numbers, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


@pytest.mark.parametrize("high", [1, 3, 7, 127])
@pytest.mark.parametrize("spread", [0.2, 1.0, 3.0])
def test_the_size_is_near_the_entropy(high: int, spread: float) -> None:
    rng = np.random.default_rng(0)
    numbers = np.clip(np.round(spread * rng.standard_normal(20_000)), -high, high).astype(np.int64)
    writer = CodedWriter()
    writer.codes(numbers, -high, high)
    size, bound = len(writer.data()), entropy_bytes(numbers)
    assert bound <= size <= 1.003 * bound + 2 * high + 1 + 16


def test_many_codes_of_a_wide_range_are_as_long_as_estimated() -> None:
    """Shares below the coder's resolution are rounded up: estimates must be near enough for the capacity."""
    rng = np.random.default_rng(1)
    numbers = np.clip(np.round(300 * rng.standard_normal(200_000)), -2000, 2000).astype(np.int64)
    writer, counter = CodedWriter(), SizeWriter()
    for each in (writer, counter):
        each.codes(numbers, -2000, 2000)
    assert abs(len(writer.data()) - counter.total) < 16 + 0.002 * counter.total


@pytest.mark.parametrize("tag", [GEOMETRIC, GAUSSIAN])
@pytest.mark.parametrize("step", [0, 1, 40, 65_535])
@pytest.mark.parametrize(("low", "high"), [(0, 1), (-7, 7), (3, 9), (-2000, 2000), (900, 999), (-5, -5)])
def test_models_are_distributions_and_read_back(tag: int, step: int, low: int, high: int) -> None:
    model = Decaying(tag, step, low, high)
    shares = model.probabilities()
    assert shares.shape == (high - low + 1,) and bool((shares > 0).all()) and shares.sum() == pytest.approx(1.0)
    order = np.argsort(np.abs(np.arange(low, high + 1)), kind="stable")
    assert bool((np.diff(shares[order]) <= 0).all())
    again, used = read_model(tag, np.frombuffer(model.header()[1:], dtype=np.uint8), low, high)
    assert np.isfinite(shares).all()
    if low >= 0 and step == 40:
        powers = np.arange(low, high + 1.0) ** (2 if tag == GAUSSIAN else 1)
        expected = (1 - 41 / 65537) ** (powers - powers[0])
        assert shares[:5] / shares[0] == pytest.approx(expected[:5], rel=1e-4)
    assert again == model and used == len(model.header()) - 1


def test_the_best_model_is_the_shortest() -> None:
    numbers = np.arange(-31, 32)
    gaussian = np.round(1e5 * np.exp2(-(numbers**2) / 40.0)).astype(np.int64)
    laplacian = np.round(1e5 * np.exp2(-np.abs(numbers) / 3.0)).astype(np.int64)
    lumps = np.where(np.isin(numbers, (-20, 3, 11)), 10_000, 0)
    for counts, expected in ((gaussian // 50, GAUSSIAN), (laplacian // 50, GEOMETRIC), (lumps, HISTOGRAM)):
        model, size = best_model(counts, -31, 31, 10**6)
        assert model is not None and model.header()[0] == expected
        assert size == pytest.approx(len(model.header()) + bits_of(counts, model.probabilities()) / 8)
    assert best_model(lumps, -31, 31, 3)[0] is None
    assert best_model(np.zeros(63, dtype=np.int64), -31, 31, 0)[0] is None
    wide = np.ones(MOST_SYMBOLS + 1, dtype=np.int64)
    assert best_model(wide, 0, MOST_SYMBOLS, 10**6)[0] is None


@given(value=st.integers(0, 2**35))
def test_lengths_come_back(value: int) -> None:
    data = varint(value)
    assert read_varint(memoryview(data + b"x"), 0) == (value, len(data))
    with pytest.raises(ValueError, match="middle of a length"):
        read_varint(memoryview(data[:-1] if len(data) > 1 else b""), 0)


SAMPLE: list[Stream] = [
    ("raw", b"scales"),
    ("mask", np.random.default_rng(0).random(300) < 0.3),
    ("mask", np.random.default_rng(0).random(40) < 0.5),
    ("codes", (np.random.default_rng(1).integers(-3, 4, 200), -3, 3)),
    ("codes", (np.round(np.random.default_rng(2).standard_normal(400) * 3).astype(np.int64), -60, 60)),
    ("codes", (np.random.default_rng(3).integers(0, 60_000, 5), 0, 65_000)),
]


def attempt(make: Callable[[], Any]) -> bool:
    """Whether bytes were read without an error; an error must be a ValueError."""
    try:
        reader = make()
        for kind, value in SAMPLE:
            if kind == "codes":
                assert reader.codes(value[0].size, *value[1:]).shape == value[0].shape
            elif kind == "mask":
                assert reader.mask(value.size).shape == value.shape
            else:
                reader.raw(len(value))
    except ValueError:
        return False
    return True


def test_what_is_cut_short_is_refused() -> None:
    data = write(CodedWriter(), SAMPLE).data()
    assert attempt(lambda: CodedReader(memoryview(data)))
    for length in range(len(data)):
        assert not attempt(lambda n=length: CodedReader(memoryview(data[:n])))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6))
def test_altered_bytes_are_read_or_refused_but_never_crash(changes: list[tuple[float, int]]) -> None:
    data = bytearray(write(CodedWriter(), SAMPLE).data())
    for place, value in changes:
        data[int(place * len(data))] = value
    attempt(lambda: CodedReader(memoryview(bytes(data))))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.binary(max_size=60), length=st.integers(0, 60))
def test_any_bytes_are_read_or_refused(data: bytes, length: int) -> None:
    attempt(lambda: CodedReader(memoryview(data)))
    whole = varint(len(data) + 2) + varint(min(length, len(data))) + data
    attempt(lambda: CodedReader(memoryview(whole)))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.binary(max_size=30), count=st.integers(0, 100))
def test_masks_of_any_bytes_are_read_or_refused(data: bytes, count: int) -> None:
    try:
        mask, used = unpack_mask(data, count)
    except ValueError:
        return
    assert mask.shape == (count,) and used <= len(data)


def test_a_mask_cannot_ask_for_memory() -> None:
    with pytest.raises(ValueError, match="no mask"):
        unpack_mask(bytes([8]) + b"\xff\xff\xff\xff", 100)
    mask = np.zeros(400, dtype=bool)
    mask[[3, 350]] = True
    with pytest.raises(ValueError, match="more than 100"):
        unpack_mask(pack_mask(mask), 100)
