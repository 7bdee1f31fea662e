"""Shared fixtures: a zoo of small trained networks, each with its calibration batches."""

from __future__ import annotations

import copy
import functools
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# As `make test` does, before anything reads them: threads of two processes would get in each other's way, and the
# client of D-Wave would keep lists of solvers in the user's folder.
for _name, _value in {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "DWAVE_CACHE_ENABLED": "false"}.items():
    os.environ.setdefault(_name, _value)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from tests.zoo import (  # noqa: E402
    CLASSES,
    EXAMPLES,
    Aliasing,
    Attention,
    BatchDependent,
    Changeable,
    CrossAttention,
    Encoder,
    Functional,
    Gated,
    Grouped,
    InputsFirst,
    Mixing,
    OwnPadding,
    Positions,
    Recurrent,
    TiedLanguage,
    Twice,
    TwoInputs,
    Unreached,
    Upsampling,
    Volume,
)


@pytest.fixture(autouse=True)
def _as_if_alone():
    """Random numbers, threads and Ctrl-C are the same for a test whichever ran before it.

    A shell starts background jobs with SIGINT ignored; the tests that send it need Python's own handler.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For ``XDG_CACHE_HOME``, where a client of D-Wave would write to the user's folder whatever its settings say."""
    return tmp_path_factory.mktemp("caches")


STEPS = 25


@dataclass(frozen=True)
class Sample:
    """A trained network and its batches."""

    name: str
    model: nn.Module
    batches: list[Any]


def _tokens(length: int = 6) -> Tensor:
    return torch.randint(7, (EXAMPLES, length))


def _classes() -> Tensor:
    return torch.arange(EXAMPLES) % CLASSES


def _shifted(shape: tuple[int, ...], targets: Tensor) -> Tensor:
    return torch.randn(EXAMPLES, *shape) + targets.reshape(-1, *[1] * len(shape))


def _vectors(model: nn.Module) -> tuple[nn.Module, Any, Tensor]:
    return model, _shifted((5,), _classes()), _classes()


def _two_inputs(named: bool) -> tuple[nn.Module, Any, Tensor]:
    left, right = _shifted((5,), _classes()), _shifted((4,), _classes())
    return TwoInputs(), {"left": left, "right": right} if named else (left, right), _classes()


def _tied() -> tuple[nn.Module, Any, Tensor]:
    tokens = _tokens(5)
    return TiedLanguage(), tokens, (tokens + 1) % 7


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, CLASSES))


MAKERS: dict[str, Callable[[], tuple[nn.Module, Any, Tensor]]] = {
    "perceptron": lambda: _vectors(_perceptron()),
    "single-linear": lambda: _vectors(nn.Linear(5, CLASSES)),
    "grouped-view-inplace": lambda: (Grouped(), _shifted((2, 6, 6), _classes()), _classes()),
    "positions": lambda: (Positions(), _shifted((4, 5), _classes()), torch.randint(CLASSES, (EXAMPLES, 5))),
    "volume": lambda: (Volume(), _shifted((1, 3, 4, 3), _classes()), _classes()),
    "tied": _tied,
    "encoder": lambda: (Encoder(True), _tokens(), _classes()),
    # As long as a slice of the tests: the length must not be taken for the number of examples.
    "encoder-length-of-batch": lambda: (Encoder(True), _tokens(10), _classes()),
    "encoder-time-first": lambda: (Encoder(False), _tokens(), _classes()),
    "encoder-time-first-length-of-batch": lambda: (Encoder(False), _tokens(10), _classes()),
    "attention": lambda: (Attention(), _tokens(), _classes()),
    "cross-attention": lambda: (CrossAttention(), _tokens(), _classes()),
    "gated": lambda: (Gated(), _tokens(5), _classes()),
    "upsampling": lambda: (Upsampling(), _shifted((2, 7), _classes()), _classes()),
    "inputs-first": lambda: (InputsFirst(), _tokens(), _classes()),
    "own-padding": lambda: (OwnPadding(), _shifted((2, 7, 6), _classes()), _classes()),
    "mixing": lambda: _vectors(Mixing()),
    "unreached": lambda: _vectors(Unreached()),
    "recurrent": lambda: (Recurrent(), _tokens(), _classes()),
    "twice": lambda: _vectors(Twice()),
    "functional": lambda: _vectors(Functional()),
    "tuple-inputs": lambda: _two_inputs(False),
    "dict-inputs": lambda: _two_inputs(True),
    "changeable": lambda: _vectors(Changeable()),
    "batch-dependent": lambda: _vectors(BatchDependent()),
    "aliasing": lambda: _vectors(Aliasing()),
    "bfloat16": lambda: _vectors(_perceptron()),
    "float64": lambda: _vectors(_perceptron()),
}


def run(model: nn.Module, inputs: Any) -> Tensor:
    if isinstance(inputs, Tensor):
        return model(inputs)
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def _part(inputs: Any, rows: slice) -> Any:
    if isinstance(inputs, Tensor):
        return inputs[rows]
    if isinstance(inputs, dict):
        return {name: tensor[rows] for name, tensor in inputs.items()}
    return tuple(tensor[rows] for tensor in inputs)


@functools.cache
def _trained(name: str) -> Sample:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(name))
        model, inputs, targets = MAKERS[name]()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(STEPS):
            optimizer.zero_grad()
            functional.cross_entropy(run(model, inputs), targets).backward()
            optimizer.step()
        optimizer.zero_grad()
    dtypes = {"bfloat16": torch.bfloat16, "float64": torch.float64}
    if name in dtypes:
        model, inputs = model.to(dtypes[name]), inputs.to(dtypes[name])
    parts = [slice(0, 10), slice(10, 20), slice(20, 24)]
    return Sample(name, model.eval(), [(_part(inputs, rows), targets[rows]) for rows in parts])


def make_sample(name: str) -> Sample:
    found = _trained(name)
    return Sample(name, copy.deepcopy(found.model), list(found.batches))


@pytest.fixture
def sample() -> Callable[[str], Sample]:
    """Makes a fresh copy of a network of the zoo by name."""
    return make_sample


@pytest.fixture(params=sorted(MAKERS))
def any_sample(request: pytest.FixtureRequest) -> Sample:
    """Every network of the zoo."""
    return make_sample(request.param)


@pytest.fixture
def forward() -> Callable[[nn.Module, Any], Tensor]:
    """Calls a network as the library does."""
    return run


@pytest.fixture(scope="session")
def digits() -> Any:
    """The trained digits network with 200 calibration images."""
    from benchmarks import networks

    return networks.load("digits", calibration_examples=200)
