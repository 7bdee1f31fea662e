"""A network of your own, trained in a plain loop of PyTorch, then compressed: python examples/plain_loop.py.

It learns pictures of clothes from the 1,000 examples that ship with the package, and is tested on 1,000 others.
"""

from __future__ import annotations

import torch
from torch import nn

import qubo_compress as qc


def train(network: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]], epochs: int) -> nn.Module:
    """Train for some passes over the batches."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=epochs * len(batches))
    network.train()
    for _ in range(epochs):
        for inputs, labels in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs), labels).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def main() -> None:
    """Train, compress, and say what was gained and lost."""
    torch.manual_seed(0)
    examples = qc.example_network()
    network = nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(24, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(432, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    train(network, [*examples.calibration, *examples.validation], epochs=15)

    result = qc.compress(network, examples.calibration, qc.Budget(ratio=8), validation=examples.validation)

    # The test examples took part in nothing so far.
    found = qc.audit(network, result.model, examples.test)
    plan = result.plan
    print(f"gained: {plan.original_bytes:,} bytes became {plan.bytes:,}, {plan.ratio:.1f} times smaller")
    print(
        f"lost: accuracy {found.accuracy_before:.1%} became {found.accuracy_after:.1%} on {found.examples:,} examples"
    )
    print(f"{found.harmful} right answers were lost, {found.repaired} wrong ones became right")


if __name__ == "__main__":
    main()
