"""Conformance checks for operators: run on all registered ones, and meant for users' own.

Example:
    >>> from qubo_compress.menu.quantize import Quantize
    >>> from qubo_compress.testing import check_operator
    >>> check_operator(Quantize(bits=3, sparsity=0.5))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.operator import Operator, adopt, choice_name, looks_at_data, operators, parse
from qubo_compress.menu.storage.portable import holds
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.network.groups import Group, Member
from qubo_compress.network.roles import Kind

SHAPES: dict[str, tuple[int, ...]] = {
    "Linear": (7, 13),
    "Embedding": (11, 5),
    "Conv1d": (8, 3, 5),
    "Conv2d, grouped": (6, 2, 3, 3),
    "Conv2d, depthwise": (5, 1, 3, 3),
    "Conv3d": (4, 2, 3, 2, 3),
    "Linear of one weight": (1, 1),
    "Linear with one input": (9, 1),
}
ALL_VALUES = ("Linear", "Conv2d, depthwise")
"""Modules whose awkward values are tried in every dtype."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
AWKWARD_DTYPES = (torch.float32, torch.float16)
"""Dtypes in which awkward values are tried in every module: the narrowest range, and the one all is computed in."""
EPSILON = 1e-5

Sample = tuple[str, Group, tuple[Tensor, ...]]


def check_operator(operator: Operator, seed: int = 0) -> None:
    """Store many groups of every kind with an operator and check the decoded values.

    Args:
        operator: with its settings.
        seed: of the weights.

    Raises:
        AssertionError: naming the group and what was wrong.
    """
    adopt(operator)
    accepted = 0
    for label, group, parts in sample_groups(seed):
        reason = operator.refusal(group, parts)
        assert reason is None or (isinstance(reason, str) and reason), f"{label}: refusal() gave {reason!r}"
        if reason is not None:
            continue
        accepted += 1
        try:
            _check_group(operator, group, parts, seed)
        except AssertionError as failure:
            raise AssertionError(f"operator {choice_name(operator)}, {label}: {failure}") from failure
    assert accepted, f"{choice_name(operator)} suits none of the groups that were tried"
    if operators.names() and operator.operator_name in operators.names():
        assert parse(choice_name(operator)) == operator, f"{choice_name(operator)} does not read back as itself"


def sample_groups(seed: int = 0) -> Iterator[Sample]:
    """Groups of all kinds, shapes and dtypes, with awkward values among them: (label, group, parts)."""
    generator = torch.Generator().manual_seed(seed)
    for dtype in DTYPES:
        for module, shape in SHAPES.items():
            weight = torch.randn(shape, generator=generator)
            for values, changed in _awkward(weight):
                if values == "ordinary" or dtype in AWKWARD_DTYPES or module in ALL_VALUES:
                    yield f"{module}, {values}, {dtype}", *_group("weight", module, {"weight": changed.to(dtype)})
        whole = torch.randn(6, 4, 3, generator=generator).to(dtype)
        member = Member("layer.weight", tuple(whole.shape), dtype, (2, 3))
        yield f"one filter, {dtype}", Group("layer.weight[2]", "weight", (member,), "Conv1d"), (whole[2:3],)
        shapes = {"first.weight": (3, 5), "second.weight": (4, 2)}
        two = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
        yield f"two weights, {dtype}", *_group("weight", "Linear", two)
        bias = torch.randn(9, generator=generator)
        for values, changed in _awkward(bias):
            yield f"bias, {values}, {dtype}", *_group("bias", "Linear", {"bias": changed.to(dtype)})
        vectors = {"weight": torch.randn(5, generator=generator), "bias": torch.randn(5, generator=generator)}
        named = {name: t.to(dtype) for name, t in vectors.items()}
        yield f"LayerNorm, {dtype}", *_group("normalisation", "LayerNorm", named)
        statistics = {
            "running_mean": torch.randn(5, generator=generator).to(dtype),
            "running_var": torch.rand(5, generator=generator).add(0.1).to(dtype),
            "num_batches_tracked": torch.tensor(17),
        }
        yield f"BatchNorm, {dtype}", *_group("normalisation", "BatchNorm2d", {**named, **statistics}, EPSILON)


def _awkward(weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield "ordinary", weight
    zeroed = weight.clone()
    zeroed[0] = 0.0
    yield "first row zero", zeroed
    yield "all zero", torch.zeros_like(weight)
    yield "tiny", weight * 1e-7
    yield "huge", weight * 1e4


def _group(
    kind: Kind, module: str, tensors: dict[str, Tensor], epsilon: float | None = None
) -> tuple[Group, tuple[Tensor, ...]]:
    members = tuple(Member(f"layer.{name}", tuple(t.shape), t.dtype) for name, t in tensors.items())
    return Group(members[0].name, kind, members, module.partition(",")[0], epsilon), tuple(tensors.values())


def stored_by(operator: Operator, group: Group, parts: Sequence[Tensor], seed: int = 0) -> Stored:
    """A group as an operator stores it; one that needs data gets made-up statistics."""
    if not looks_at_data(operator):
        return operator.encode(group, parts)
    try:
        operator.encode(group, parts)
    except InvalidMenu:
        evidence = {n: n.imagined(group, parts, torch.Generator().manual_seed(seed)) for n in operator.needs}
        return operator.encode_with(group, parts, evidence)
    raise AssertionError("encode() of an operator that looks at data must raise needs_data(operator)")


def registered_samples() -> tuple[Operator, ...]:
    """The settings to test of every registered operator: its ``samples()``."""
    found: list[Operator] = []
    for name in operators.names():
        tried = operators.get(name).samples()
        assert tried, f"operator {name!r} lacks samples(): settings to be tried with"
        found += tried
    return tuple(found)


def check_faithful(kind: type[Operator], seed: int = 0) -> None:
    """At an operator's highest fidelity, its ``faithful()``, the displacement is as small as it says.

    Raises:
        AssertionError: naming the group whose displacement is larger.
    """
    forgot = getattr(kind.faithful, "__func__", None) is Operator.__dict__["faithful"].__func__
    assert not forgot, f"operator {kind.operator_name!r} lacks faithful(): settings and largest displacement, or None"
    found = kind.faithful()
    if found is None:
        return
    operator, largest = found
    tried = 0
    for label, group, parts in sample_groups(seed):
        if "ordinary" not in label or "float32" not in label or operator.refusal(group, parts) is not None:
            continue
        tried += 1
        values = stored_by(operator, group, parts, seed).tensors()
        for part, value in zip(parts, values, strict=True):
            apart = float((value.double() - part.double()).norm() / part.double().norm().clamp(min=1e-30))
            assert apart <= largest, f"{choice_name(operator)}, {label}: displacement {apart:.3g} above {largest:.3g}"
    assert tried, f"{choice_name(operator)} suits no ordinary group"


def _check_group(operator: Operator, group: Group, parts: Sequence[Tensor], seed: int) -> None:
    before = [part.clone() for part in parts]
    packed = stored_by(operator, group, parts, seed)
    assert all(torch.equal(a, b) for a, b in zip(before, parts, strict=True)), "encode() changed the weights given"
    data = _check_packed(operator, group, packed)
    assert stored_by(operator, group, parts, seed).to_bytes() == data, "encode() does not give the same bytes twice"
    again = packed.project(packed.tensors())
    assert _equal(again, packed), "project() moves values that are stored already"
    other = [_moved(member, part, seed) for seed, (member, part) in enumerate(zip(group.members, parts, strict=True))]
    for refit in (False, True):
        projected = packed.project(other, refit)
        _check_packed(operator, group, projected)
        sizes = (packed.nbytes, projected.nbytes)
        assert sizes[0] == sizes[1], f"project(refit={refit}) changed {sizes[0]} bytes to {sizes[1]}"
        settled = projected.project(projected.tensors())
        assert _equal(settled, projected), f"project() is not idempotent after refit={refit}"
    assert packed.to_bytes() == data, "project() changed what it was called on"
    if packed.parameters():
        _check_parameters(operator, group, packed)
    assert operator.unreliable == packed.unreliable, "the operator and its stored form disagree on unreliable"
    assert packed.unreliable or not packed.variances(), "variances() without unreliable = True are never used"
    if packed.unreliable:
        _check_variances(group, packed)


def _check_parameters(operator: Operator, group: Group, packed: Stored) -> None:
    """Check parameters: storing them again changes nothing, and other parameters take the same bytes."""
    numbers = packed.parameters()
    assert _equal(packed.store(numbers), packed), "store(parameters()) moves numbers that are stored already"
    values = packed.assemble(numbers)
    for value, stored in zip(values, packed.tensors(), strict=True):
        error = float((value.double() - stored.double()).norm())
        kind = torch.finfo(stored.dtype)
        # Below the normal range, a dtype's values are a fixed distance apart.
        apart = 2 * kind.eps * float(stored.double().norm()) + kind.tiny * kind.eps * stored.numel() ** 0.5
        allowed = apart + 1e-5 * float(value.norm()) + 1e-30
        assert error <= allowed, f"assemble(parameters()) differs from tensors() by {error:.3g}"
    generator = torch.Generator().manual_seed(1)
    moved = [n + 0.3 * float(n.abs().mean() + 1e-6) * torch.randn(n.shape, generator=generator) for n in numbers]
    for refit in (False, True):
        other = packed.store(moved, refit)
        _check_packed(operator, group, other)
        assert other.nbytes == packed.nbytes, f"store() changed {packed.nbytes} bytes to {other.nbytes}"


def _check_variances(group: Group, packed: Stored) -> None:
    assert packed.cells >= 0, f"cells is {packed.cells}"
    for member, variance in zip(group.members, packed.variances(), strict=True):
        assert tuple(variance.shape) == member.part_shape, f"{member.name}: variances of shape {tuple(variance.shape)}"
        assert bool(torch.isfinite(variance).all() and (variance >= 0).all()), f"{member.name}: variances {variance}"


def _moved(member: Member, part: Tensor, seed: int) -> Tensor:
    """Other values of the same size, as after training."""
    if not part.is_floating_point():
        return part
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(part.shape, generator=generator) * float(part.float().abs().mean() + 1e-3)
    return (part.float().abs() + noise if member.name.endswith("running_var") else part.float() + noise).to(part.dtype)


def _check_packed(operator: Operator, group: Group, packed: Stored) -> bytes:
    assert isinstance(packed, Stored), f"{type(packed).__name__} does not inherit from Stored"
    data = packed.to_bytes()
    assert isinstance(data, bytes), f"to_bytes() gave {type(data).__name__}"
    assert packed.nbytes == len(data), f"nbytes is {packed.nbytes}, to_bytes() gave {len(data)}"
    counts = (packed.nonzeros, packed.weight_bits)
    assert counts[0] >= 0 and counts[1] >= 1, f"nonzeros and weight_bits are {counts}"
    values = packed.tensors()
    assert len(values) == len(group.members), f"{len(values)} tensors for {len(group.members)} members"
    for member, value in zip(group.members, values, strict=True):
        got, want = (tuple(value.shape), value.dtype), (member.part_shape, member.dtype)
        assert got == want, f"{member.name} came back as {got}, not {want}"
        assert bool(torch.isfinite(value).all()), f"{member.name} came back with values that are not finite"
    for number, (member, value) in enumerate(zip(group.members, values, strict=True)):
        form = packed.portable(number)
        assert form is None or holds(form, value), f"portable() of {member.name} has other values than tensors()"
    decoded, used = operator.decode(group, memoryview(data + b"\x5a" * 9))
    assert used == len(data), f"decode() read {used} of {len(data)} bytes"
    assert _equal(decoded, packed), "decode() does not give the stored values bit for bit"
    assert decoded.to_bytes() == data, "what decode() gives is stored as other bytes"
    return data


def _equal(first: Stored, second: Stored) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.tensors(), second.tensors(), strict=True))
