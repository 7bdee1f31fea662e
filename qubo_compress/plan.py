"""A plan: one choice for every group, and the network that applying it gives."""

from __future__ import annotations

import builtins
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qubo_compress._internal.notebook import fragment
from qubo_compress.errors import WrongModel
from qubo_compress.menu.low_rank.factored import FactoredReport
from qubo_compress.menu.low_rank.factored import factored as factored_layers
from qubo_compress.menu.operator import stored_as
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.network.channels import Removal
from qubo_compress.network.discovery import discover_stored
from qubo_compress.network.groups import Group, Layout, Member
from qubo_compress.network.older_groups import newer_names, older_layout
from qubo_compress.network.private import CARRIED, independent_copy
from qubo_compress.network.rounding import InputRange
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.network.wrappers import unwrapped
from qubo_compress.plan_file import read_plan, write_plan

UNSAVED = ("fits",)
"""Fields that are not in the plan's file."""


@dataclass(frozen=True)
class ProvenBound:
    """What a solver proved of a plan.

    Attributes:
        solver: its name.
        energy: that the table predicted for the plan.
        bound: no plan within the limits is below it.
        limits: budget name -> limit that the bound holds for.

    Example:
        >>> proof = ProvenBound("exact", energy=0.5, bound=0.5, limits={"bytes": 900})
        >>> proof.holds(0.5, {"bytes": 800, "macs": 10}), proof.holds(0.5, {"bytes": 901})
        (True, False)
    """

    solver: str
    energy: float
    bound: float
    limits: Mapping[str, int]

    def holds(self, energy: float, limits: Mapping[str, int]) -> bool:
        """Whether the bound is also one for a problem: it predicts the same energy, and no limit is larger."""
        known = all(name in limits and limits[name] <= limit for name, limit in self.limits.items())
        return known and math.isclose(energy, self.energy, rel_tol=1e-9, abs_tol=1e-15)


@dataclass(frozen=True)
class Plan:
    """Which choice every group gets.

    Attributes:
        choices: group name -> choice name.
        bytes: size of the file that :func:`qubo_compress.save` writes, header included.
        original_bytes: numel x itemsize over unique parameters and persistent buffers.
        parameters: number of unique parameters.
        predicted_loss: loss change that the table predicts.
        menu_names: all choices of the menu, in the order the file refers to.
        rule: the grouping, as text.
        weights: signature of the weights the plan was made for.
        payloads: group name -> stored bytes, for choices that were made from calibration data.
        fits: group name -> scales and the like that encoding searched for when the table was made, so that applying the
            plan need not search again; optional and not saved.
        removal: the channels that leave the network, or None. Then ``choices`` are about channels, about the layers
            that are left, or both, and ``payloads`` hold the layers that make up for what left.
        proof: what its solver proved, or None if that is not known.
    """

    choices: Mapping[str, str]
    bytes: int
    original_bytes: int
    parameters: int
    predicted_loss: float
    menu_names: tuple[str, ...]
    rule: str
    weights: str = field(repr=False)
    payloads: Mapping[str, builtins.bytes] = field(default_factory=dict, repr=False)
    fits: Mapping[str, builtins.bytes] = field(default_factory=dict, repr=False, compare=False)
    removal: Removal | None = field(default=None, repr=False)
    proof: ProvenBound | None = field(default=None, repr=False, compare=False)

    @property
    def ratio(self) -> float:
        """Original bytes over stored bytes."""
        return self.original_bytes / self.bytes

    @property
    def bits_per_weight(self) -> float:
        """Stored bits, header included, per unique parameter."""
        return 8 * self.bytes / max(1, self.parameters)

    def _repr_html_(self) -> str:
        removed = "" if self.removal is None else "Channels are removed. "
        counts = Counter(self.choices.values()).most_common()
        return fragment(
            f"Plan: {self.bytes:,} bytes of {self.original_bytes:,}, {self.ratio:.2f} times smaller",
            [
                f"{removed}{self.bits_per_weight:.2f} bits per weight; predicted loss change "
                f"{self.predicted_loss:+.4g}.",
                f"Most frequent: {', '.join(f'{count} x {choice}' for choice, count in counts[:4])}.",
            ],
            ["group", "choice"],
            self.choices.items(),
            names=2,
            more="; plan.choices has all",
        )

    def save(self, path: str | Path) -> None:
        """Write the plan to one JSON file, atomically, with the bytes of choices that were made from data.

        Raises:
            StorageError: when the file cannot be written.
        """
        held = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in UNSAVED}
        write_plan(path, held | {"proof": None if self.proof is None else asdict(self.proof)})

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan written by :meth:`save`, or by version 0.4 or 0.3 to one file or two.

        Raises:
            CorruptArtifact: when the file is not a complete plan, or was altered.
            StorageError: when it cannot be read.
            FileNotFoundError: when there is no file.
        """
        found = read_plan(path)
        proof = found.pop("proof", None)
        return cls(**found, proof=None if proof is None else ProvenBound(**proof))

    def apply(self, model: nn.Module, factored: bool = False) -> nn.Module:
        """A new module in eval mode with the plan applied; the original is untouched.

        Args:
            model: the network that was measured.
            factored: low-rank layers compute in their factors, with the multiplications that the plan counts: for
                running, not for saving or recovery. See :mod:`qubo_compress.menu.low_rank.factored`.

        Raises:
            WrongModel: when the weights are not those that the plan was made for.
        """
        model = unwrapped(model)
        tensors = NetworkTensors(model)
        if tensors.signature() != self.weights:
            raise WrongModel(
                "the plan was made for other weights; apply it to the network that was measured, or measure this one"
            )
        if self.removal is not None:
            small = self._smaller(self.removal, model)
            return run_in_factors(small) if factored else small
        layout = discover_stored(model, self.rule)
        different = sorted({group.name for group in layout.groups} ^ set(self.choices))
        if different:
            self._refuse_older(model, layout)
            raise WrongModel(
                f"the plan's groups are not this network's: {', '.join(different[:3])}; "
                "make the plan with table.plan for this network"
            )
        stored = {}
        for group in layout.groups:
            payload, fit = self.payloads.get(group.name), self.fits.get(group.name)
            stored[group.name] = stored_as(self.choices[group.name], group, tensors.parts(group), payload, fit)
        small = filled(model, Compression(self, layout, stored))
        return run_in_factors(small) if factored else small

    def _smaller(self, removal: Removal, model: nn.Module) -> nn.Module:
        """The network without channels; the plan that it carries is about the layers that are left."""
        small = removal.applied(model)
        tensors, layout = NetworkTensors(small), discover_stored(small, "layer")
        strange = sorted(set(self.payloads) - {group.name for group in layout.groups})
        if strange:
            raise WrongModel(f"the plan holds bytes for {strange[0]!r}, which is no layer of this network")
        names = {group.name: self.choices.get(group.name, "keep") for group in layout.groups}
        stored = {
            group.name: stored_as(
                names[group.name], group, tensors.parts(group), self.payloads.get(group.name), self.fits.get(group.name)
            )
            for group in layout.groups
        }
        decided = set(self.choices) - set(names)
        menu = tuple(name for name in self.menu_names if not decided or name == "keep" or name in names.values())
        kept = replace(
            self, choices=names, menu_names=menu, rule="layer", payloads={}, removal=None,
            weights=f"smaller than {self.weights}", original_bytes=self.original_bytes,
        )  # fmt: skip
        return filled(small, Compression(kept, layout, stored))

    def _refuse_older(self, model: nn.Module, layout: Layout) -> None:
        """Raise :class:`WrongModel` where the groups are those that version 0.3 made of this network."""
        older = older_layout(model, layout)
        if older is not None and {group.name for group in older.groups} == set(self.choices):
            raise WrongModel(
                "the plan was made by version 0.3 of qubo_compress or an older one, which kept "
                f"{newer_names(layout, older)} of this {type(model).__name__} as they were; this version compresses "
                "them: compress the network again, or apply the plan with the version that made it"
            )


@dataclass(frozen=True, eq=False)
class Compression:
    """The plan, the groups and their stored form, which a compressed module carries.

    Attributes:
        plan: the plan applied.
        layout: the groups of the network.
        stored: group name -> packed tensors: exactly the bytes that are saved.
    """

    plan: Plan
    layout: Layout
    stored: Mapping[str, Stored]

    def parts(self) -> Iterator[tuple[Member, Tensor]]:
        """Every member of every group, and its stored values."""
        for group in self.layout.groups:
            yield from zip(group.members, self.stored[group.name].tensors(), strict=True)

    def ranges(self) -> dict[str, InputRange | None]:
        """Name of every weight -> range to which its layers' inputs are rounded, or None."""
        found: dict[str, InputRange | None] = {}
        for group in self.layout.groups:
            if group.kind == "weight":
                ranges = self.stored[group.name].input_ranges or (None,) * len(group.members)
                found.update(zip((member.name for member in group.members), ranges, strict=True))
        return found

    def with_stored(self, stored: Mapping[str, Stored]) -> Compression:
        """The same plan with other codes for some groups."""
        return Compression(self.plan, self.layout, {**self.stored, **stored})

    def group(self, name: str) -> Group:
        """The group of that name."""
        return next(group for group in self.layout.groups if group.name == name)


def filled(model: nn.Module, compression: Compression) -> nn.Module:
    """A copy of ``model`` in eval mode that holds the stored values and carries ``compression``."""
    small = independent_copy(model)
    tensors = NetworkTensors(small)
    tensors.fill(tensors.assembled(compression.parts()))
    tensors.round_inputs(compression.ranges())
    setattr(small, CARRIED, compression)
    return small.eval()


def run_in_factors(small: nn.Module) -> nn.Module:
    """Let the low-rank layers of a compressed module compute in their factors; changes the module."""
    compression = compression_of(small)
    quick, report = factored_layers(small, compression.layout, compression.stored)
    setattr(quick, CARRIED, report)
    return quick


def compression_of(model: nn.Module) -> Compression:
    """The :class:`Compression` that a module carries.

    Raises:
        WrongModel: when it carries none, or its values or the rounding of its inputs were changed afterwards.
    """
    found: Any = vars(model).get(CARRIED)
    if isinstance(found, FactoredReport):
        raise WrongModel(
            "this network computes in factors, which is for running it only; "
            "save or recover the network that plan.apply(model) makes without factored=True"
        )
    if not isinstance(found, Compression):
        raise WrongModel("this module was not made by plan.apply, recover or load; apply a plan to it first")
    tensors = NetworkTensors(model)
    members = [member.name for group in found.layout.groups for member in group.members]
    changed = [name for name in members if name not in tensors]
    if not changed:
        stored = tensors.assembled(found.parts()).items()
        changed = [name for name, value in stored if not torch.equal(tensors[name].detach().cpu(), value.cpu())]
    if changed:
        raise WrongModel(
            f"{changed[0]} was changed after the plan was applied, so it is no longer on the plan's grid; "
            "use qubo_compress.recover to retrain within the plan"
        )
    ranges = found.ranges()
    other = [name for name, wanted in ranges.items() if not tensors.rounds_as(name, wanted)]
    if other:
        raise WrongModel(
            f"the inputs of {other[0]} are not rounded as in the plan: the hook that rounds them was removed "
            "or changed; apply the plan again"
        )
    return found
