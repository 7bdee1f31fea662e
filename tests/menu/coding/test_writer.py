"""The coder: what goes in comes out, in about the bytes that its models promise, and damage is noticed."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress.menu.coding.contexts import contexts, drawn, in_order, mean_byte, mean_size
from qubo_compress.menu.coding.kernels import CONTEXTS
from qubo_compress.menu.coding.lengths import read_varint, varint
from qubo_compress.menu.coding.models import (
    GAUSSIAN,
    GEOMETRIC,
    Decaying,
    Histogram,
    Share,
    Symmetric,
    best_model,
    bits_of,
    read_model,
)
from qubo_compress.menu.coding.parts import Coding, sized
from qubo_compress.menu.coding.writer import CodedReader, CodedWriter
from qubo_compress.menu.storage.packing import pack_mask, unpack_mask
from qubo_compress.menu.storage.streams import code_bytes

pytest.importorskip("constriction")
pytestmark = pytest.mark.filterwarnings("error:.*encountered in:RuntimeWarning")

RANGES = [(-1, 1), (0, 1), (-3, 3), (0, 6), (-127, 127), (5, 5), (-700, 1300), (-32767, 32767)]


def _numbers(seed: int, count: int, low: int, high: int, spread: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(np.round(rng.laplace(scale=spread, size=count)), low, high).astype(np.int64)


@settings(deadline=None, max_examples=150)
@given(st.data(), st.integers(0, 2**32 - 1))
def test_parts_round_trip_in_their_order(data: st.DataObject, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shapes = {54: (3, 2, 9), 2048: (8, 256, 1), 900: (10, 10, 9)}
    writer, written = CodedWriter(shapes), []
    for _ in range(data.draw(st.integers(0, 5))):
        count = data.draw(st.sampled_from([0, 1, 7, 54, 300, 900, 2048]))
        kind = data.draw(st.sampled_from(["raw", "mask", "codes", "survivors"]))
        if kind == "raw":
            values = rng.standard_normal(count).astype("<f4").tobytes()
            writer.raw(values)
        elif kind == "mask":
            values = rng.random(count) < rng.random() ** 2
            writer.mask(values)
        else:
            low, high = data.draw(st.sampled_from(RANGES))
            masks = [v for k, v, *_ in written if k == "mask"]
            count = int(masks[-1].sum()) if kind == "survivors" and masks else count
            values = _numbers(seed, count, low, high, 0.3 * (high - low + 1) * rng.random() + 0.01)
            writer.codes(values, low, high)
            kind = "codes"
        written.append((kind, values, *((low, high) if kind == "codes" else ())))
    stored = writer.data()
    reader = CodedReader(memoryview(stored + b"\xff\x00\x07"), shapes)
    for kind, values, *ends in written:
        if kind == "raw":
            assert bytes(reader.raw(len(values))) == values
        elif kind == "mask":
            assert np.array_equal(reader.mask(values.size), values)
        else:
            assert np.array_equal(reader.codes(values.size, *ends), values)
    reader.finish()
    assert reader.used == len(stored)
    assert tuple(reader.codings) == writer.codings()


@pytest.mark.parametrize("spread", [0.2, 0.6, 1.5, 4.0])
@pytest.mark.parametrize("high", [1, 3, 7, 31, 127])
def test_codes_take_about_their_entropy(spread: float, high: int) -> None:
    values = _numbers(1, 30_000, -high, high, spread)
    counts = np.bincount(values + high)
    seen = counts[counts > 0]
    entropy = float(-(seen * np.log2(seen / values.size)).sum()) / 8
    writer = CodedWriter({})
    writer.codes(values, -high, high)
    stored = len(writer.data())
    histogram = 12 + 2 * high
    assert entropy < stored < 1.005 * entropy + histogram
    assert stored <= code_bytes(values.size, -high, high) + 6


def test_even_numbers_are_stored_plainly() -> None:
    values = np.random.default_rng(0).integers(-7, 9, 4000)
    writer = CodedWriter({})
    writer.codes(values, -7, 8)
    writer.raw(np.random.default_rng(1).bytes(999))
    assert writer.codings() == (Coding(), Coding())
    assert len(writer.data()) <= 2000 + 999 + 6


def test_raw_floats_are_coded_by_planes_and_short_ones_are_not() -> None:
    floats = np.random.default_rng(0).standard_normal(5000).astype("<f4").tobytes()
    writer = CodedWriter({})
    writer.raw(floats)
    assert len(writer.codings()[0].planes) == 4
    assert len(writer.data()) < 0.9 * len(floats)
    short = CodedWriter({})
    short.raw(floats[:28])
    assert len(short.data()) == 2 + 28


def test_what_is_known_of_channels_and_kernels_pays() -> None:
    rng = np.random.default_rng(0)
    strength = np.exp(rng.normal(size=(1, 32, 1)) * 0.7) * np.exp(rng.normal(size=(32, 32, 1)) * 0.7)
    values = np.clip(np.round(rng.normal(size=(32, 32, 9)) * strength), -7, 7).astype(np.int64).reshape(-1)
    with_shape, without = CodedWriter({values.size: (32, 32, 9)}), CodedWriter({})
    for writer in (with_shape, without):
        writer.codes(values, -7, 7)
    assert len(with_shape.codings()[0].models) == CONTEXTS
    assert len(with_shape.data()) < 0.95 * len(without.data())
    mask = values != 0
    with_shape, without = CodedWriter({values.size: (32, 32, 9)}), CodedWriter({})
    for writer in (with_shape, without):
        writer.mask(mask)
    assert len(with_shape.data()) < 0.95 * len(without.data())


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 9), st.booleans(), st.integers(0, 255), st.integers(0, 999))
def test_readers_find_the_contexts_of_writers(
    rows: int, channels: int, positions: int, of_mask: bool, byte: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = (
        rng.integers(0, 2, (rows, channels, positions))
        if of_mask
        else rng.integers(-90, 90, (rows, channels, positions))
    )
    present = None if seed % 2 else rng.random(values.shape) < 0.6
    if present is not None:
        values = values * present
    mean = mean_size(byte)
    found = contexts(np.abs(values), mean, of_mask)
    assert found.min() >= 0 and found.max() < CONTEXTS
    queue = list(zip(in_order(found, present), in_order(values, present), strict=True))

    def draw(where: np.ndarray) -> np.ndarray:
        taken = [queue.pop(0) for _ in range(where.size)]
        assert [int(c) for c, _ in taken] == where.tolist()
        return np.array([v for _, v in taken], dtype=np.int64)

    again = drawn((rows, channels, positions), present, mean, of_mask, draw)
    assert np.array_equal(again, values.reshape(-1) if present is None else values[present])
    assert not queue


def test_mean_sizes_fit_a_byte() -> None:
    sizes = [mean_size(byte) for byte in range(256)]
    assert sizes == sorted(sizes)
    assert [mean_byte(size) for size in sizes] == list(range(256))


MODELS = [
    Decaying(GEOMETRIC, 0, -3, 3), Decaying(GAUSSIAN, 255, -700, 300), Decaying(GAUSSIAN, 0, 5, 900), Share(0),
    Share(255), Histogram(2, bytes([0, 3, 255]), -3, 3), Symmetric(bytes([9, 255, 1]), -3, 2),
    Decaying(GEOMETRIC, 17, 0, 0),
]  # fmt: skip


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_models_read_back_and_give_every_number_a_share(model: object) -> None:
    low, high = (model.low, model.high) if hasattr(model, "low") else (0, 1)
    header = model.header()
    assert read_model(memoryview(header + b"\x01"), low, high) == (model, len(header))
    shares = model.probabilities()
    assert shares.size == high - low + 1
    assert shares.min() > 0 and np.isfinite(shares).all() and shares.sum() == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"cut short|does not fit|no model"):
        read_model(memoryview(header[:-1]), low, high)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 500), min_size=2, max_size=40), st.integers(-20, 0))
def test_the_best_model_is_no_worse_than_a_plain_histogram(counts: list[int], low: int) -> None:
    found = np.array(counts)
    model, bits = best_model(found, low, low + found.size - 1)
    assert bits == pytest.approx(8 * len(model.header()) + float(bits_of(model) @ found))
    if found.sum() and found.size > 2:
        seen = np.flatnonzero(found)
        entropy = -(found[seen] * np.log2(found[seen] / found.sum())).sum()
        assert entropy <= bits <= entropy * 1.02 + 8 * (5 + found.size) + 1


def test_sizes_are_right_to_a_few_bits() -> None:
    for seed, count in ((0, 60), (1, 500), (2, 5000), (3, 60_000)):
        values = _numbers(seed, count, -7, 7, 1.5)
        writer = CodedWriter({})
        writer.codes(values, -7, 7)
        part = writer._recorder.parts[0]
        size = sized(part, writer.codings()[0])
        stored = 8 * (len(writer.data()) - 2 * len(varint(len(writer.data()))))
        assert -24 <= stored - (size.side + size.coded) <= 40 + 3e-4 * count


def test_the_format_stays_what_it_was() -> None:
    writer = CodedWriter({1800: (10, 20, 9)})
    values = (np.arange(1800) ** 2 % 37 % 7 - 3) * (np.arange(1800) % 20 < 12)
    writer.mask(values != 0)
    writer.codes(values[values != 0], -3, 3)
    writer.codes(values, -3, 3)
    writer.raw(values.astype("<f4").tobytes())
    data = writer.data()
    assert (len(data), zlib.crc32(data)) == (2164, 768218893)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**40))
def test_lengths_round_trip(value: int) -> None:
    data = varint(value)
    if value < 2**35:
        assert read_varint(memoryview(b"x" + data + b"y"), 1) == (value, 1 + len(data))
    with pytest.raises(ValueError, match="middle of a length"):
        read_varint(memoryview(data[:-1]), 0)


def _stored() -> bytes:
    writer = CodedWriter({1800: (10, 20, 9)})
    values = _numbers(5, 1800, -3, 3, 1.2) * np.repeat([1, 0], 900)
    writer.mask(values != 0)
    writer.codes(values[values != 0], -3, 3)
    writer.codes(values, -3, 3)
    writer.codes(values * 1000, -4000, 4000)
    writer.raw(values.astype("<f4").tobytes())
    return writer.data()


STORED = _stored()


def _read(data: bytes) -> None:
    reader = CodedReader(memoryview(data), {1800: (10, 20, 9)})
    survivors = reader.mask(1800)
    reader.codes(int(survivors.sum()), -3, 3)
    reader.codes(1800, -3, 3)
    reader.codes(1800, -4000, 4000)
    reader.raw(7200)
    reader.finish()


@settings(deadline=None, max_examples=250)
@given(st.data())
def test_damaged_bytes_raise_what_readers_of_files_catch_or_nothing(data: st.DataObject) -> None:
    damaged = bytearray(STORED)
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged) - 1)) :]
    for _ in range(data.draw(st.integers(0, 4))):
        if damaged:
            near_start = data.draw(st.booleans())
            at = data.draw(st.integers(0, min(len(damaged) - 1, 80 if near_start else len(damaged) - 1)))
            damaged[at] = data.draw(st.integers(0, 255))
    try:
        _read(bytes(damaged))
    except ValueError:
        return
    assert len(damaged) == len(STORED)


def test_what_is_cut_short_is_always_noticed() -> None:
    _read(STORED)
    for length in range(0, len(STORED), 7):
        with pytest.raises(ValueError):
            _read(STORED[:length])


def test_padding_is_not_read() -> None:
    writer = CodedWriter({})
    values = _numbers(9, 400, -3, 3, 1.0)
    writer.codes(values, -3, 3)
    tight = writer.data()
    padded = writer.data(len(tight) + 150)
    assert len(padded) == len(tight) + 150
    reader = CodedReader(memoryview(padded), {})
    assert np.array_equal(reader.codes(400, -3, 3), values)
    reader.finish()
    with pytest.raises(ValueError, match="do not fit"):
        writer.data(len(tight) - 1)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.binary(max_size=60), length=st.integers(0, 60))
def test_any_bytes_are_read_or_refused(data: bytes, length: int) -> None:
    for given_ in (data, varint(len(data) + 2) + varint(min(length, len(data))) + data):
        try:
            _read(given_)
        except ValueError:
            continue
        raise AssertionError("so few bytes cannot hold all this")


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
