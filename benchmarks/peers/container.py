"""One file that restores a network from codes of other packages: codes, scales, normalisations, biases, all of it.

Normalisations are stored as scale and shift, and all floats in 16 bits, as our own menus store them. Names and shapes
come from the network, which the reader has. The whole file goes through xz or zstd, or its tensors through the coder of
``qubo_compress``; the smallest of the three is the file.

    coder (1 byte) | for each tensor: kind (1 byte) | floats, or number of scales, range, scales, zeros, codes
"""

from __future__ import annotations

import copy
import lzma
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import zstandard
from torch import Tensor, nn

from qubo_compress.menu.coding.contexts import Shape
from qubo_compress.menu.coding.layout import CodeLayout
from qubo_compress.menu.coding.writer import CodedReader, CodedWriter
from qubo_compress.menu.fold import scale_and_shift
from qubo_compress.menu.storage.streams import PlainReader, PlainWriter, Reader, Writer

Whole = npt.NDArray[np.int64]
FLOATS, CODES = 0, 1
DERIVED = ("running_mean", "running_var", "num_batches_tracked")
"""Of a batch normalisation that is stored as scale and shift."""

FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "pb": 0}]


@dataclass(frozen=True)
class Rounded:
    """A weight as codes: (code - zero) x scale.

    Attributes:
        codes: whole numbers in the weight's shape.
        scale: float32; one number, one for each row, or (rows, groups) for groups of columns.
        zero: whole numbers in the scale's shape, or None.
    """

    codes: Whole
    scale: npt.NDArray[np.float32]
    zero: Whole | None = None

    def values(self) -> Tensor:
        """The weight, with scales as the file holds them."""
        rows = self.codes.shape[0] if self.codes.ndim else 1
        scale = self.scale.astype(np.float16).astype(np.float32).reshape(-1)
        groups = scale.size // rows if scale.size > 1 else 1
        if scale.size not in (1, rows * groups) or self.codes.size % (rows * groups):
            raise ValueError(f"{scale.size} scales do not divide codes of shape {self.codes.shape}")
        split = self.codes.reshape((rows, groups, -1) if scale.size > 1 else (1, 1, -1)).astype(np.float32)
        if self.zero is not None:
            split = split - self.zero.reshape(-1, groups, 1).astype(np.float32)
        return torch.from_numpy(split * scale.reshape(-1, groups, 1)).reshape(self.codes.shape)


Weights = Mapping[str, Rounded]


def folded(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state whose batch normalisations have mean 0 and variance 1 - epsilon: the same function in eval mode."""
    found = dict(state)
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            parts = {part: state[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")}
            scale, shift = scale_and_shift(parts, module.eps)
            found |= {f"{name}.weight": scale.float(), f"{name}.bias": shift.float()}
            found |= {f"{name}.running_mean": torch.zeros_like(parts["bias"])}
            found |= {f"{name}.running_var": torch.full_like(parts["bias"], 1.0 - module.eps)}
            found |= {f"{name}.num_batches_tracked": torch.zeros_like(state[f"{name}.num_batches_tracked"])}
    return found


def stored_names(model: nn.Module) -> list[str]:
    """Names of the tensors that a file holds, in the network's order; the others are derived from them."""
    return [name for name in model.state_dict() if name.rpartition(".")[2] not in DERIVED]


def _shapes(shape: torch.Size) -> dict[int, Shape]:
    """Rows, channels, positions of a weight, for the contexts of our coder."""
    if len(shape) < 2 or not shape.numel():
        return {}
    return {shape.numel(): (shape[0], shape[1], shape.numel() // (shape[0] * shape[1]))}


def _layout(shape: Sequence[int]) -> CodeLayout | None:
    return CodeLayout.of(tuple(shape)) if len(shape) > 1 else None


class _WholeBytes(PlainWriter):
    """Codes as bytes, or pairs of bytes, which xz and zstd see through better than packed fields."""

    def codes(self, values: Whole, low: int, high: int, layout: CodeLayout | None = None) -> None:
        self.raw((values - low).astype(_kind(low, high)).tobytes())


class _WholeBytesReader(PlainReader):
    """Inverse of :class:`_WholeBytes`."""

    def codes(self, count: int, low: int, high: int, layout: CodeLayout | None = None) -> Whole:
        kind = np.dtype(_kind(low, high))
        return np.frombuffer(self.raw(kind.itemsize * count), kind).astype(np.int64) + low


def _kind(low: int, high: int) -> str:
    return "<u1" if high - low < 256 else "<u2"


def _write(writer: Writer, tensor: Tensor, rounded: Rounded | None) -> None:
    if rounded is None:
        writer.raw(bytes([FLOATS]))
        writer.raw(tensor.detach().half().numpy().tobytes())
        return
    low, high = int(rounded.codes.min()), int(rounded.codes.max())
    writer.raw(bytes([CODES]))
    writer.raw(np.array([rounded.scale.size, rounded.zero is not None, low, high], "<i2").tobytes())
    writer.raw(rounded.scale.astype("<f2").tobytes())
    if rounded.zero is not None:
        writer.raw(rounded.zero.astype("<i2").tobytes())
    writer.codes(rounded.codes.reshape(-1), low, high, _layout(rounded.codes.shape))


def _read(reader: Reader, shape: torch.Size) -> Tensor:
    if reader.raw(1)[0] == FLOATS:
        return torch.from_numpy(np.frombuffer(reader.raw(2 * shape.numel()), "<f2").astype(np.float32)).reshape(shape)
    scales, has_zero, low, high = np.frombuffer(reader.raw(8), "<i2").tolist()
    scale = np.frombuffer(reader.raw(2 * scales), "<f2").astype(np.float32)
    zero = np.frombuffer(reader.raw(2 * scales), "<i2").astype(np.int64) if has_zero else None
    codes = reader.codes(shape.numel(), low, high, _layout(shape))
    return Rounded(codes.reshape(tuple(shape)), scale, zero).values()


def _xz(data: bytes) -> bytes:
    return lzma.compress(data, format=lzma.FORMAT_RAW, filters=FILTERS)


def _unxz(data: bytes) -> bytes:
    return lzma.decompress(data, format=lzma.FORMAT_RAW, filters=FILTERS)


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=22).compress(data)


def _unzstd(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(data)


GENERAL: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    "xz": (_xz, _unxz), "zstd": (_zstd, _unzstd),
}  # fmt: skip
OURS = "our coder"
CODERS = (*GENERAL, OURS)


def packed(state: Mapping[str, Tensor], weights: Weights, model: nn.Module, coder: str) -> bytes:
    """The file of a network by one coder.

    Args:
        state: normalisations, biases, and weights that no tool rounded; see :func:`folded`.
        weights: name -> codes.
        model: the network, for the order of its tensors.
        coder: one of ``CODERS``.
    """
    names = stored_names(model)
    mark = bytes([CODERS.index(coder)])
    if coder in GENERAL:
        writer = _WholeBytes()
        for name in names:
            _write(writer, state[name], weights.get(name))
        return mark + GENERAL[coder][0](writer.data())
    parts = []
    for name in names:
        coded = CodedWriter(_shapes(state[name].shape))
        _write(coded, state[name], weights.get(name))
        parts.append(coded.data())
    return mark + b"".join(parts)


def unpacked(data: bytes, model: nn.Module) -> dict[str, Tensor]:
    """The state that a file holds: inverse of :func:`packed`, except that floats were rounded to 16 bits."""
    coder, shapes = CODERS[data[0]], {name: tensor.shape for name, tensor in model.state_dict().items()}
    body, found = memoryview(data)[1:], dict[str, Tensor]()
    plain = _WholeBytesReader(memoryview(GENERAL[coder][1](bytes(body)))) if coder in GENERAL else None
    for name in stored_names(model):
        if plain is not None:
            found[name] = _read(plain, shapes[name])
            continue
        reader = CodedReader(body, _shapes(shapes[name]))
        found[name] = _read(reader, shapes[name])
        body = body[reader.used :]
    return found


def restored(found: Mapping[str, Tensor], model: nn.Module) -> nn.Module:
    """The network in eval mode with the tensors of a file, and what batch normalisations derive from them."""
    small = copy.deepcopy(model).eval()
    state = folded(model.state_dict(), model) | dict(found)
    small.load_state_dict(state)
    return small
