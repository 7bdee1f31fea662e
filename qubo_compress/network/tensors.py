"""A network as named tensors: the tensor under each name, every place that holds it, and temporary substitutes."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qubo_compress.network.groups import Group, Member
from qubo_compress.network.rounding import InputRange, place_range, placed_ranges, range_of
from qubo_compress.network.tensor_bytes import raw_bytes

Place = tuple[nn.Module, str]
"""A module, and the attribute under which it holds a tensor."""


class NetworkTensors(Mapping[str, Tensor]):
    """The unique parameters and persistent buffers of a network, by their first names in the state dict.

    The network is walked once, at the first access, so one object serves all groups of a network; with filters there
    are thousands. Tensors are the network's present ones: if one is swapped out, its substitute.

    Args:
        model: the network. Only :meth:`fill` and :meth:`swapped` change what it holds.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        >>> tensors = NetworkTensors(net)
        >>> tensors["0.weight"] is net[0].weight, len(tensors), tensors.device
        (True, 7, device(type='cpu'))
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @functools.cached_property
    def _walk(self) -> tuple[dict[str, list[Place]], dict[str, str]]:
        """First name -> every place of a tensor, and every name -> first name."""
        places: dict[str, list[Place]] = {}
        first: dict[int, str] = {}
        aliases: dict[str, str] = {}
        for prefix, module in self.model.named_modules(remove_duplicate=False):
            persistent = {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}
            for attribute, tensor in (*module._parameters.items(), *persistent.items()):
                if tensor is None:
                    continue
                name = f"{prefix}.{attribute}" if prefix else attribute
                known = aliases[name] = first.setdefault(id(tensor), name)
                places.setdefault(known, []).append((module, attribute))
        return places, aliases

    def __getitem__(self, name: str) -> Tensor:
        """The network's present tensor, not a copy."""
        module, attribute = self._walk[0][name][0]
        found = _home(module, attribute)[attribute]
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        """First names, in the order of the state dict."""
        return iter(self._walk[0])

    def __len__(self) -> int:
        """Number of unique tensors."""
        return len(self._walk[0])

    @property
    def aliases(self) -> dict[str, str]:
        """Every name in the state dict -> the first name of the tensor that it shares."""
        return self._walk[1]

    @property
    def device(self) -> torch.device:
        """The device of the network's first tensor; the CPU if there are no tensors."""
        held = itertools.chain(self.model.parameters(), self.model.buffers())
        return next((tensor.device for tensor in held), torch.device("cpu"))

    def owners(self, name: str) -> list[Place]:
        """Every place that holds a tensor, beginning with the first."""
        return self._walk[0][name]

    def is_parameter(self, name: str) -> bool:
        """Whether a tensor is a parameter; else it is a buffer."""
        module, attribute = self.owners(name)[0]
        return attribute in module._parameters

    def parameters(self) -> dict[str, Tensor]:
        """First name -> parameter, without the buffers."""
        return {name: tensor for name, tensor in self.items() if self.is_parameter(name)}

    def part(self, member: Member) -> Tensor:
        """The part of a tensor that a member owns: outputs first, detached and on the CPU."""
        return member.part(self[member.name].detach()).cpu()

    def parts(self, group: Group) -> list[Tensor]:
        """The part of every member of a group; see :meth:`part`."""
        return [self.part(member) for member in group.members]

    def assembled(self, parts: Iterable[tuple[Member, Tensor]]) -> dict[str, Tensor]:
        """First name -> whole tensor in the network's order of axes, assembled from members' parts on their device.

        Rows that no member owns come from the network, on its device. Gradients flow to the parts.

        Example:
            >>> net = nn.Linear(2, 2, bias=False)
            >>> _ = net.weight.data.zero_()
            >>> second = Member("weight", (2, 2), torch.float32, rows=(1, 2))
            >>> NetworkTensors(net).assembled([(second, torch.ones(1, 2))])["weight"].tolist()
            [[0.0, 0.0], [1.0, 1.0]]
        """
        found: dict[str, list[tuple[Member, Tensor]]] = {}
        for member, value in parts:
            found.setdefault(member.name, []).append((member, value))
        return {name: self._whole(pieces) for name, pieces in found.items()}

    def _whole(self, pieces: list[tuple[Member, Tensor]]) -> Tensor:
        """A tensor from its parts; if they do not cover all rows, in a copy of the network's tensor."""
        first, value = pieces[0]
        if first.rows is None:
            return first.in_network_order(value)
        if sum(member.part_shape[0] for member, _ in pieces) == first.shape[0]:
            ordered = sorted(pieces, key=lambda piece: piece[0].rows or (0, 0))
            return first.in_network_order(torch.cat([part for _, part in ordered]))
        whole = self[first.name].detach().clone()
        for member, part in pieces:
            member.write(whole, part)
        return whole

    def fill(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into the network's own tensors, which keep their dtype and device."""
        with torch.no_grad():
            for name, value in values.items():
                self[name].copy_(value)

    def range_of(self, name: str) -> InputRange | None:
        """The range to which the inputs of the layer with that weight are rounded, or None."""
        return range_of(self.owners(name)[0][0])

    def rounds_as(self, name: str, wanted: InputRange | None) -> bool:
        """Whether all layers with that weight round their inputs to a range; None: whether none does."""
        return all(range_of(module) == wanted for module, _ in self.owners(name))

    def round_inputs(self, ranges: Mapping[str, InputRange | None]) -> None:
        """Round the inputs of the layers with these weights from now on; None: no longer."""
        for name, wanted in ranges.items():
            for module, _ in self.owners(name):
                place_range(module, wanted)

    @contextlib.contextmanager
    def swapped(
        self, values: Mapping[str, Tensor], ranges: Mapping[str, InputRange | None] | None = None
    ) -> Iterator[None]:
        """Substitute tensors at every place that shares the named ones, and always restore them afterwards.

        Args:
            values: first name -> substitute, which is moved to the network's device. The network's own tensors are
                never written to.
            ranges: weight's first name -> range to which the inputs of its layers are rounded meanwhile.
        """
        rounding = {module: given for name, given in (ranges or {}).items() for module, _ in self.owners(name)}
        with placed_ranges(rounding), self._substituted(values):
            yield

    @contextlib.contextmanager
    def _substituted(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        moved = {name: value.to(self[name].device) for name, value in values.items()}
        places = [(*place, value) for name, value in moved.items() for place in self.owners(name)]
        saved: list[tuple[dict[str, Tensor | None], str, Tensor | None]] = []
        recurrent = {id(module): module for module, _, _ in places if isinstance(module, nn.RNNBase)}
        flat = [(module, _flat_weights(module)) for module in recurrent.values()]
        try:
            for module, attribute, tensor in places:
                # Bypassing __setattr__ leaves the registered Parameter, its grad and its flags untouched.
                home = _home(module, attribute)
                saved.append((home, attribute, home[attribute]))
                home[attribute] = tensor
            for module, _ in flat:
                # Their forward reads this list. It is a new list, so that the original stays unchanged.
                module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]
            yield
        finally:
            for home, attribute, former in reversed(saved):
                home[attribute] = former
            for module, kept in flat:
                module.__dict__.update(kept)

    def signature(self) -> str:
        """Digest of names, shapes, dtypes and values."""
        digest = hashlib.sha256()
        for name, tensor in self.items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode(errors="surrogatepass"))
            if tensor.numel():
                digest.update(raw_bytes(tensor))
        return digest.hexdigest()[:32]


def _home(module: nn.Module, attribute: str) -> dict[str, Tensor | None]:
    """The dictionary in which a module registers a tensor."""
    return module._parameters if attribute in module._parameters else module._buffers  # type: ignore[return-value]


def _flat_weights(module: nn.RNNBase) -> dict[str, Any]:
    """A recurrent module's caches of its weights: their list and, in newer versions of torch, weak references."""
    return {name: module.__dict__[name] for name in ("_flat_weights", "_flat_weight_refs") if name in module.__dict__}
