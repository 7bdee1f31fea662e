"""Layers whose inputs are rounded to a few bits, as runtimes with integer kernels compute them.

An input x becomes scale * (q - zero_point) with q = clamp(round(x / scale) + zero_point, 0, 2^bits - 1): one range per
tensor, asymmetric, with an exact zero, so that padding stays zero. It is ``QuantizeLinear`` and ``DequantizeLinear`` of
ONNX with unsigned integers, which onnxruntime and OpenVINO run fastest on x86. The gradient passes unchanged within the
range and is zero outside it. NaN stays NaN, so that it is seen; ``QuantizeLinear`` makes it a number.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

LARGEST = 1e30
"""Scales are at most this, so that the ends of a range are finite in float32."""


def _at_once(inputs: Tensor, scale: float, zero_point: int, levels: int) -> Tensor:
    found = torch.fake_quantize_per_tensor_affine(inputs, scale, zero_point, 0, levels)
    return torch.where(inputs.isnan(), inputs, found)


TRACED_NAME = "qubo_compress::round_input"
"""What a traced graph calls; exporters translate it."""

_TRACEABLE = torch.library.custom_op(
    TRACED_NAME, _at_once, mutates_args=(), schema="(Tensor inputs, float scale, int zero_point, int levels) -> Tensor"
)
_TRACEABLE.register_fake(lambda inputs, *_: torch.empty_like(inputs))


@dataclass(frozen=True)
class InputRange:
    """The range to which a layer's inputs are rounded.

    Args:
        scale: distance between two levels, a float32.
        zero_point: level of zero, 0 to 2^bits - 1.
        bits: 2 to 8.

    Raises:
        ValueError: for values out of range, such as those of a damaged file.

    Example:
        >>> found = InputRange(0.5, 1, 2)
        >>> found.low, found.high, found.rounded(torch.tensor([-9.0, 0.2, 0.3, 9.0])).tolist()
        (-0.5, 1.0, [-0.5, 0.0, 0.5, 1.0])
        >>> InputRange.of_bytes(found.to_bytes(), 2) == found
        True
    """

    FORMAT: ClassVar[str] = "<fB"
    NBYTES: ClassVar[int] = struct.calcsize(FORMAT)

    scale: float
    zero_point: int
    bits: int

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"inputs are rounded to 2 to 8 bits; got {self.bits}")
        if not (math.isfinite(self.scale) and 0 < self.scale <= LARGEST):
            raise ValueError(f"the scale of a range must be a positive number; got {self.scale}")
        if not 0 <= self.zero_point <= self.levels:
            raise ValueError(f"the zero point of {self.bits} bits is 0 to {self.levels}; got {self.zero_point}")

    @property
    def levels(self) -> int:
        """The highest level, 2^bits - 1."""
        return (1 << self.bits) - 1

    @property
    def low(self) -> float:
        """The smallest value, zero or less."""
        return -self.zero_point * self.scale

    @property
    def high(self) -> float:
        """The largest value, zero or more."""
        return (self.levels - self.zero_point) * self.scale

    def rounded(self, inputs: Tensor) -> Tensor:
        """The nearest values of the range, in the inputs' dtype; NaN stays."""
        wide = inputs.float()
        # Torch's own function has no kernel without data, so that it can be neither exported nor compiled.
        traced = torch.compiler.is_compiling() or torch.compiler.is_exporting()
        found: Tensor = (_TRACEABLE if traced else _at_once)(wide, self.scale, self.zero_point, self.levels)
        return found.to(inputs.dtype)

    def to_bytes(self) -> bytes:
        """The range in a file, without the bits."""
        return struct.pack(self.FORMAT, self.scale, self.zero_point)

    @classmethod
    def of_bytes(cls, data: bytes | memoryview, bits: int) -> InputRange:
        """Inverse of :meth:`to_bytes`."""
        scale, zero_point = struct.unpack(cls.FORMAT, data)
        return cls(scale, zero_point, bits)


def rounded(inputs: Tensor, given: InputRange) -> Tensor:
    """The inputs, rounded; a function of its own, so that what observes calls sees the inputs before and after."""
    if has_torch_function((inputs,)):
        found: Tensor = handle_torch_function(rounded, (inputs,), inputs, given)
        return found
    return given.rounded(inputs)


@dataclass(frozen=True)
class RoundedInput:
    """A forward pre-hook that rounds the first input of a layer.

    The hook holds numbers only: it is copied and pickled with its layer, and moves to any device.
    """

    range: InputRange

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The layer's arguments with the first one rounded."""
        return (rounded(args[0], self.range), *args[1:])


class Variant(tuple[Tensor, ...]):
    """The whole tensors of one choice of a group, and the ranges to which their layers' inputs are rounded.

    Attributes:
        ranges: one per tensor; None where inputs are not rounded. Empty: no choice of the group rounds any.
    """

    ranges: tuple[InputRange | None, ...]

    def __new__(cls, tensors: Iterable[Tensor], ranges: Iterable[InputRange | None] = ()) -> Variant:
        """The tensors, with the ranges as an attribute."""
        made = super().__new__(cls, tensors)
        made.ranges = tuple(ranges)
        return made


def ranges_of(variant: Iterable[Tensor]) -> tuple[InputRange | None, ...]:
    """The ranges of a variant; none of plain tensors."""
    return variant.ranges if isinstance(variant, Variant) else ()


def range_of(module: nn.Module) -> InputRange | None:
    """The range to which a module's inputs are rounded, or None."""
    found = [hook.range for hook in module._forward_pre_hooks.values() if isinstance(hook, RoundedInput)]
    return found[0] if found else None


def rounds_inputs(model: nn.Module) -> bool:
    """Whether any module of a network rounds its inputs."""
    return any(range_of(module) is not None for module in model.modules())


def place_range(module: nn.Module, wanted: InputRange | None) -> InputRange | None:
    """Round a module's inputs to a range, or no longer; returns the range before."""
    before = range_of(module)
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, RoundedInput):
            del module._forward_pre_hooks[key]
    if wanted is not None:
        module.register_forward_pre_hook(RoundedInput(wanted))
    return before


@contextlib.contextmanager
def placed_ranges(wanted: Mapping[nn.Module, InputRange | None]) -> Iterator[None]:
    """Round the inputs of some modules inside a ``with`` block, and as before afterwards."""
    before = [(module, place_range(module, given)) for module, given in wanted.items()]
    try:
        yield
    finally:
        for module, former in reversed(before):
            place_range(module, former)
