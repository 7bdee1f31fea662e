"""What a network really does with its weights: the function calls that get the parameters themselves.

A module's class does not tell what it computes: a convolution may pad in its own ``forward``, attention passes its
weights to one function, and a weight may be used without its module. So function calls are observed. A weight is
recognised by identity: if it is transposed, masked or converted first, that is another tensor, and its calls are not
seen.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Sliding:
    """How a convolution moves over its inputs, one number per spatial axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class WeightCall:
    """One call of a function with a watched weight.

    Attributes:
        function: its name.
        multiplies: how often each value of the weight multiplies, over all examples; the mean if parts of the weight
            have different inputs.
        shares: number of equal shares of the weight's output rows, each multiplied with its own inputs; 0 if the inputs
            are unknown.
        inputs: of every share, with examples along the first axis.
        inputs_first: the weight is passed as (inputs, outputs).
        sliding: of a convolution.
        sizes: of a convolution's inputs and outputs along the spatial axes.
    """

    function: str
    multiplies: int = 0
    shares: int = 0
    inputs: tuple[Tensor, ...] = ()
    inputs_first: bool = False
    sliding: Sliding | None = None
    sizes: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())


Found = list[tuple[Any, WeightCall]]
"""Pairs of a tensor passed as a weight, and its call."""


@dataclass(frozen=True)
class _Seen:
    """A function call with its arguments and result."""

    function: Callable[..., Any]
    args: Sequence[Any]
    named: Mapping[str, Any]
    result: Any
    wants_inputs: Callable[[Any], bool]

    @property
    def name(self) -> str:
        return self.function.__name__

    def given(self, position: int, name: str, default: Any = None) -> Any:
        return self.args[position] if len(self.args) > position else self.named.get(name, default)


@dataclass
class WeightCalls(TorchFunctionMode):
    """While active, reports every call of a known function with a watched tensor as its weight.

    Args:
        watched: parameters by name.
        report: called with a name and a call, before the function's result is used. It may raise to end the run.
        inputs_wanted: names of the weights whose calls must contain the inputs, even at extra work.

    Example:
        >>> layer, seen = torch.nn.Linear(3, 2), []
        >>> with WeightCalls(dict(layer.named_parameters()), lambda name, call: seen.append((name, call.multiplies))):
        ...     _ = layer(torch.zeros(5, 3))
        >>> seen
        [('weight', 5)]
    """

    watched: Mapping[str, Tensor]
    report: Callable[[str, WeightCall], None]
    inputs_wanted: frozenset[str] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        super().__init__()
        self._names = {id(tensor): name for name, tensor in self.watched.items()}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the function and inspect its arguments."""
        named = dict(kwargs or {})
        result = func(*args, **named)
        reader = _READERS.get(getattr(func, "__name__", ""))
        if reader is not None and self._concerns(args, named):
            for weight, call in reader(_Seen(func, args, named, result, self.wants_inputs)):
                name = self._names.get(id(weight))
                if name is not None:
                    self.report(name, call)
        return result

    def wants_inputs(self, weight: Any) -> bool:
        """Whether the inputs of a weight are worth extra work."""
        return self._names.get(id(weight)) in self.inputs_wanted

    def _concerns(self, args: Sequence[Any], named: Mapping[str, Any]) -> bool:
        given = [*args, *named.values()]
        flat = [item for value in given for item in (value if isinstance(value, (list, tuple)) else (value,))]
        return any(id(item) in self._names for item in flat)


class GivenTensors(TorchFunctionMode):
    """While active, records the identity of every tensor passed to a function.

    A later tensor may have the identity of one that was freed.

    Example:
        >>> layer = torch.nn.Linear(3, 2)
        >>> with GivenTensors() as given:
        ...     _ = layer.weight.sum()
        >>> id(layer.weight) in given.seen, id(layer.bias) in given.seen
        (True, False)
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Record the function's arguments, and run it."""
        named = dict(kwargs or {})
        self._note([*args, *named.values()])
        return func(*args, **named)

    def _note(self, given: Sequence[Any]) -> None:
        for value in given:
            if isinstance(value, Tensor):
                self.seen.add(id(value))
            elif isinstance(value, (list, tuple)):  # recurrent layers pass lists of their weights
                self._note(value)


def _linear(seen: _Seen) -> Found:
    inputs, weight = seen.given(0, "input"), seen.given(1, "weight")
    batch = inputs if inputs.ndim > 1 else inputs[None]
    return [(weight, WeightCall("linear", inputs.numel() // weight.shape[-1], 1, (batch.detach(),)))]


def _product(seen: _Seen) -> Found:
    """``inputs @ weight``, also with a bias added: the weight is (inputs, outputs)."""
    first = 1 if seen.name == "addmm" else 0
    inputs = seen.given(first, "mat1" if first else "input")
    weight = seen.given(first + 1, "mat2" if first or seen.name == "mm" else "other")
    if not (isinstance(inputs, Tensor) and isinstance(weight, Tensor) and weight.ndim == 2):
        return []
    batch = inputs if inputs.ndim > 1 else inputs[None]
    call = WeightCall(seen.name, inputs.numel() // weight.shape[0], 1, (batch.detach(),), inputs_first=True)
    return [(weight, call)]


def _convolution(seen: _Seen) -> Found:
    inputs, weight = seen.given(0, "input"), seen.given(1, "weight")
    kernel = tuple(weight.shape[2:])
    stride = _per_axis(seen.given(3, "stride", 1), kernel)
    dilation = _per_axis(seen.given(5, "dilation", 1), kernel)
    padding = _sides(seen.given(4, "padding", 0), kernel, dilation)
    sliding = Sliding(kernel, stride, padding, dilation, int(seen.given(6, "groups", 1)))
    batch = inputs if inputs.ndim == len(kernel) + 2 else inputs[None]
    sizes = (tuple(batch.shape[2:]), tuple(seen.result.shape[-len(kernel) :]))
    count = seen.result.numel() // weight.shape[0]
    return [(weight, WeightCall(seen.name, count, 1, (batch.detach(),), sliding=sliding, sizes=sizes))]


def _per_axis(value: Any, kernel: tuple[int, ...]) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * len(kernel) if len(values) == 1 else values


def _sides(padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Padding before and after, along every axis."""
    if padding == "same":
        both = [step * (length - 1) for step, length in zip(dilation, kernel, strict=True)]
        return tuple((total // 2, total - total // 2) for total in both)
    return tuple((side, side) for side in _per_axis(0 if padding == "valid" else padding, kernel))


def _transposed(seen: _Seen) -> Found:
    inputs, weight = seen.given(0, "input"), seen.given(1, "weight")
    return [(weight, WeightCall(seen.name, inputs.numel() // weight.shape[0]))]


def _bilinear(seen: _Seen) -> Found:
    return [(seen.given(2, "weight"), WeightCall("bilinear", seen.result.numel() // seen.result.shape[-1]))]


def _lookup(seen: _Seen) -> Found:
    # Which of the two is the weight has changed between versions; only a watched one is reported.
    return [(tensor, WeightCall(seen.name)) for tensor in (*seen.args[:2], seen.named.get("weight"))]


def _recurrent(seen: _Seen) -> Found:
    """Every weight multiplies once per time step; cells take one step."""
    inputs = seen.args[0]
    steps = inputs.numel() // inputs.shape[-1]
    flat = [item for value in seen.args[1:] for item in (value if isinstance(value, (list, tuple)) else (value,))]
    return [(item, WeightCall(seen.name, steps)) for item in flat if isinstance(item, Tensor)]


def _attention(seen: _Seen) -> Found:
    given = inspect.signature(functional.multi_head_attention_forward).bind(*seen.args, **seen.named)
    given.apply_defaults()
    told = given.arguments
    sources = [told[name] for name in ("query", "key", "value")]
    counts = [source.numel() // source.shape[-1] for source in sources]
    turned = {id(source): _examples_first(source) for source in sources}
    shares = tuple(turned[id(source)] for source in sources)
    found: Found = [(told["in_proj_weight"], WeightCall(seen.name, sum(counts) // 3, 3, shares))]
    for letter, count, share in zip("qkv", counts, shares, strict=True):
        found.append((told[f"{letter}_proj_weight"], WeightCall(seen.name, count, 1, (share,))))
    out = told["out_proj_weight"]
    mixed: tuple[Tensor, ...] = ()
    if seen.wants_inputs(out):
        # With the identity as its last map, attention returns that map's input.
        told.update(out_proj_weight=torch.eye(out.shape[1]).to(out), out_proj_bias=None)
        mixed = (_examples_first(seen.function(*given.args, **given.kwargs)[0]),)
    found.append((out, WeightCall(seen.name, counts[0], 1, mixed)))
    return found


def _examples_first(tensor: Tensor) -> Tensor:
    """(N, T, D) from (T, N, D), the function's layout whatever the module's ``batch_first``."""
    tensor = tensor.detach()
    return tensor.transpose(0, 1) if tensor.ndim == 3 else tensor[None]


_READERS: dict[str, Callable[[_Seen], Found]] = {
    "linear": _linear,
    **dict.fromkeys(("addmm", "mm", "matmul", "__matmul__"), _product),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed),
    **dict.fromkeys(("embedding", "embedding_bag"), _lookup),
    **dict.fromkeys(
        ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _recurrent
    ),
    "bilinear": _bilinear,
    "multi_head_attention_forward": _attention,
}


def weight_calls(run: Callable[[], Any], watched: Mapping[str, Tensor]) -> dict[str, list[WeightCall]]:
    """Calls by weight during one run, without their inputs."""
    found: dict[str, list[WeightCall]] = {}
    with WeightCalls(watched, lambda name, call: found.setdefault(name, []).append(replace(call, inputs=()))):
        run()
    return found


def why_unseen(calls: Sequence[WeightCall], inputs_first: bool) -> str | None:
    """Why the inputs that a weight multiplies cannot be observed, or None.

    Args:
        calls: of one run.
        inputs_first: how the network holds the weight: see :class:`qubo_compress.network.groups.Member`.
    """
    if not calls:
        return "no known function was given it, so its inputs are not seen"
    for call in calls:
        if not call.shares:
            return f"it is used by {call.function}, whose inputs are not observed"
        if call.inputs_first != inputs_first:
            return f"{call.function} sums over its rows, which are then no outputs"
    if len({(call.shares, call.sliding is None) for call in calls}) > 1:
        return "it is used in several different ways"
    return None
