"""README's first steps in an environment that has the installed package and nothing of this repository."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import qubo_compress as qc


def accuracy(model: torch.nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """In percent."""
    with torch.inference_mode():
        right = [int((model(inputs).argmax(1) == labels).sum()) for inputs, labels in batches]
    return 100.0 * sum(right) / sum(len(labels) for _, labels in batches)


def main() -> None:
    """Compress, save, load, audit, report."""
    assert Path(sys.prefix) in Path(qc.__file__).parents, f"{qc.__file__} is not the installed package"
    network = qc.example_network()
    result = qc.compress(
        network.model, network.calibration, qc.Budget(ratio=10), validation=network.validation, time_limit=2.0
    )
    size = result.save("small.safetensors")
    assert size == Path("small.safetensors").stat().st_size == result.plan.bytes
    assert size * 10 <= result.plan.original_bytes
    small = qc.load("small.safetensors", network.model)
    inputs = network.test[0][0]
    with torch.inference_mode():
        torch.testing.assert_close(small(inputs), result.model(inputs), rtol=0, atol=0)
    report = Path(result.report("report.html"))
    assert report.stat().st_size > 10_000
    before, after = accuracy(network.model, network.test), accuracy(small, network.test)
    assert after > before - 20, (before, after)
    print(f"{result.plan.original_bytes:,} -> {size:,} bytes, accuracy {before:.1f} -> {after:.1f} %")


if __name__ == "__main__":
    main()
