"""The common part of all low-rank choices: products of small factors, fitted, quantized one by one, stored.

A weight is seen as a tensor whose first mode is the output channel and whose second one is the input, or the input
with the kernel. A :class:`Form` is a product of factors written as an Einstein sum in which every factor is led by
a rank, so that the float16 scale per row of a quantized factor is one scale per component. The first factor holds
the second mode, the last one the output channels.

Data-free factors have least squared error in the weight. ``whitened`` ones have it in the layer's outputs: with S
the second moments of the inputs and R R^T = S they minimise ||(W - W_r) R||, for a matrix by truncating the
singular values of W R (as in SVD-LLM, Wang et al., ICLR 2025, and DRONE, Chen et al., NeurIPS 2021), for other
forms by starting from the whitened input mode and solving for the factors in turn under S.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from qubo_compress._internal.optional import require
from qubo_compress.calibration.statistics.input_moments import InputMoments
from qubo_compress.calibration.statistics.statistic import Statistic
from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.low_rank.forms import Form, Weighing, balanced, solved
from qubo_compress.menu.low_rank.stages import Stage, stage_of
from qubo_compress.menu.operator import Operator, needs_data
from qubo_compress.menu.quantize import QuantizedTensor, fit_scale, round_to_codes
from qubo_compress.menu.storage.parts import StoredPart, StoredParts, as_member
from qubo_compress.menu.storage.portable import Product, ScaledCodes
from qubo_compress.menu.storage.stored import Grid
from qubo_compress.menu.storage.streams import Reader, Writer
from qubo_compress.network.groups import Group, Member
from qubo_compress.network.tensor_bytes import from_raw_bytes, raw_bytes

EXTRA = "low-rank"
"""The extra that brings tensorly."""

DAMPING = 0.01
"""Share of the mean input moment that is added to every input's."""

WEIGHED_SWEEPS = 2

MOST_REMEMBERED = 1024
_effective_ranks: dict[bytes, float] = {}


@contextlib.contextmanager
def tensorly_decompositions() -> Iterator[Any]:
    """``tensorly.decomposition`` on numpy arrays, without warnings about modes shorter than a rank.

    Raises:
        MissingDependency: when tensorly is not installed.
    """
    tensorly = require("tensorly", EXTRA)
    with tensorly.backend_context("numpy", local_threadsafe=True), warnings.catch_warnings():
        # It then takes all singular vectors, as wanted.
        warnings.filterwarnings("ignore", message="Trying to compute SVD with n_eigenvecs")
        yield require("tensorly.decomposition", EXTRA)


def effective_rank(matrix: Tensor) -> float:
    """Exp of the entropy of the normalised singular values (Roy and Vetterli, EUSIPCO 2007).

    Args:
        matrix: (rows, columns), finite.

    Returns:
        Between 1 and the smaller side; 1 for a matrix of zeros.

    Example:
        >>> round(effective_rank(torch.eye(4)), 6), effective_rank(torch.ones(3, 5)) < 1.001
        (4.0, True)
    """
    values = matrix.detach().cpu()
    key = hashlib.blake2b(raw_bytes(values.contiguous()) + repr((values.dtype, values.shape)).encode()).digest()
    # Every share of a menu needs this for the same weight, in refusal and encode: a digest is cheap next to an SVD.
    if key not in _effective_ranks:
        while len(_effective_ranks) >= MOST_REMEMBERED:
            _effective_ranks.pop(next(iter(_effective_ranks)), None)
        _effective_ranks[key] = _entropy_rank(torch.linalg.svdvals(values.double()))
    return _effective_ranks[key]


def _entropy_rank(values: Tensor) -> float:
    if float(values.sum()) <= 0:
        return 1.0
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(torch.exp(-(shares * shares.log()).sum()))


def rank_grid(weight: Tensor, count: int = 5, span: float = 2.0) -> tuple[int, ...]:
    """Whole ranks spaced geometrically around half the effective rank of a weight seen as (rows, rest).

    Half, because below about that rank a factored weight has fewer numbers than a square dense one.

    Args:
        weight: two or more dimensions.
        count: candidates; fewer are returned if neighbours round to the same rank.
        span: the first and last candidate are the centre divided and multiplied by it.

    Raises:
        InvalidMenu: for a count below 1 or a span of at most 1.

    Example:
        >>> rank_grid(torch.eye(16), count=3)
        (4, 8, 16)
    """
    if count < 1 or not span > 1:
        raise InvalidMenu(f"a rank grid has at least one candidate and a span above 1; got {count} and {span}")
    matrix = weight.detach().reshape(weight.shape[0], -1)
    centre, largest = effective_rank(matrix) / 2, min(matrix.shape)
    powers = np.linspace(-1.0, 1.0, count) if count > 1 else np.zeros(1)
    return tuple(sorted({min(largest, max(1, round(centre * span**power))) for power in powers}))


def rank_within(matrix: Tensor, rank: int | None, share: float | None) -> int:
    """The given rank, or the share of the effective rank, at least one."""
    if share is None:
        return rank or 1
    return int(min(*matrix.shape, max(1, round(share * effective_rank(matrix)))))


@dataclass(frozen=True, eq=False)
class RawFactor(StoredPart):
    """A factor in the dtype of its weight; float32 for float64."""

    values: Tensor

    @property
    def nonzeros(self) -> int:
        """Numbers that are not zero."""
        return int(torch.count_nonzero(self.values))

    def value(self) -> Tensor:
        return self.values.float()

    def write(self, writer: Writer) -> None:
        """The numbers as they are in memory."""
        writer.raw(raw_bytes(self.values))

    def project(self, value: Tensor, refit: bool) -> RawFactor:
        """Nearest numbers of the dtype, never beyond its range."""
        largest = torch.finfo(self.values.dtype).max
        return RawFactor(value.detach().clamp(-largest, largest).to(self.values.dtype).reshape(self.values.shape))


Factor = QuantizedTensor | RawFactor


def stored_factor(values: Tensor, bits: int | None, dtype: torch.dtype) -> Factor:
    """A factor stored as codes, or in the dtype of its weight."""
    if bits is None:
        return RawFactor(torch.empty(values.shape, dtype=_narrow(dtype))).project(values, False)
    flat = values.float().flatten(1)
    scale = fit_scale(flat, None, bits)
    codes = round_to_codes(flat, scale, bits, signs_only=False).to(torch.int16)
    return QuantizedTensor(Member("factor", tuple(values.shape), torch.float32), bits, scale, codes, None)


def _narrow(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float64 else dtype


def _stored_nonzeros(factor: Factor) -> int:
    return factor.nonzeros if isinstance(factor, RawFactor) else int((factor.codes != 0).sum())


@dataclass(frozen=True, eq=False)
class FactoredTensor(StoredPart):
    """One weight as stored factors.

    Attributes:
        member: what is stored.
        form: how the factors make it.
        ranks: written as two bytes each.
        factors: codes, or numbers.
    """

    member: Member
    form: Form
    ranks: tuple[int, ...]
    factors: tuple[Factor, ...]

    def parameters(self) -> tuple[Tensor, ...]:
        """The factors in float32."""
        return tuple(factor.value().reshape(s) for factor, s in zip(self.factors, self.form.shapes, strict=True))

    def assembled(self, factors: Sequence[Tensor]) -> Tensor:
        """The weight's part from factors, in its own dtype and never beyond its range; differentiable."""
        # In float64, so that another number of threads, which changes the order of sums, gives the same rounded result.
        return as_member(self.form.assembled([f.double() for f in factors]), self.member)

    def value(self) -> Tensor:
        return self.assembled(self.parameters())

    def stages(self) -> tuple[Stage, ...]:
        """The factors as maps, in the order of their application."""
        dimensions, last = len(self.member.part_shape) - 2, len(self.factors) - 1
        found = []
        for number, (values, step) in enumerate(zip(self.parameters(), self.form.steps, strict=True)):
            stage, factor = stage_of(values, step, dimensions, number == last), self.factors[number]
            if isinstance(factor, QuantizedTensor):
                codes = stage_of(factor.codes.reshape(values.shape), step, dimensions, number == last).weight
                form = ScaledCodes(codes, factor.scale.float().reshape(-1), axis=int(number == last))
                stage = replace(stage, portable=form)
            found.append(stage)
        return tuple(found)

    def portable(self) -> Product | None:
        """The product of two factors; None for more factors, or factors of plain numbers."""
        first, last = self.factors[0], self.factors[-1]
        if len(self.factors) != 2 or not (isinstance(first, QuantizedTensor) and isinstance(last, QuantizedTensor)):
            return None
        return Product(last.portable().transposed(), first.portable(), self.member.part_shape)

    def store(self, factors: Sequence[Tensor], refit: bool) -> FactoredTensor:
        """Nearest storable factors in the same bytes."""
        kept = tuple(old.project(new, refit) for old, new in zip(self.factors, factors, strict=True))
        return FactoredTensor(self.member, self.form, self.ranks, kept)

    def grids(self) -> tuple[Grid, ...]:
        return tuple(grid for factor in self.factors for grid in factor.grids())

    def with_grids(self, grids: Iterator[Any]) -> Self:
        return replace(self, factors=tuple(factor.with_grids(grids) for factor in self.factors))

    def project(self, value: Tensor, refit: bool) -> FactoredTensor:
        """Solve for every factor in turn and store it; steps that do not help are rejected."""
        if torch.equal(value.detach().cpu().to(self.member.dtype), self.value()):
            return self
        target = value.detach().cpu().double().reshape(self.form.view)
        best, least = self, self._error(target)
        for number in range(len(self.factors)):
            factors = [f.double() for f in best.parameters()]
            factors[number] = solved(self.form, factors, number, target)
            changed = best.store([f.float() for f in factors], refit)
            found = changed._error(target)
            if found < least:
                best, least = changed, found
        return best

    def _error(self, target: Tensor) -> float:
        return float((self.value().double().reshape(self.form.view) - target).square().sum())

    def write(self, writer: Writer) -> None:
        writer.raw(np.array(self.ranks, dtype="<u2").tobytes())
        for factor in self.factors:
            factor.write(writer)


@dataclass(frozen=True, eq=False)
class FactoredTensors(StoredParts[FactoredTensor]):
    """All members of a group, as factors."""

    @property
    def nonzeros(self) -> int:
        """Numbers in the factors that are not zero."""
        return sum(_stored_nonzeros(factor) for part in self.parts for factor in part.factors)

    @property
    def weight_bits(self) -> int:
        """Bits of one number of a factor."""
        factor = self.parts[0].factors[0]
        return 8 * factor.values.element_size() if isinstance(factor, RawFactor) else factor.bits

    def stages(self, member: int) -> tuple[Stage, ...]:
        """The factors of a member as maps."""
        return self.parts[member].stages()

    def parameters(self) -> tuple[Tensor, ...]:
        return tuple(factor for part in self.parts for factor in part.parameters())

    def assemble(self, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(part.assembled(own) for part, own in self._split(parameters))

    def store(self, parameters: Sequence[Tensor], refit: bool = False) -> FactoredTensors:
        """Nearest storable factors in the same bytes."""
        return FactoredTensors(tuple(part.store(own, refit) for part, own in self._split(parameters)))

    def _split(self, parameters: Sequence[Tensor]) -> list[tuple[FactoredTensor, Sequence[Tensor]]]:
        found, start = [], 0
        for part in self.parts:
            found.append((part, parameters[start : start + len(part.factors)]))
            start += len(part.factors)
        return found


class LowRank(Operator):
    """Base of the low-rank operators, which define their ranks, their form and the first factors."""

    bits: int | None
    whitened: bool
    damping: float
    operator_name: ClassVar[str]

    def ranks_of(self, part: Tensor) -> tuple[int, ...]:
        """The ranks to store for a weight, from the settings."""
        raise NotImplementedError

    def form(self, shape: tuple[int, ...], ranks: tuple[int, ...]) -> Form:
        """The factors for a weight of that shape."""
        raise NotImplementedError

    def decomposed(self, target: Tensor, ranks: tuple[int, ...]) -> list[Tensor]:
        """Float64 factors for values in the shape of the view, which are not all zero and of about unit size."""
        raise NotImplementedError

    def unsuitable(self, shape: tuple[int, ...]) -> str | None:
        """Why a weight of that shape has no such form."""
        raise NotImplementedError

    @classmethod
    def faithful(cls) -> None:
        """None: at full rank the factors have more numbers than the weight, which is refused."""

    def refusal(self, group: Group, parts: Sequence[Tensor]) -> str | None:
        """Suits whole weights whose factors have fewer numbers."""
        if group.kind != "weight":
            return f"{group.kind} vectors have no rank to lower"
        if self.whitened and group.module_type == "Embedding":
            return "an embedding picks rows, so its inputs have no moments to whiten with"
        for member, part in zip(group.members, parts, strict=True):
            if member.rows is not None:
                return "single filters are not factored; group by layer"
            reason = self.unsuitable(member.shape)
            if reason is not None:
                return reason
            ranks = self.ranks_of(part.cpu())
            limits = self.form(member.shape, ranks)
            if limits.numel >= member.numel:
                return f"factors of rank {ranks} have {limits.numel} numbers, the weight itself {member.numel}"
        return None

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """Second moments of the layer's inputs, if factors are fitted to its outputs."""
        return (InputMoments(),) if self.whitened else ()

    def encode(self, group: Group, parts: Sequence[Tensor]) -> FactoredTensors:
        """Decompose, quantize one factor after the other, and fit each later factor to the stored ones."""
        if self.whitened:
            raise needs_data(self)
        return FactoredTensors(tuple(self._one(m, p.cpu(), None) for m, p in zip(group.members, parts, strict=True)))

    def encode_with(
        self, group: Group, parts: Sequence[Tensor], evidence: Mapping[Any, tuple[Any, ...]]
    ) -> FactoredTensors:
        """Like :meth:`encode`, but minimise the error of the layer's outputs."""
        if not self.whitened:
            return self.encode(group, parts)
        found = []
        for member, part, moments in zip(group.members, parts, evidence[InputMoments()], strict=True):
            weigh = Weighing(moments, member.part_shape[0], self.damping)
            found.append(self._one(member, part.cpu(), weigh))
        return FactoredTensors(tuple(found))

    def _one(self, member: Member, part: Tensor, weigh: Weighing | None) -> FactoredTensor:
        ranks = self.ranks_of(part)
        form = self.form(member.part_shape, ranks)
        target = part.detach().double().reshape(form.view)
        size = float(target.square().mean().sqrt())
        factors = [torch.zeros(shape, dtype=torch.float64) for shape in form.shapes]
        if size > 0:
            factors = self._first_factors(form, target / size, ranks, weigh)
            factors[-1] = factors[-1] * size
            factors = balanced(factors)
        kept: list[Factor] = []
        for number, shape in enumerate(form.shapes):
            if size > 0 and number > 0:
                factors[number] = solved(form, factors, number, target, weigh)
            kept.append(stored_factor(factors[number], self.bits, member.dtype))
            factors[number] = kept[-1].value().double().reshape(shape)
        return FactoredTensor(member, form, ranks, tuple(kept))

    def _first_factors(
        self, form: Form, target: Tensor, ranks: tuple[int, ...], weigh: Weighing | None
    ) -> list[Tensor]:
        """Float64 factors before quantization, of least error in the weight or the outputs."""
        if weigh is None:
            return self.decomposed(target, ranks)
        # With W R for the weight, R R^T the moments of the input mode, plain squared errors are those of the outputs.
        root = weigh.root(form.view[1])
        whitened = torch.einsum("oi...,ij->oj...", target, root)
        size = whitened.square().mean().sqrt()
        factors = self.decomposed(whitened / size, ranks)
        factors[0] = torch.linalg.solve_triangular(root, factors[0], upper=False, left=False)
        factors[-1] = factors[-1] * size
        # Exact for one matrix of moments if the input mode has no kernel.
        if len(weigh.spans) > 1 or len(form.view) > 2:
            for _ in range(WEIGHED_SWEEPS):
                for number in range(len(factors)):
                    factors[number] = solved(form, factors, number, target, weigh)
        return factors

    def read(self, group: Group, reader: Reader) -> FactoredTensors:
        """Read ranks and factors, member by member."""
        return FactoredTensors(tuple(self._read(member, reader) for member in group.members))

    def _read(self, member: Member, reader: Reader) -> FactoredTensor:
        count = self.rank_count(member.part_shape)
        ranks = tuple(int(r) for r in np.frombuffer(reader.raw(2 * count), dtype="<u2"))
        if min(ranks) < 1 or self.form(member.part_shape, ranks).numel >= member.numel:
            raise ValueError(f"ranks {ranks} cannot have been stored for {member.numel} weights")
        form, dtype = self.form(member.part_shape, ranks), _narrow(member.dtype)
        kept: list[Factor] = []
        for shape in form.shapes:
            if self.bits is None:
                kept.append(RawFactor(from_raw_bytes(reader.raw(math.prod(shape) * dtype.itemsize), shape, dtype)))
            else:
                kept.append(QuantizedTensor.read(Member("factor", shape, torch.float32), self.bits, False, reader))
        return FactoredTensor(member, form, ranks, tuple(kept))

    def rank_count(self, shape: tuple[int, ...]) -> int:
        """How many ranks are stored for a weight of that shape."""
        raise NotImplementedError


def checked_settings(operator: LowRank, rank: int | tuple[int, ...] | None, share: float | None) -> None:
    """Raise :class:`InvalidMenu` unless one of ranks and share is given, in range, and the other settings are."""
    bits, damping = operator.bits, operator.damping
    if not isinstance(operator.whitened, bool):
        raise InvalidMenu(f"whitened is True or False; got {operator.whitened!r}")
    if not (isinstance(damping, (int, float)) and 0 < damping < 10):
        raise InvalidMenu(f"damping must be above 0 and below 10; got {damping!r}")
    if (rank is None) == (share is None):
        raise InvalidMenu(f"give either a rank or a share of the effective rank; got {rank!r} and {share!r}")
    wrong = [r for r in (rank if isinstance(rank, tuple) else (rank,)) if r is not None and not _is_rank(r)]
    if wrong:
        raise InvalidMenu(f"a rank is a whole number from 1 to 65535; got {wrong[0]!r}")
    if share is not None and not (isinstance(share, (int, float)) and 0 < share < math.inf):
        raise InvalidMenu(f"share is a positive share of the effective rank; got {share!r}")
    if bits is not None and not (isinstance(bits, int) and 2 <= bits <= 16):
        raise InvalidMenu(f"bits must be a whole number from 2 to 16, or None for the weight's own; got {bits!r}")


def _is_rank(rank: object) -> bool:
    return isinstance(rank, int) and not isinstance(rank, bool) and 1 <= rank <= 65535
