"""One run of a network with labels: every operation is seen at torch's dispatcher, whatever code called it.

Nothing is traced symbolically, so any Python code may surround the operations. An operation without a rule keeps all
channels that reach it; the reason names the operation and the module that was running.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from qubo_compress.network.channels.labels import NONE, ZERO, Marks, Origin, Ties
from qubo_compress.network.channels.uses import Passage, Reading, Uses
from qubo_compress.network.tensors import NetworkTensors

Known = Marks | Origin

Rule = Callable[["ChannelWalk", "Operation"], None]


class Operation:
    """One operation of the run: its name, arguments and result.

    Args:
        function: of torch's dispatcher.
        args: positional arguments.
        named: keyword arguments.
        result: what it returned.
    """

    def __init__(self, function: Any, args: Sequence[Any], named: Mapping[str, Any], result: Any) -> None:
        schema = function._schema
        self.function, self.args, self.named, self.result = function, args, named, result
        self.name: str = schema.name.rpartition("::")[2].rstrip("_")
        self.pointwise = torch.Tag.pointwise in function.tags
        self._names = [argument.name for argument in schema.arguments]
        self._defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}

    def get(self, name: str) -> Any:
        """An argument by its name in the schema."""
        position = self._names.index(name)
        if position < len(self.args):
            return self.args[position]
        return self.named[name] if name in self.named else self._defaults.get(name)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments, also those in lists."""
        return tensors_in([*self.args, *self.named.values()])

    @property
    def results(self) -> list[Tensor]:
        """All tensors that it returned."""
        return tensors_in([self.result])


def tensors_in(values: Sequence[Any]) -> list[Tensor]:
    """All tensors in some values and in lists among them."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_in(value)
    return found


class ChannelWalk(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, follows the labels of channels through every operation.

    Args:
        tensors: of the network, on the CPU.
        rules: name of an operation -> what it does with labels.
    """

    def __init__(self, tensors: NetworkTensors, rules: Mapping[str, Rule]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tensors, self.rules = tensors, rules
        self.ties, self.uses = Ties(), Uses()
        self.running: list[str] = []
        # Tensors are held, so that no other one gets the identity of one that was freed.
        self._known: dict[int, tuple[Tensor, Known]] = {}
        self._readers: dict[int, int] = {}
        self._makers: dict[int, int] = {}
        self._means: dict[int, str] = {}
        for name, tensor in tensors.items():
            positions = torch.arange(tensor.numel()).reshape(tensor.shape)
            self._known[id(tensor)] = (tensor, Origin(name, positions))

    def begin(self, inputs: Sequence[Tensor]) -> None:
        """Mark the inputs of the network: no channels, and not fixed."""
        for tensor in inputs:
            self.mark(tensor, torch.full(tensor.shape, NONE), torch.zeros(tensor.shape, dtype=torch.bool))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and mark its result."""
        named = dict(kwargs or {})
        result = func(*args, **named)
        operation = Operation(func, args, named, result)
        known = [tensor for tensor in operation.tensors if id(tensor) in self._known]
        if known and operation.results:
            for tensor in known:
                self._readers[id(tensor)] = self._readers.get(id(tensor), 0) + 1
            rule = self.rules.get(operation.name) or (self.rules["pointwise"] if operation.pointwise else None)
            (rule or unknown)(self, operation)
        return result

    @property
    def module(self) -> str:
        """The innermost module that is running; the network itself has an empty name."""
        return self.running[-1] if self.running else ""

    @property
    def place(self) -> str:
        """The same, for reasons."""
        return self.module or "the network"

    def known(self, tensor: Any) -> Known | None:
        """What is known about a tensor; None for constants and anything but a tensor."""
        found = self._known.get(id(tensor)) if isinstance(tensor, Tensor) else None
        return None if found is None else found[1]

    def mark(self, tensor: Tensor, labels: Tensor, fixed: Tensor) -> None:
        """Set what is known about an activation."""
        self._known[id(tensor)] = (tensor, Marks(labels.expand(tensor.shape), fixed.expand(tensor.shape)))

    def origin(self, tensor: Tensor, origin: Origin) -> None:
        """Set which part of a parameter a tensor is."""
        self._known[id(tensor)] = (tensor, origin)

    def marks(self, tensor: Tensor) -> Marks:
        """Labels and fixed elements of any tensor; a parameter that is used like an activation gets labels."""
        found = self.known(tensor)
        if isinstance(found, Marks):
            return found
        fixed = torch.ones(tensor.shape, dtype=torch.bool)
        if found is None:
            return Marks(torch.where(tensor == 0, ZERO, NONE), fixed)
        if found.name not in self.uses.elements:
            whole = self.tensors[found.name]
            self.uses.elements[found.name] = self.ties.fresh(whole.numel()).reshape(whole.shape)
        return Marks(self.uses.elements[found.name].reshape(-1)[found.index], fixed)

    def made_by(self, made: Tensor, reading: Reading) -> None:
        """Note what a layer reads, and its result."""
        self._makers[id(made)] = len(self.uses.readings)
        self.uses.readings.append(reading)

    def normalised_next(self, given: Tensor, mean: str) -> None:
        """Note that a tensor is given to a normalisation with this running mean."""
        self._means[id(given)] = mean

    def seen(self) -> Uses:
        """Everything that was seen, with the layers whose results only a normalisation reads."""
        for tensor, number in self._makers.items():
            if tensor in self._means and self._readers.get(tensor) == 1:
                reading = self.uses.readings[number]
                self.uses.readings[number] = replace(reading, statistics=self._means[tensor])
        return self.uses

    def sharing_memory(self, given: Sequence[Tensor]) -> list[Tensor]:
        """The known activations whose memory some tensors share."""
        places = {tensor.untyped_storage().data_ptr() for tensor in given}
        held = [tensor for tensor, found in self._known.values() if isinstance(found, Marks)]
        return [tensor for tensor in held if tensor.untyped_storage().data_ptr() in places]

    def passed(self, module: str, given: Any, made: Any) -> None:
        """Note a call of a module without tensors that has one input and one output."""
        before, after = self.known(given), self.known(made)
        if not (isinstance(before, Marks) and isinstance(after, Marks)):
            return
        if before.labels.shape != after.labels.shape or not torch.equal(before.labels, after.labels):
            self.uses.passages.append(Passage(module, given, before.labels, after.labels))


def unknown(walk: ChannelWalk, operation: Operation) -> None:
    """Keep all channels that reach an operation without a rule."""
    reason = f"{operation.name} in {walk.place} has no rule"
    for tensor in operation.tensors:
        found = walk.known(tensor)
        if isinstance(found, Origin):
            walk.uses.opaque[found.name] = reason
        elif found is not None:
            walk.ties.pin(found.labels, reason)
    changed = operation.results
    if operation.function._schema.is_mutable:
        changed = changed + walk.sharing_memory(changed)
    for tensor in changed:
        walk.ties.pin(walk.marks(tensor).labels, reason)
        walk.mark(tensor, torch.full(tensor.shape, NONE), torch.zeros(tensor.shape, dtype=torch.bool))


def named_modules(model: nn.Module) -> dict[int, str]:
    """Identity of every module -> its first name."""
    found: dict[int, str] = {}
    for name, module in model.named_modules():
        found.setdefault(id(module), name)
    return found
