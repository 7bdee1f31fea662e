"""The shipped network is trained, comes with its examples, and is a network where choosing matters."""

from __future__ import annotations

import torch

import qubo_compress as qc
from qubo_compress.example import ExampleCNN


def accuracy(model: torch.nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    with torch.inference_mode():
        right = [int((model(inputs).argmax(1) == labels).sum()) for inputs, labels in batches]
    return sum(right) / sum(len(labels) for _, labels in batches)


def test_the_shipped_network_is_trained_and_its_parts_differ() -> None:
    network = qc.example_network()
    assert isinstance(network.model, ExampleCNN) and not network.model.training
    parts = {"calibration": network.calibration, "validation": network.validation, "test": network.test}
    assert {part: sum(len(labels) for _, labels in batches) for part, batches in parts.items()} == {
        "calibration": 500, "validation": 500, "test": 1_000,
    }  # fmt: skip
    assert all(accuracy(network.model, batches) > 0.85 for batches in parts.values())
    pictures = torch.cat([inputs for batches in parts.values() for inputs, _ in batches]).flatten(1)
    assert pictures.dtype == torch.float32 and 1_950 <= len(pictures.unique(dim=0)) <= 2_000
    assert abs(float(pictures.mean())) < 0.1 and abs(float(pictures.std()) - 1) < 0.1


def test_every_call_reads_another_network() -> None:
    first, second = qc.example_network(), qc.example_network()
    with torch.no_grad():
        first.model.classifier.weight.zero_()
    assert float(second.model.classifier.weight.detach().abs().sum()) > 0


def test_the_docstrings_count_its_parameters() -> None:
    model = ExampleCNN()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    layers = sum(isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)) for module in model.modules())
    assert f"{parameters:,} parameters" in (qc.example_network.__doc__ or "")
    assert f"{parameters:,} parameters in {layers} layers" in (ExampleCNN.__doc__ or "")
