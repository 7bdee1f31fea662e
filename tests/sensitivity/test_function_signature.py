"""A cache answers for one function: what the network and the loss return, whatever their weights and code look like."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import qubo_compress as qc
from qubo_compress import errors
from qubo_compress.sensitivity.function_signature import same_function

MENU = qc.Menu(bits=(2, 4), sparsity=(0.0,), vector_bits=())
ELSEWHERE = {"scale": 1.0}


class Tempered(nn.Module):
    """A temperature in an attribute and a mask in a buffer that is not stored."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(24, 3),
        )  # fmt: skip
        self.temperature = 1.0
        self.register_buffer("mask", torch.ones(3), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.body(inputs) * self.mask / self.temperature


def data() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(12, 2, 6, 6, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3)]


def table_of(net: nn.Module, cache: Path, loss: object = "cross-entropy") -> qc.SensitivityTable:
    return qc.measure(net.eval(), data(), menu=MENU, loss=loss, cache=cache, progress=False)


def activation(net: Tempered) -> None:
    net.body[2] = nn.Tanh()


def stride(net: Tempered) -> None:
    net.body[0].stride = (2, 2)


def epsilon(net: Tempered) -> None:
    net.body[1].eps = 0.1


def temperature(net: Tempered) -> None:
    net.temperature = 2.0


def mask(net: Tempered) -> None:
    net.mask[0] = 0.5


@pytest.mark.parametrize("change", [activation, stride, epsilon, temperature, mask])
def test_another_network_of_the_same_weights_is_refused(change: Callable[[Tempered], None], tmp_path: Path) -> None:
    first = table_of(Tempered(), tmp_path)
    again = table_of(Tempered(), tmp_path)
    assert again.provenance.resumed > 0
    assert (again.linear == first.linear).all()
    other = Tempered()
    change(other)
    with pytest.raises(errors.CacheMismatch, match="returned something else on these examples"):
        table_of(other, tmp_path)


def scaled(outputs: Tensor, targets: Tensor) -> Tensor:
    return ELSEWHERE["scale"] * functional.cross_entropy(outputs, targets, reduction="none")


def test_a_loss_that_looks_elsewhere_is_refused_once_that_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table_of(Tempered(), tmp_path, scaled)
    assert table_of(Tempered(), tmp_path, scaled).provenance.resumed > 0
    monkeypatch.setitem(ELSEWHERE, "scale", 3.0)
    with pytest.raises(errors.CacheMismatch, match="a network or a loss"):
        table_of(Tempered(), tmp_path, scaled)


def test_other_threads_are_the_same_function(tmp_path: Path) -> None:
    table_of(Tempered(), tmp_path)
    torch.set_num_threads(2)
    try:
        assert table_of(Tempered(), tmp_path).provenance.resumed > 0
    finally:
        torch.set_num_threads(1)


def test_a_source_tree_that_was_never_installed_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    table_of(Tempered(), tmp_path)
    assert json.loads((tmp_path / "signature.json").read_text())["version"] == "not installed"


def test_caches_of_other_versions_are_refused(tmp_path: Path) -> None:
    table_of(Tempered(), tmp_path)
    path = tmp_path / "signature.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": "0.0.1"}))
    with pytest.raises(errors.CacheMismatch, match="another version"):
        table_of(Tempered(), tmp_path)


def test_what_is_no_signature_is_of_no_function() -> None:
    right = {"outputs": np.ones((2, 4)), "losses": np.ones(2), "tolerance": np.array(1e-4)}
    assert same_function(right, right)
    for change in (
        {"tolerance": np.array(1e9)}, {"tolerance": np.ones(2)}, {"tolerance": np.array("a")},
        {"tolerance": np.array(float("nan"))}, {"losses": np.array(["a", "b"])}, {"more": np.ones(1)},
        {"outputs": np.ones((2, 4), dtype=int)}, {"losses": np.ones(3)},
    ):  # fmt: skip
        assert not same_function({**right, **change}, right)
    assert not same_function({"losses": np.ones(2)}, right)
