"""What a layer is given in the original network and in a compressed one, on the same examples, as sums over both.

With columns x of a layer's inputs in the original, and x' in the compressed network, the weights W' that keep the
outputs W x best are those of least squares,

    W' = W (mean x x'^T) (mean x' x'^T)^-1,

asymmetric calibration (Li et al. 2025, "GPTAQ", arXiv 2504.02692). Both means, and those of x and x' themselves, are
gathered here: the two networks run on the same slice of examples, one after the other.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

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
    """Sums over the inputs of one weight, whose output rows are in S equal shares with inputs of their own.

    Attributes:
        own: (S, D, D) float64 weighted sums of x' x'^T, with x' the compressed network's inputs.
        between: (S, D, D) float64 weighted sums of x x'^T, with x the original's.
        own_mean: (S, D) float64 sums of x'.
        original_mean: (S, D) float64 sums of x.
        weight: sum of the weights.
        columns: how many inputs there were.
    """

    own: Tensor
    between: Tensor
    own_mean: Tensor
    original_mean: Tensor
    weight: float = 0.0
    columns: int = 0

    @classmethod
    def none(cls, shares: int, size: int) -> LayerInputs:
        """Sums over nothing yet."""
        own = torch.zeros(shares, size, size, dtype=torch.float64)
        mean = torch.zeros(shares, size, dtype=torch.float64)
        return cls(own, own.clone(), mean, mean.clone())

    def add(self, original: WeightCall, compressed: WeightCall, weights: Tensor) -> None:
        """Add one call, which both networks made with inputs of one shape."""
        pairs = zip(_columns(original, weights), _columns(compressed, weights), strict=True)
        for (x, _), (y, share) in pairs:
            weighted = y * share
            self.own += (weighted @ y.mT).double().cpu()
            self.between += (x @ weighted.mT).double().cpu()
            self.own_mean += weighted.sum(2).double().cpu()
            self.original_mean += (x * share).sum(2).double().cpu()
            self.weight += float(share.double().sum())
            self.columns += len(share)

    def means(self) -> LayerInputs:
        """The sums divided by the sum of the weights."""
        total = max(self.weight, 1e-300)
        own, between, after, before = (
            sums / total for sums in (self.own, self.between, self.own_mean, self.original_mean)
        )
        return LayerInputs((own + own.mT) / 2, between, after, before, 1.0, self.columns)


def _columns(call: WeightCall, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """((S, D, P) inputs of every share of the weight's rows, (P,) weights of the columns), some examples at a time."""
    if call.sliding is None:
        batches = _shares(call)
        share = row_weights(weights, batches[0].shape[0]).to(batches[0].device)
        flat = torch.stack([batch.float().reshape(-1, batch.shape[-1]).T for batch in batches])
        yield flat, share.float().repeat_interleave(flat.shape[2] // len(share))
        return
    patches_of, inputs = unfolder(call.sliding), call.inputs[0].float()
    share = row_weights(weights, inputs.shape[0]).to(inputs.device).float()
    step = max(1, PATCH_VALUES // max(1, patches_of(inputs[:1]).numel()))
    for start in range(0, inputs.shape[0], step):
        patches, part = patches_of(inputs[start : start + step]), share[start : start + step]
        yield patches, part.repeat_interleave(patches.shape[2] // len(part))


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
    found: dict[str, LayerInputs] = {}
    left: set[str] = set()
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
                    left.add(name)
                elif name not in left:
                    found.setdefault(name, LayerInputs.none(*_form(call))).add(earlier, call, weights)

            _CallWatch(names, keep, once).run(original, before, part.inputs)
            _CallWatch(names, pair, once).run(compressed, after, part.inputs)
    return {name: sums.means() for name, sums in found.items() if name not in left}


def _copied(call: WeightCall) -> WeightCall:
    copies = {id(batch): batch.clone() for batch in call.inputs}
    return WeightCall(
        call.function, call.multiplies, call.shares, tuple(copies[id(batch)] for batch in call.inputs),
        call.inputs_first, call.sliding, call.sizes,
    )  # fmt: skip


def _shares(call: WeightCall) -> tuple[Tensor, ...]:
    """The inputs of every share of the weight's rows; one where all have the same."""
    return call.inputs[:1] if len({id(batch) for batch in call.inputs}) == 1 else call.inputs


def _form(call: WeightCall) -> tuple[int, int]:
    """Number of shares, and inputs per output row."""
    if call.sliding is None:
        return len(_shares(call)), call.inputs[0].shape[-1]
    return call.sliding.groups, call.inputs[0].shape[1] // call.sliding.groups * math.prod(call.sliding.kernel)


def _alike(one: WeightCall, other: WeightCall) -> bool:
    """Whether two calls can be compared: inputs of one shape, for all shares and in both."""
    return len({batch.shape for call in (one, other) for batch in call.inputs}) == 1
