"""What a layer is given in the original network and in a compressed one, on the same examples, as sums over both.

With columns x of a layer's inputs in the original, and x' in the compressed network, the weights W' that keep the
outputs W x best are those of least squares,

    W' = W (mean x x'^T) (mean x' x'^T)^-1,

asymmetric calibration (Li et al. 2025, "GPTAQ", arXiv 2504.02692). Both means, and those of x and x' themselves, are
gathered here: the two networks run on the same slice of examples, one after the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qubo_compress.calibration.examples import Examples
from qubo_compress.calibration.statistics.input_moments import PATCH_VALUES, row_weights, unfolder
from qubo_compress.errors import QuboCompressError
from qubo_compress.network.calls import WeightCall, WeightCalls
from qubo_compress.network.every_layer import every_layer_runs
from qubo_compress.network.replay import run_model
from qubo_compress.network.tensors import NetworkTensors


@dataclass(eq=False)
class LayerInputs:
    """Sums over the inputs of one weight; lists have one entry per share of its output rows, such as a group.

    Attributes:
        own: (D, D) float64 weighted means of x' x'^T, with x' the compressed network's inputs.
        between: (D, D) float64 weighted means of x x'^T, with x the original's.
        own_mean: (D,) float64 means of x'.
        original_mean: (D,) float64 means of x.
        columns: how many inputs there were.
    """

    own: list[Tensor] = field(default_factory=list)
    between: list[Tensor] = field(default_factory=list)
    own_mean: list[Tensor] = field(default_factory=list)
    original_mean: list[Tensor] = field(default_factory=list)
    weight: float = 0.0
    columns: int = 0

    def add(self, original: WeightCall, compressed: WeightCall, weights: Tensor) -> None:
        """Add one call, which both networks made with inputs of one shape."""
        pairs = zip(_columns(original, weights), _columns(compressed, weights), strict=True)
        for (before, _), (after, share) in pairs:
            for number, (x, y) in enumerate(zip(before, after, strict=True)):
                if number == len(self.own):
                    for sums, size in ((self.own, 2), (self.between, 2), (self.own_mean, 1), (self.original_mean, 1)):
                        sums.append(torch.zeros((len(y),) * size, dtype=torch.float64))
                weighted = y * share
                self.own[number] += (weighted @ y.T).double().cpu()
                self.between[number] += (x @ weighted.T).double().cpu()
                self.own_mean[number] += weighted.sum(1).double().cpu()
                self.original_mean[number] += (x * share).sum(1).double().cpu()
            self.weight += float(share.double().sum())
            self.columns += int((share > 0).sum())

    def means(self) -> LayerInputs:
        """The sums divided by the weights of all columns."""
        total = max(self.weight, 1e-300)
        own = [(sums + sums.T) / (2 * total) for sums in self.own]
        between, after, before = (
            [sums / total for sums in every] for every in (self.between, self.own_mean, self.original_mean)
        )
        return LayerInputs(own, between, after, before, 1.0, self.columns)


def _columns(call: WeightCall, weights: Tensor) -> Iterator[tuple[list[Tensor], Tensor]]:
    """((D, P) inputs of every share of the weight's rows, (P,) weights of the columns), some examples at a time."""
    if call.sliding is None:
        batches = list({id(batch): batch for batch in call.inputs}.values())
        share = row_weights(weights, batches[0].shape[0]).to(batches[0].device)
        flat = [batch.float().reshape(-1, batch.shape[-1]).T for batch in batches]
        yield flat, share.float().repeat_interleave(flat[0].shape[1] // len(share))
        return
    patches_of, inputs = unfolder(call.sliding), call.inputs[0].float()
    share = row_weights(weights, inputs.shape[0]).to(inputs.device).float()
    step = max(1, PATCH_VALUES // max(1, patches_of(inputs[:1]).numel()))
    for start in range(0, inputs.shape[0], step):
        patches = list(patches_of(inputs[start : start + step]))
        part = share[start : start + step]
        yield patches, part.repeat_interleave(patches[0].shape[1] // len(part))


class _LastCall(QuboCompressError):
    """Raised after the last call of interest: the rest of the network need not run."""


@dataclass(eq=False)
class _CallWatch:
    """The calls of some weights in one run, copied, because networks may change their inputs in place afterwards.

    Attributes:
        names: of the weights.
        report: called with a name and a call.
        once: whether every weight is called exactly once, so that the run may end early.
    """

    names: Collection[str]
    report: Callable[[str, WeightCall], None]
    once: bool
    seen: int = 0

    def __call__(self, name: str, call: WeightCall) -> None:
        self.report(name, call)
        self.seen += 1
        if self.once and self.seen == len(self.names):
            raise _LastCall

    def run(self, model: nn.Module, tensors: Mapping[str, Tensor], inputs: object) -> None:
        """Run a network and report the calls."""
        watched = {name: tensors[name] for name in self.names}
        with WeightCalls(watched, self, frozenset(watched)), contextlib.suppress(_LastCall):
            run_model(model, inputs)  # type: ignore[arg-type]


def calls_in_order(model: nn.Module, names: Collection[str], examples: Examples) -> dict[str, list[WeightCall]]:
    """The calls of some weights on the first examples, without inputs, in the order of the first call of each."""
    found: dict[str, list[WeightCall]] = {}

    def note(name: str, call: WeightCall) -> None:
        found.setdefault(name, []).append(call)

    with every_layer_runs(), torch.no_grad():
        _CallWatch(names, note, once=False).run(model, NetworkTensors(model), examples.first(2).inputs)
    return found


def gathered(
    original: nn.Module, compressed: nn.Module, names: Sequence[str], examples: Examples, once: bool
) -> dict[str, LayerInputs]:
    """The inputs of some weights in both networks; weights whose calls differ between them are left out.

    Args:
        original: network.
        compressed: the same network with other weights.
        names: of the weights.
        examples: on the device of both.
        once: whether each weight is called exactly once in a run.
    """
    before, after = NetworkTensors(original), NetworkTensors(compressed)
    found = {name: LayerInputs() for name in names}
    with every_layer_runs(), torch.no_grad():
        for part in examples.slices:
            waiting: dict[str, list[WeightCall]] = {name: [] for name in names}

            def keep(name: str, call: WeightCall, waiting: dict[str, list[WeightCall]] = waiting) -> None:
                waiting[name].append(_copied(call))

            def pair(
                name: str,
                call: WeightCall,
                waiting: dict[str, list[WeightCall]] = waiting,
                weights: Tensor = part.weights,
            ) -> None:
                earlier = waiting[name].pop(0) if waiting[name] else None
                if earlier is None or not _alike(earlier, call):
                    found.pop(name, None)
                elif name in found:
                    found[name].add(earlier, call, weights)

            _CallWatch(names, keep, once).run(original, before, part.inputs)
            _CallWatch(names, pair, once).run(compressed, after, part.inputs)
    return {name: sums.means() for name, sums in found.items() if sums.own}


def _copied(call: WeightCall) -> WeightCall:
    copies = {id(batch): batch.clone() for batch in call.inputs}
    return WeightCall(
        call.function, call.multiplies, call.shares, tuple(copies[id(batch)] for batch in call.inputs),
        call.inputs_first, call.sliding, call.sizes,
    )  # fmt: skip


def _alike(one: WeightCall, other: WeightCall) -> bool:
    shapes = ([batch.shape for batch in call.inputs] for call in (one, other))
    first, second = shapes
    return bool(first) and first == second
