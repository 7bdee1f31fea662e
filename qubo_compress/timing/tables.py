"""Makes latency tables: single layers are timed, then scaled so that whole networks take what they really take.

A layer alone costs a call of the runtime and the way of its inputs and outputs, which a network pays once. So a layer's
time is that of its file less that of an empty file with the same input. In the network runtimes fuse what is between
layers, and convert between integers and floating point where neighbours differ. So whole networks are timed as well:
one for each form in every layer that takes it, and some with random forms; they take turns, three times, and the least
median of each counts, because load on the machine only adds. With s(g, c) the time of layer g alone in
form c, the prediction is

    T = r + sum_g k_c(g) s(g, c(g)),     r, k_c >= 0,

fitted to these networks by least squares of relative errors.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import nnls
from torch import nn

from qubo_compress._internal.checks import whole
from qubo_compress.errors import InvalidMenu, InvalidModel
from qubo_compress.latency import LatencyTable
from qubo_compress.menu.menu import Menu, refuse_other_than_a_menu
from qubo_compress.menu.operator import Operator, choice_name, parse
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.network.discovery import GroupRule, discover
from qubo_compress.network.groups import Layout
from qubo_compress.network.inputs import Inputs, tensors_of
from qubo_compress.network.memory import refuse_without_values
from qubo_compress.network.private import private_copy
from qubo_compress.network.replay import run_model
from qubo_compress.network.roundable import why_not_rounded
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.network.wrappers import unwrapped
from qubo_compress.timing.layers import TimedLayer, alone, compressed, form_of, stored_in_form, timed_layers
from qubo_compress.timing.runtimes import Clock, Stopwatch, processor

MIXED = 6
"""Networks with random forms that a table is fitted to."""

EMPTY = Layout((), (), {}, 0, 0)
"""The groups of a network without tensors."""

POOR = 0.3
"""Share by which networks may take longer than predicted before the table is called poor: 1 to 29 % were usual."""

SHORTEST = 1e-4
"""Milliseconds that a layer alone takes at least: less than an empty file is noise."""


def latency_table(
    model: nn.Module,
    example: Inputs,
    menu: Menu | None = None,
    runtime: str = "onnxruntime",
    threads: int = 1,
    *,
    groups: GroupRule = "layer",
    mixed: int = MIXED,
    runs: int = 30,
    seed: int = 0,
    clock: Clock = time.perf_counter,
) -> LatencyTable:
    """Time what each choice of each layer takes in a runtime; for ``Budget(latency_ms=..., latency=table)``.

    Every convolution and linear layer is exported alone, with its bias and a ReLU, in each form that the menu's choices
    take in a file, and timed on the inputs that it has in the network; choices of one form and equal layers share a
    time. Then whole networks are timed, which also shows everything between the layers; see
    :mod:`qubo_compress.timing.tables`. Nothing else should run on the processor meanwhile.

    Args:
        model: the network that is measured and compressed.
        example: inputs of one run: the batch counts.
        menu: the choices, as for :func:`qubo_compress.measure`; default: ``Menu()``.
        runtime: ``"onnxruntime"``, ``"openvino"`` or ``"torch"``.
        threads: of the runtime.
        groups: as for :func:`qubo_compress.measure`; filters have no time of their own, and are refused.
        mixed: networks with random forms among those that the table is fitted to.
        runs: of which a time is the median, after three that do not count.
        seed: of the random forms.
        clock: returns seconds.

    Returns:
        The table, with the processor, the runtime's version, and predictions beside measurements of the networks that
        it was fitted to. If it missed one of them by more than 30 %, a warning says so.

    Raises:
        InvalidModel: when no layer of the network can be timed, or tensors have no values.
        InvalidMenu: for filters, or a choice that cannot be timed.
        UnknownName, InvalidOption: for other arguments.
        ExportRefused: when the network has no ONNX form.
        MissingDependency: without the runtime.
    """
    refuse_other_than_a_menu(menu)
    watch, mixed = Stopwatch(runtime, threads, runs, clock), whole("mixed", mixed)
    refuse_without_values(unwrapped(model))
    net = private_copy(unwrapped(model))
    bench = _Bench.of(net, example, discover(net, groups), menu or Menu(), watch)
    singles = bench.singles()
    plans = bench.anchors(mixed, np.random.default_rng(whole("seed", seed)))
    measured = watch.least_of_turns([bench.whole(plan) for plan in plans])
    rest, factors = fitted([bench.sums(plan, singles) for plan in plans], measured)
    layers = {
        layer.group.name: {
            name: float(factors[form_of(operator)] * singles[layer.group.name, form_of(operator)])
            for name, operator in offered.items()
        }
        for layer, offered in zip(bench.layers, bench.offered, strict=True)
    }
    timed = set(layers)
    untimed = tuple(group.name for group in bench.layout.groups if group.kind == "weight" and group.name not in timed)
    batch = int(tensors_of(example)[0].shape[0])
    sizes = {layer.group.name: layer.group.numel for layer in bench.layers}
    table = LatencyTable(
        runtime, watch.version, processor(), threads, batch, rest, layers, untimed, sizes=sizes,
    )  # fmt: skip
    predicted = [table.predicted(plan) for plan in plans]
    table = replace(table, anchors=tuple(zip(predicted, measured, strict=True)))
    if table.margin > POOR:
        warnings.warn(
            f"the latency table is poor: a network that it was fitted to took {1 + table.margin:.1f} times as long as "
            "it predicts, so limits are kept by a margin of as much. Make it again while nothing else runs, or solve, "
            "measure the plan with qc.measured_latency and use table.corrected(plan.choices, milliseconds)",
            stacklevel=2,
        )
    return table


@dataclass(frozen=True, eq=False)
class _Bench:
    """A network whose layers are timed.

    Attributes:
        net: a private copy.
        example: inputs of one run.
        layout: its groups.
        layers: the groups that are timed.
        offered: for each of them, choice name -> operator.
        watch: how time is taken.
    """

    net: nn.Module
    example: Inputs
    layout: Layout
    layers: Sequence[TimedLayer]
    offered: Sequence[Mapping[str, Operator]]
    watch: Stopwatch

    @classmethod
    def of(cls, net: nn.Module, example: Inputs, layout: Layout, menu: Menu, watch: Stopwatch) -> _Bench:
        if any(member.rows is not None for group in layout.groups for member in group.members):
            raise InvalidMenu("filters have no time of their own; make a latency table with groups='layer'")
        layers, tensors = timed_layers(net, layout, example), NetworkTensors(net)
        if not layers:
            raise InvalidModel("this network calls no convolution and no linear layer, so no choice changes its time")
        names = [layer.group.members[0].name for layer in layers]
        fixed = why_not_rounded(tensors, names, lambda: run_model(net, example))
        offered = []
        for layer, name in zip(layers, names, strict=True):
            suited = menu.offered(layer.group, tensors.parts(layer.group))
            offered.append({n: o for n, o in suited.items() if not (o.activation_bits and name in fixed)})
        return cls(net, example, layout, layers, offered, watch)

    def singles(self) -> dict[tuple[str, str], float]:
        """(group name, form) -> milliseconds of the layer alone, summed over its calls."""
        known: dict[tuple[str, tuple[int, ...], str], float] = {}
        found: dict[tuple[str, str], float] = {}
        for layer, offered in zip(self.layers, self.offered, strict=True):
            for form in dict.fromkeys(form_of(operator) for operator in offered.values()):
                total = 0.0
                for number, inputs in enumerate(layer.inputs):
                    key = layer.key(number, form)
                    if key not in known:
                        known[key] = self.watch.milliseconds(*alone(layer, parse(form)), inputs)
                    total += max(SHORTEST, known[key] - self._empty(inputs, known))
                found[layer.group.name, form] = total
        return found

    def _empty(self, inputs: torch.Tensor, known: dict[tuple[str, tuple[int, ...], str], float]) -> float:
        """Milliseconds of a network that only applies a ReLU."""
        key = "", tuple(inputs.shape), ""
        if key not in known:
            net = nn.Sequential(nn.ReLU()).eval()
            known[key] = self.watch.milliseconds(*compressed(net, EMPTY, {}), inputs)
        return known[key]

    def anchors(self, mixed: int, generator: np.random.Generator) -> list[dict[str, str]]:
        """Plans of whole networks: each form wherever it is offered, then random forms of random shares."""
        forms = list(dict.fromkeys(form_of(o) for offered in self.offered for o in offered.values()))
        plans = [self._plan({form: 1.0}) for form in forms]
        for _ in range(mixed):
            shares = dict(zip(forms, generator.dirichlet(np.full(len(forms), 0.7)).tolist(), strict=True))
            plans.append(self._plan(shares, generator))
        return plans

    def _plan(self, shares: Mapping[str, float], generator: np.random.Generator | None = None) -> dict[str, str]:
        """Group name -> choice; without a generator, the first choice of the form of the largest share."""
        plan = {}
        for layer, offered in zip(self.layers, self.offered, strict=True):
            weights = np.array([shares.get(form_of(operator), 0.0) for operator in offered.values()])
            if weights.sum() > 0:
                names = list(offered)
                number = int(weights.argmax()) if generator is None else _drawn(weights, generator)
                plan[layer.group.name] = names[number]
            else:
                plan[layer.group.name] = "keep"
        return plan

    def sums(self, plan: Mapping[str, str], singles: Mapping[tuple[str, str], float]) -> dict[str, float]:
        """Form -> milliseconds of the plan's layers in that form, each alone."""
        found: dict[str, float] = {}
        for layer, offered in zip(self.layers, self.offered, strict=True):
            form = form_of(offered[plan[layer.group.name]])
            found[form] = found.get(form, 0.0) + singles[layer.group.name, form]
        return found

    def whole(self, plan: Mapping[str, str]) -> Callable[[], Any]:
        """Runs the network with the forms of a plan."""
        tensors, chosen = NetworkTensors(self.net), dict[str, tuple[str, Stored]]()
        for layer, offered in zip(self.layers, self.offered, strict=True):
            operator = parse(form_of(offered[plan[layer.group.name]]))
            stored = stored_in_form(layer, operator, layer.group, tensors.parts(layer.group))
            chosen[layer.group.name] = choice_name(operator), stored
        return self.watch.program(*compressed(self.net, self.layout, chosen), self.example)


def _drawn(weights: npt.NDArray[np.float64], generator: np.random.Generator) -> int:
    return int(generator.choice(len(weights), p=weights / weights.sum()))


def fitted(sums: Sequence[Mapping[str, float]], measured: Sequence[float]) -> tuple[float, dict[str, float]]:
    """The rest, and the factor of every form, none of them negative, of least relative errors.

    Args:
        sums: for every network, form -> milliseconds of its layers in that form, each alone.
        measured: milliseconds of every network.

    Example:
        >>> rest, factors = fitted([{"a": 2.0}, {"b": 1.0}, {"a": 1.0, "b": 1.0}], [3.0, 3.0, 4.0])
        >>> round(rest, 6), {form: round(factor, 6) for form, factor in factors.items()}
        (1.0, {'a': 1.0, 'b': 2.0})
    """
    forms = list(dict.fromkeys(form for one in sums for form in one))
    rows = np.array([[1.0, *(one.get(form, 0.0) for form in forms)] for one in sums])
    wanted = np.array(measured, dtype=np.float64)
    found, _ = nnls(rows / wanted[:, None], np.ones(len(wanted)))
    return float(found[0]), dict(zip(forms, found[1:].tolist(), strict=True))
