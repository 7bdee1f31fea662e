"""A network of timm or torchvision: python examples/image_classifier.py.

Needs ``pip install timm`` or ``pip install torchvision``. Nothing is downloaded: the network starts from random weights
and learns the 1,000 pictures of clothes that ship with the package for a moment. With ``pretrained=True`` and pictures
of your own, the part from ``qc.compress`` on stays the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import qubo_compress as qc

Batches = list[tuple[Tensor, Tensor]]


def named_network() -> tuple[str, nn.Module] | None:
    """A small residual network of whichever package is there."""
    try:
        import timm
    except ImportError:
        try:
            import torchvision
        except ImportError:
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
        print("skipped: neither timm nor torchvision is installed; run: pip install timm")
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
    print(f"{audit.harmful} right answers were lost, {audit.repaired} wrong ones repaired")


if __name__ == "__main__":
    main()
