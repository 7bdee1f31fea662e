"""One compressed network with everything a report can show, and the words of its page and of its summary."""

from __future__ import annotations

import dataclasses
import html
import io
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.pipeline.compress import CompressionResult
from qubo_compress.report import front as front_of
from qubo_compress.report import pictures, print_summary
from qubo_compress.report.html import page
from qubo_compress.selection.comparison import Estimate

MENU = qc.Menu(bits=(2, 4), sparsity=(0.0, 0.5), vector_bits=(16,))


class Odd(nn.Module):
    """Ordinary layers, a parameter of its own, an integer buffer, shared weights, and a name fit for HTML."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("in<b>&$x$", nn.Linear(6, 16))
        self.norm = nn.BatchNorm1d(16)
        self.middle = nn.Linear(16, 16)
        self.again = nn.Linear(16, 16)
        self.again.weight = self.middle.weight
        self.last = nn.Linear(16, 3)
        self.temperature = nn.Parameter(torch.ones(1))
        self.register_buffer("steps", torch.tensor(7))

    def forward(self, x: Tensor) -> Tensor:
        first = self.get_submodule("in<b>&$x$")
        hidden = torch.relu(self.norm(first(x)))
        return self.last(self.again(torch.relu(self.middle(hidden)))) * self.temperature


def _data(count: int = 40) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(count, 6, generator=generator), torch.arange(count) % 3)]


def _compressed(**changes: Any) -> CompressionResult:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "budget": qc.Budget(ratio=2.0), "menu": MENU, "solver": "annealer", "time_limit": 0.3, "rounds": 1,
        "recover": True, "progress": False,
    }  # fmt: skip
    return qc.compress(Odd().eval(), _data(), **{**settings, **changes})


@pytest.fixture
def odd() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """The network and its batches."""
    return Odd().eval(), _data()


@pytest.fixture
def compressed() -> Callable[..., CompressionResult]:
    """Compress it, with other settings where given."""
    return _compressed


@pytest.fixture(scope="session")
def result() -> CompressionResult:
    """Changed by nobody: tests replace parts of it."""
    return _compressed()


@pytest.fixture(scope="session")
def text(result: CompressionResult) -> str:
    """Its page."""
    return page(result, front_of.find_front(result, 0.05))


def _told(
    result: CompressionResult, predicted: float, measured: Estimate, proven: bool = True, **changes: Any
) -> CompressionResult:
    enough = {"rows": 200, "examples": 200, "lost": 2, "gained": 1}
    comparison = dataclasses.replace(result.applied_comparison, divergence=measured, **{**enough, **changes})
    candidate = dataclasses.replace(result.taken.candidates[0], predicted=predicted, comparison=comparison)
    turn = dataclasses.replace(result.rounds[0], candidates=(candidate,), winner=candidate.name, predicted=predicted)
    bound = predicted if proven else None
    return dataclasses.replace(
        result, rounds=(turn,), applied_comparison=comparison, recovery_kept=False,
        solution=dataclasses.replace(result.solution, energy=predicted, bound=bound, gap=0.0 if proven else None),
    )  # fmt: skip


@pytest.fixture
def told() -> Callable[..., CompressionResult]:
    """The result with one candidate only, whose prediction and measured divergence are given."""
    return _told


@pytest.fixture
def plain() -> Callable[[str], str]:
    """The words of a page without its tags."""
    return lambda text: html.unescape(re.sub(r"<wbr>|<[^>]+>", "", text))


@pytest.fixture
def printed() -> Callable[..., str]:
    """The summary on a terminal of some width."""

    def show(result: CompressionResult, width: int = 200) -> str:
        stream = io.StringIO()
        print_summary(result, Console(file=stream, width=width))
        return stream.getvalue()

    return show


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without pictures, which take most of the time."""
    for name in ("layers", "prediction", "trace", "interactions", "all_choices"):
        monkeypatch.setattr(pictures, name, lambda *_: b"")
