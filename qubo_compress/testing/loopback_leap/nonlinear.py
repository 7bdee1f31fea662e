"""Answers to nonlinear models: iterated descent, one entry of one decision at a time.

It is generic: it sets decisions, and reads the objective and the constraints.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from dwave.optimization.model import Model
from dwave.optimization.symbols import BinaryVariable, Equal, IntegerVariable, LessEqual

from qubo_compress.testing.loopback_leap.tasks import Answer, Clock, ProblemRejected, Task

_MOST_VALUES = 16
"""Values of one entry that are tried in one visit."""
_KICKS = 3
_EASE, _TIGHTEN = 0.8, 2.0
"""Factors on the price of a violation when the last local optimum was feasible, and when it was not."""
_RESTART_AFTER = 20


def solve(task: Task) -> Answer:
    """The best state found: a feasible one, or else the least violated."""
    clock = Clock(task)
    model = Model.from_file(task.file())
    model.lock()
    model.states.resize(1)
    best = _Search(model, task.rng).run(clock)
    if not task.settings.eager:
        task.stopped.wait(clock.left())
    best.show(model)
    with model.states.to_file() as file:
        data = file.read()
    return Answer(
        {"format": "binary-ref", "auth_method": "sapi-token", "timing": clock.info(), "shape": {"num_states": 1}}, data
    )


@dataclass(frozen=True)
class _State:
    """Values of all decisions, and how good they are."""

    values: list[npt.NDArray[np.float64]]
    objective: float
    violation: float

    def better_than(self, other: _State) -> bool:
        return (self.violation, self.objective) < (other.violation, other.objective)

    def show(self, model: Model) -> None:
        symbols: Iterator[Any] = model.iter_decisions()
        for symbol, values in zip(symbols, self.values, strict=True):
            symbol.set_state(0, values)


class _Search:
    def __init__(self, model: Model, rng: np.random.Generator) -> None:
        self.rng = rng
        self.objective: Any = model.objective
        self.symbols: list[Any] = list(model.iter_decisions())
        self.constraints = list(model.iter_constraints())
        for symbol in self.symbols:
            if not isinstance(symbol, IntegerVariable | BinaryVariable):
                raise ProblemRejected(
                    f"the loopback solver knows integer and binary decisions; got {type(symbol).__name__}"
                )
        self.lowest = [_bounds(symbol, "lower_bound") for symbol in self.symbols]
        self.highest = [_bounds(symbol, "upper_bound") for symbol in self.symbols]
        self.entries = [(i, place) for i, low in enumerate(self.lowest) for place in np.ndindex(low.shape)]
        self.values = self._random()

    def run(self, clock: Clock) -> _State:
        """Descend, kick, descend; restart after a while without a better state."""
        self._set_all()
        best = replace(self._read(), values=[values.copy() for values in self.values])
        price, stale = abs(best.objective) / (best.violation or 1.0) or 1.0, 0
        while self.entries and not clock.over():
            self._set_all()
            state = self._descend(self._read(), price, clock)
            price *= _TIGHTEN if state.violation > 0 else _EASE
            stale = 0 if state.better_than(best) else stale + 1
            best = state if stale == 0 else best
            if stale >= _RESTART_AFTER:
                self.values, stale = self._random(), 0
            for entry in self.rng.integers(len(self.entries), size=_KICKS):
                i, place = self.entries[entry]
                self.values[i][place] = self._draw(i, place)
        return best

    def _descend(self, state: _State, price: float, clock: Clock) -> _State:
        """Visit entries in random order until none can be improved."""
        improved = True
        while improved and not clock.over():
            improved = False
            for entry in self.rng.permutation(len(self.entries)):
                i, place = self.entries[entry]
                merit = state.objective + price * state.violation
                kept = self.values[i][place]
                for value in self._candidates(i, place):
                    self.values[i][place] = value
                    self.symbols[i].set_state(0, self.values[i])
                    tried = self._read()
                    if tried.objective + price * tried.violation < merit - 1e-12 * abs(merit):
                        state, kept, improved = tried, value, True
                        merit = state.objective + price * state.violation
                self.values[i][place] = kept
                self.symbols[i].set_state(0, self.values[i])
                if clock.over():
                    break
        return _State([values.copy() for values in self.values], state.objective, state.violation)

    def _candidates(self, i: int, place: tuple[int, ...]) -> npt.NDArray[np.float64]:
        low, high = self.lowest[i][place], self.highest[i][place]
        if high - low < _MOST_VALUES:
            return np.arange(low, high + 1)
        here = self.values[i][place]
        drawn = self.rng.integers(int(low), int(high) + 1, size=_MOST_VALUES - 2)
        found: npt.NDArray[np.float64] = np.clip(np.append(drawn, [here - 1, here + 1]), low, high)
        return found

    def _draw(self, i: int, place: tuple[int, ...]) -> float:
        return float(self.rng.integers(int(self.lowest[i][place]), int(self.highest[i][place]) + 1))

    def _random(self) -> list[npt.NDArray[np.float64]]:
        drawn = [low.copy() for low in self.lowest]
        for i, values in enumerate(drawn):
            for place in np.ndindex(values.shape):
                values[place] = self._draw(i, place)
        return drawn

    def _set_all(self) -> None:
        for symbol, values in zip(self.symbols, self.values, strict=True):
            symbol.set_state(0, values)

    def _read(self) -> _State:
        violation = sum(_violation(constraint) for constraint in self.constraints)
        return _State([], float(self.objective.state(0)), violation)


def _bounds(symbol: Any, which: str) -> npt.NDArray[np.float64]:
    """Lowest or highest value of each entry."""
    if isinstance(symbol, BinaryVariable) and not hasattr(symbol, which):
        return np.full(symbol.shape(), float(which == "upper_bound"))
    return np.array(np.broadcast_to(getattr(symbol, which)(), symbol.shape()), dtype=np.float64)


def _violation(constraint: Any) -> float:
    """How far an inequality or equality is from holding; for others how many entries do not hold."""
    if isinstance(constraint, LessEqual | Equal):
        left, right = (symbol.state(0) for symbol in constraint.iter_predecessors())
        excess = left - right
        return float(np.sum(np.maximum(excess, 0) if isinstance(constraint, LessEqual) else np.abs(excess)))
    return float(np.sum(np.asarray(constraint.state(0)) == 0))
