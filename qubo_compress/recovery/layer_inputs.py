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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from qubo_compress.calibration.examples import Examples
from qubo_compress.calibration.statistics.input_moments import PATCH_VALUES, alternate, parted, row_weights, unfolder
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
        half: the part of every second example, if known: in these sums once they are means, beside them before.
    """

    own: Tensor
    between: Tensor
    own_mean: Tensor
    original_mean: Tensor
    weight: float = 0.0
    columns: int = 0
    half: LayerInputs | None = None

    @classmethod
    def none(cls, shares: int, size: int) -> LayerInputs:
        """Sums over nothing yet."""
        own = torch.zeros(shares, size, size, dtype=torch.float64)
        mean = torch.zeros(shares, size, dtype=torch.float64)
        return cls(own, own.clone(), mean, mean.clone())

    @property
    def alive(self) -> bool:
        """Whether any inputs are not zero; single blocks may be dead, as channels of depthwise layers."""
        return bool((self.own.diagonal(dim1=1, dim2=2) > 0).any())

    def add(self, original: WeightCall, compressed: WeightCall, weights: Tensor, odd: Tensor) -> None:
        """Add one call, which both networks made with inputs of one shape.

        Args:
            original: call.
            compressed: call.
            weights: (n,) of the examples.
            odd: (n,) which of them are every second one.
        """
        if self.half is None:
            self.half = LayerInputs.none(len(self.own), self.own.shape[-1])
        for part, sums in enumerate((self.half, self)):
            pairs = zip(_columns(original, weights, odd, part), _columns(compressed, weights, odd, part), strict=True)
            sums._sum(pairs)

    def _sum(self, pairs: Iterable[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]) -> None:
        for (x, _), (y, share) in pairs:
            weighted = y * share
            self.own += (weighted @ y.mT).double().cpu()
            self.between += (x @ weighted.mT).double().cpu()
            self.own_mean += weighted.sum(2).double().cpu()
            self.original_mean += (x * share).sum(2).double().cpu()
            self.weight += float(share.double().sum())
            self.columns += len(share)

    def means(self) -> LayerInputs:
        """The sums over all examples, divided by the sum of the weights; those of the half by the same."""
        if self.half is None:
            return self._over(self.weight)
        both = LayerInputs(
            self.own + self.half.own, self.between + self.half.between, self.own_mean + self.half.own_mean,
            self.original_mean + self.half.original_mean, self.weight + self.half.weight,
            self.columns + self.half.columns,
        )  # fmt: skip
        return replace(both._over(both.weight), half=self.half._over(both.weight))

    def _over(self, weight: float) -> LayerInputs:
        total = max(weight, 1e-300)
        own, between, after, before = (
            sums / total for sums in (self.own, self.between, self.own_mean, self.original_mean)
        )
        return LayerInputs((own + own.mT) / 2, between, after, before, self.weight / total, self.columns)


def _columns(call: WeightCall, weights: Tensor, odd: Tensor, half: int) -> Iterator[tuple[Tensor, Tensor]]:
    """((S, D, P) inputs of every share of the weight's rows, (P,) weights of the columns), some examples at a time.

    Only the even examples, or only the odd ones.
    """
    if call.sliding is None:
        batches = _shares(call)
        rows = parted(odd.to(batches[0].device), batches[0].shape[0])[half]
        share = row_weights(weights, batches[0].shape[0]).to(batches[0].device)[rows]
        if not len(share):
            return
        batches = tuple(batch[rows] for batch in batches)
        flat = torch.stack([batch.float().reshape(-1, batch.shape[-1]).T for batch in batches])
        yield flat, share.float().repeat_interleave(flat.shape[2] // len(share))
        return
    patches_of, inputs = unfolder(call.sliding), call.inputs[0].float()
    rows = parted(odd.to(inputs.device), inputs.shape[0])[half]
    share = row_weights(weights, inputs.shape[0]).to(inputs.device).float()[rows]
    inputs = inputs[rows]
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
        for odd, part in alternate(examples):
            waiting: dict[str, list[WeightCall]] = {name: [] for name in names}

            def keep(name: str, call: WeightCall, waiting: dict[str, list[WeightCall]] = waiting) -> None:
                waiting[name].append(_copied(call))

            def pair(
                name: str,
                call: WeightCall,
                waiting: dict[str, list[WeightCall]] = waiting,
                weights: Tensor = part.weights,
                odd: Tensor = odd,
            ) -> None:
                earlier = waiting[name].pop(0) if waiting[name] else None
                if earlier is None or not _alike(earlier, call):
                    left.add(name)
                elif name not in left:
                    found.setdefault(name, LayerInputs.none(*_form(call))).add(earlier, call, weights, odd)

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
