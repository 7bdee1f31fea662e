"""Re-runs only what follows a changed module, without tracing the network.

One run of the network numbers every module call. To see the effect of changing one group, calls that ended before the
group's first call need not run again: they return their cached output. The code between modules always runs. After the
changed module, all choices of a group share one batch: the network sees the examples once per choice, and only the
changed module distinguishes them.

Whether this is valid for a network is checked, not assumed: see :meth:`GroupSweep.check`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from qubo_compress.errors import ForwardFailed, QuboCompressError
from qubo_compress.network.calls import WeightCall, WeightCalls
from qubo_compress.network.inputs import Inputs, call, map_tensors, tensors_of
from qubo_compress.network.rounding import InputRange, placed_ranges, ranges_of, rounded
from qubo_compress.network.scores import OutputReading
from qubo_compress.network.tensors import NetworkTensors

logger = logging.getLogger(__name__)

EVERY_ROW = 1 << 30
"""Choices share a pass whatever the number of examples."""


class _ReachedGroup(BaseException):
    """Ends a run at the changed group; not an Exception, so that no model catches it."""


class _Diverged(Exception):
    """The network called its modules in a different order than before."""


@dataclass
class CallTrace:
    """Module calls of one forward pass, in the order they began.

    Attributes:
        modules: the module of each call.
        ends: number of the first call that began after this one ended.
        changed_inputs: the call changed its inputs in place, so it must run again.
        changed_later: its output was changed in place later, so each reader must get a copy.
        positions: output values per example of each call, for counting multiplications.
        shapes: of each call's first input tensor and first output tensor, for counting multiplications.
        weights: name -> (innermost module, call) of every function call that gets this parameter.
        examples: number of examples run.
        fixed: lengths of first axes, among all tensors exchanged by modules, that do not depend on the number of
            examples; None if only one number of examples was run.
    """

    modules: list[nn.Module] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    changed_inputs: list[bool] = field(default_factory=list)
    changed_later: list[bool] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    weights: dict[str, list[tuple[nn.Module, WeightCall]]] = field(default_factory=dict)
    examples: int = 1
    fixed: frozenset[int] | None = None

    def first_call(self, module: nn.Module) -> int | None:
        """Number of a module's first call, or None if it was never called."""
        return next((i for i, seen in enumerate(self.modules) if seen is module), None)

    def before(self, start: int) -> list[int]:
        """The outermost calls that ended before call ``start`` began, which may be skipped."""
        chosen, i = [], 1
        while i < start:
            if self.ends[i] <= start and not any(self.changed_inputs[i : self.ends[i]]):
                chosen.append(i)
                i = self.ends[i]
            else:
                i += 1
        return chosen


@contextlib.contextmanager
def intercepted(
    model: nn.Module, handle: Callable[[nn.Module, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
) -> Iterator[None]:
    """Route every module's forward through ``handle``; instance attributes are restored afterwards."""
    absent = object()
    saved = [(module, module.__dict__.get("forward", absent)) for module in model.modules()]
    try:
        for module, _ in saved:
            original = module.forward

            def forward(*args: Any, _module: nn.Module = module, _original: Any = original, **kwargs: Any) -> Any:
                return handle(_module, _original, args, kwargs)

            module.__dict__["forward"] = forward
        yield
    finally:
        for module, former in saved:
            if former is absent:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = former


def trace_calls(model: nn.Module, inputs: Inputs, fewer: bool = True) -> CallTrace:
    """Run the model and number its module calls; a second run with fewer examples shows which axes count examples.

    Args:
        model: in eval mode.
        inputs: of a few examples.
        fewer: whether the network may be run on fewer examples.
    """
    examples = tensors_of(inputs)[0].shape[0]
    trace, sizes = _traced(model, inputs)
    if examples > 1 and fewer:
        _, others = _traced(model, map_tensors(inputs, lambda t: t[:-1]))
        same = {size for size, other in zip(sizes, others, strict=False) if size == other}
        trace.fixed = frozenset(same) if len(sizes) == len(others) else None
    return trace


def _traced(model: nn.Module, inputs: Inputs) -> tuple[CallTrace, list[int]]:
    """The numbered calls of one run, and the first axes of all their input and output tensors."""
    trace = CallTrace()
    sizes: list[int] = []
    outputs: list[list[tuple[Tensor, int]]] = []
    examples = trace.examples = tensors_of(inputs)[0].shape[0]
    running: list[nn.Module] = [model]

    def noted(name: str, call: WeightCall) -> None:
        trace.weights.setdefault(name, []).append((running[-1], replace(call, inputs=())))

    def handle(module: nn.Module, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        running.append(module)
        try:
            return numbered(module, original, args, kwargs)
        finally:
            running.pop()

    def numbered(module: nn.Module, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        number = len(trace.modules)
        trace.modules.append(module)
        trace.ends.append(0)
        trace.changed_inputs.append(False)
        trace.changed_later.append(False)
        trace.positions.append(0)
        trace.shapes.append(((), ()))
        outputs.append([])
        given = [(t, t._version) for t in _all_tensors((args, kwargs))]
        sizes.extend(t.shape[0] for t, _ in given if t.ndim)
        result = original(*args, **kwargs)
        trace.ends[number] = len(trace.modules)
        trace.changed_inputs[number] = any(t._version != version for t, version in given)
        outputs[number] = [(t, t._version) for t in _all_tensors(result)]
        sizes.extend(t.shape[0] for t, _ in outputs[number] if t.ndim)
        trace.positions[number] = sum(t.numel() for t, _ in outputs[number]) // examples
        first = [tuple(pairs[0][0].shape) if pairs else () for pairs in (given, outputs[number])]
        trace.shapes[number] = (first[0], first[1])
        return result

    with intercepted(model, handle), WeightCalls(NetworkTensors(model).parameters(), noted), torch.no_grad():
        run_model(model, inputs)
    trace.changed_later = [any(t._version != version for t, version in made) for made in outputs]
    return trace, sizes


def run_model(model: nn.Module, inputs: Inputs) -> Any:
    """Call the model; its own exceptions become :class:`ForwardFailed`."""
    try:
        return call(model, inputs)
    except (QuboCompressError, _Diverged):
        raise
    except Exception as cause:
        raise ForwardFailed(
            f"the model's forward raised {type(cause).__name__}: {cause}; the model is as it was. "
            "Check that it accepts the batches as model(x), model(*x) or model(**x)"
        ) from cause


def _all_tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for item in value.values() for t in _all_tensors(item)]
    if isinstance(value, (tuple, list)):
        return [t for item in value for t in _all_tensors(item)]
    return []


def _distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Squared distance between two variants of a group's tensors."""
    return sum(float((a.float() - b.float()).square().sum()) for a, b in zip(first, second, strict=True))


class GroupSweep:
    """Network outputs for every choice of one group.

    Args:
        tensors: of the model, in eval mode; they are swapped, never written to.
        names: of the tensors that the group owns, entirely or some rows of them.
        trace: the numbered calls, or None to run the whole network for each choice.
        reading: how the network's outputs are read.
    """

    def __init__(
        self,
        tensors: NetworkTensors,
        names: Sequence[str],
        trace: CallTrace | None,
        reading: OutputReading | None = None,
    ) -> None:
        self._model = tensors.model
        self._tensors = tensors
        self._names = tuple(names)
        self._reading = reading or OutputReading()
        owners = {id(module): module for name in names for module, _ in tensors.owners(name)}
        self._owners = frozenset(owners)
        self._trace = trace
        self._start = 0
        self._one_by_one = False
        starts = [] if trace is None else [trace.first_call(module) for module in owners.values()]
        if trace is not None and all(start is not None for start in starts):
            self._start = min(start for start in starts if start is not None)
            self._skipped = frozenset(trace.before(self._start))
        else:
            self._trace = None

    @property
    def replays(self) -> bool:
        """Whether only the part after the group is run again."""
        return self._trace is not None

    def check(
        self, inputs: Inputs, variants: Sequence[Sequence[Tensor]], tolerance: float, rows_per_pass: int = EVERY_ROW
    ) -> bool:
        """Compare replayed outputs of two variants with full runs; stop replaying if they differ.

        The two are the first variant and the one farthest from it, whose effect is the hardest to miss.

        Args:
            inputs: of a few examples.
            variants: for each choice one whole tensor per member.
            tolerance: share of the largest output.
            rows_per_pass: how many examples may share a pass after the changed module.
        """
        if self._trace is None:
            return False
        pair = [variants[0], max(variants, key=lambda variant: _distance(variants[0], variant))]
        # Choices share passes only where two of them were checked against full runs.
        count = tensors_of(inputs)[0].shape[0]
        shared = rows_per_pass >= 2 * count and self._copies(count, len(pair)) == len(pair)
        reason: str | None = None
        # If they cannot share one, as after a layer whose input has no batch axis, each may have its own.
        for self._one_by_one in (False, True) if shared else (True,):
            reason = self._disagreement(inputs, pair, tolerance)
            if reason is None:
                return True
        logger.info("replaying from %s is not possible (%s); running the whole network", ", ".join(self._names), reason)
        self._trace = None
        return False

    def _disagreement(self, inputs: Inputs, variants: Sequence[Sequence[Tensor]], tolerance: float) -> str | None:
        """Why replayed outputs differ from full runs, or None."""
        try:
            got = self._replayed(inputs, variants, EVERY_ROW)
            want = torch.stack([self._full(inputs, variant) for variant in variants])
        except (_Diverged, ForwardFailed) as cause:
            return str(cause)
        scale = float(want.abs().max().nan_to_num(0.0, 0.0, 0.0))
        agree = got.shape == want.shape and bool(
            torch.allclose(got, want, rtol=tolerance, atol=tolerance * max(scale, 1e-6), equal_nan=True)
        )
        return None if agree else "its outputs differ from a full run"

    def outputs(self, inputs: Inputs, variants: Sequence[Sequence[Tensor]], rows_per_pass: int) -> Tensor:
        """(K, M, C) output rows of all variants.

        Args:
            inputs: one slice of examples.
            variants: for each choice one whole tensor per member.
            rows_per_pass: how many examples may share a pass after the changed module.
        """
        if self._trace is not None:
            try:
                return self._replayed(inputs, variants, rows_per_pass)
            except (_Diverged, ForwardFailed) as cause:
                # Other examples may take another path through the network than the traced ones.
                logger.info(
                    "replaying from %s broke off (%s); running the whole network", ", ".join(self._names), cause
                )
                self._trace = None
        return torch.stack([self._full(inputs, variant) for variant in variants])

    def _replayed(self, inputs: Inputs, variants: Sequence[Sequence[Tensor]], rows_per_pass: int) -> Tensor:
        count = tensors_of(inputs)[0].shape[0]
        together = self._copies(count, min(len(variants), max(1, rows_per_pass // count)))
        remembered = self._remember(inputs)
        passes = [
            self._replay(inputs, count, variants[i : i + together], remembered)
            for i in range(0, len(variants), together)
        ]
        return torch.cat(passes)

    def _copies(self, count: int, wanted: int) -> int:
        """How many choices may share a pass over ``count`` examples."""
        fixed = self._require_trace().fixed
        # An axis that happens to be as long as the batch would be mistaken for the batch axis.
        mistaken = fixed is None or any(count * copies in fixed for copies in range(1, wanted + 1))
        return 1 if mistaken or self._one_by_one else wanted

    def _swapped(self, variant: Sequence[Tensor]) -> contextlib.AbstractContextManager[None]:
        return self._tensors.swapped(dict(zip(self._names, variant, strict=True)), self._ranges(variant))

    def _ranges(self, variant: Sequence[Tensor]) -> dict[str, InputRange | None]:
        """Name -> range of the group's layers, if any of its choices rounds their inputs."""
        return dict(zip(self._names, ranges_of(variant), strict=False))

    def _unrounded(self, variant: Sequence[Tensor]) -> contextlib.AbstractContextManager[None]:
        """The group's layers get their inputs unrounded: each choice then rounds them itself."""
        return placed_ranges({m: None for name in self._ranges(variant) for m, _ in self._tensors.owners(name)})

    def _full(self, inputs: Inputs, variant: Sequence[Tensor]) -> Tensor:
        with torch.no_grad(), self._swapped(variant):
            return self._reading.rows(run_model(self._model, inputs))

    def _remember(self, inputs: Inputs) -> dict[int, Any]:
        trace = self._require_trace()
        remembered: dict[int, Any] = {}
        position = 0

        def handle(
            module: nn.Module, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Any:
            nonlocal position
            number = position
            if number >= len(trace.modules) or trace.modules[number] is not module:
                raise _Diverged("its modules are not called in a fixed order")
            if number == self._start:
                raise _ReachedGroup
            position += 1
            result = original(*args, **kwargs)
            if number in self._skipped:
                copies = trace.changed_later[number]
                remembered[number] = map_tensors(result, lambda t: t.clone() if copies else t)
            return result

        with intercepted(self._model, handle), torch.no_grad(), contextlib.suppress(_ReachedGroup):
            run_model(self._model, inputs)
        return remembered

    def _replay(
        self, inputs: Inputs, count: int, variants: Sequence[Sequence[Tensor]], remembered: dict[int, Any]
    ) -> Tensor:
        trace = self._require_trace()
        copies = len(variants)
        position = 0
        inside = False

        def repeated(value: Any, clone: bool) -> Any:
            def one(tensor: Tensor) -> Tensor:
                if copies > 1 and tensor.ndim and tensor.shape[0] == count:
                    return torch.cat([tensor] * copies)
                return tensor.clone() if clone else tensor

            return map_tensors(value, one)

        def handle(
            module: nn.Module, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Any:
            nonlocal position, inside
            if inside:
                return original(*args, **kwargs)
            number = position
            if number >= len(trace.modules) or trace.modules[number] is not module:
                raise _Diverged("its modules are not called in a fixed order")
            if number in self._skipped:
                position = trace.ends[number]
                return repeated(remembered[number], trace.changed_later[number])
            if id(module) not in self._owners:
                position += 1
                return original(*args, **kwargs)
            position = trace.ends[number]
            inside = True
            try:
                return self._changed(module, original, args, kwargs, count, variants)
            finally:
                inside = False

        with self._unrounded(variants[0]), intercepted(self._model, handle), torch.no_grad():
            rows = self._reading.rows(run_model(self._model, repeated(inputs, clone=False)))
        if rows.shape[0] % copies:
            raise _Diverged("its outputs do not split evenly over the choices")
        return rows.reshape(copies, rows.shape[0] // copies, rows.shape[1])

    def _changed(
        self,
        module: nn.Module,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        count: int,
        variants: Sequence[Sequence[Tensor]],
    ) -> Any:
        copies = len(variants)

        def part(k: int) -> Callable[[Tensor], Tensor]:
            return lambda t: t[k * count : (k + 1) * count] if t.ndim and t.shape[0] == count * copies else t

        results = []
        for k, variant in enumerate(variants):
            given = self._rounded(module, map_tensors(args, part(k)), variant)
            with self._swapped(variant):
                results.append(original(*given, **map_tensors(kwargs, part(k))))
        if copies == 1:
            return results[0]
        if not all(isinstance(result, Tensor) for result in results):
            raise _Diverged(f"{type(module).__name__} does not return one tensor")
        return torch.cat(results)

    def _rounded(self, module: nn.Module, args: tuple[Any, ...], variant: Sequence[Tensor]) -> tuple[Any, ...]:
        """A module's arguments as the hook of a variant rounds them: ``original`` is called behind all hooks."""
        for name, given in self._ranges(variant).items():
            if given is not None and any(owner is module for owner, _ in self._tensors.owners(name)):
                return (rounded(args[0], given), *args[1:])
        return args

    def _require_trace(self) -> CallTrace:
        if self._trace is None:
            raise _Diverged("there is no trace")
        return self._trace
