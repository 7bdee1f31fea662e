"""A network of timm or torchvision: python examples/image_classifier.py.

Needs ``pip install timm`` or ``pip install torchvision``. Nothing is downloaded: the network starts from random weights
and learns the 1,000 pictures of clothes that ship with the package for a moment. With ``pretrained=True`` and pictures
of your own, the part from ``qc.compress`` on stays the same. The accuracy printed here means nothing absolute: the
network has seen 1,000 small pictures for a few seconds. What counts is how little it changes.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch
from torch import Tensor, nn

import qubo_compress as qc

Batches = list[tuple[Tensor, Tensor]]


def imported(name: str) -> ModuleType | None:
    """A package; None where it is missing, or built for another torch, which its import says with a RuntimeError."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as cause:
        print(f"no {name}: {str(cause).splitlines()[0]}", file=sys.stderr)
        return None


def named_network() -> tuple[str, nn.Module] | None:
    """A small residual network of whichever package is there."""
    timm, torchvision = (imported(name) for name in ("timm", "torchvision"))
    if timm is None:
        if torchvision is None:
            return None
        network = torchvision.models.resnet18(num_classes=10)
        network.conv1 = nn.Conv2d(1, 64, 3, padding=1, bias=False)  # pictures of one colour, and small
        return f"torchvision {torchvision.__version__}, resnet18", network
    return f"timm {timm.__version__}, resnet10t", timm.create_model("resnet10t", in_chans=1, num_classes=10)


def enlarged(batches: Batches) -> Batches:
    """The pictures at 28 x 28: these networks halve their inputs five times."""
    return [(nn.functional.interpolate(inputs, size=28, mode="bilinear"), labels) for inputs, labels in batches]


def train(network: nn.Module, batches: Batches, epochs: int) -> None:
    """Train for some passes over the batches."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    network.train()
    for _ in range(epochs):
        for inputs, labels in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs), labels).backward()
            optimizer.step()
    network.eval()


def main() -> None:
    """Train, compress, and say what was gained and lost."""
    torch.manual_seed(0)
    found = named_network()
    if found is None:
        print("skipped: neither timm nor torchvision can be imported; run: pip install timm")
        return
    name, network = found
    examples = qc.example_network()
    calibration, validation, test = (
        enlarged(part) for part in (examples.calibration, examples.validation, examples.test)
    )
    train(network, [*calibration, *validation], epochs=4)

    menu = qc.Menu(bits=(2, 3, 4, 8), sparsity=(0.0, 0.5))
    result = qc.compress(network, calibration, qc.Budget(ratio=10), validation=validation, menu=menu, max_examples=200)

    audit = qc.audit(network, result.model, test)
    plan = result.plan
    print(f"{name}, {plan.parameters / 1e6:.1f} M parameters")
    print(f"gained: {plan.original_bytes:,} bytes became {plan.bytes:,}, {plan.ratio:.1f} times smaller")
    print(
        f"lost: accuracy {audit.accuracy_before:.1%} became {audit.accuracy_after:.1%} on {audit.examples:,} examples"
    )
    print(f"{audit.harmful} right answers were lost, {audit.repaired} wrong ones became right")


if __name__ == "__main__":
    main()
