"""README's ten lines, in an environment that has the installed package and nothing of this repository."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import torch

import qubo_compress as qc

README = Path(__file__).resolve().parents[2] / "README.md"


def ten_lines() -> str:
    """The code below README's heading "Ten lines"."""
    found = re.search(r"^## Ten lines\n+```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)
    assert found is not None, f"no ten lines in {README}"
    return found[1]


def accuracy(model: torch.nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """In percent."""
    with torch.inference_mode():
        right = [int((model(inputs).argmax(1) == labels).sum()) for inputs, labels in batches]
    return 100.0 * sum(right) / sum(len(labels) for _, labels in batches)


def main() -> None:
    """Run them, and check what they leave."""
    assert Path(sys.prefix) in Path(qc.__file__).parents, f"{qc.__file__} is not the installed package"
    found: dict[str, Any] = {}
    exec(compile(ten_lines(), str(README), "exec"), found)
    network, result, size, small = found["network"], found["result"], found["size"], found["net"]
    assert size == Path("small.safetensors").stat().st_size == result.plan.bytes
    assert size * 8 <= result.plan.original_bytes
    inputs = network.test[0][0]
    with torch.inference_mode():
        torch.testing.assert_close(small(inputs), result.model(inputs), rtol=0, atol=0)
    assert Path("report.html").stat().st_size > 10_000
    before, after = accuracy(network.model, network.test), accuracy(small, network.test)
    assert after > before - 20, (before, after)
    print(f"{result.plan.original_bytes:,} -> {size:,} bytes, accuracy {before:.1f} -> {after:.1f} %")


if __name__ == "__main__":
    main()
