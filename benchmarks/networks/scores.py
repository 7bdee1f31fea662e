"""How a network does on every single test example, beside the network that it was made from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.networks.loading import Batches


@dataclass(frozen=True)
class TestScore:
    """How a network does on each test example; for text an example is a window, and its figures are means over tokens.

    Attributes:
        losses: (N,) float64 cross-entropy.
        correct: (N,) float64, share of right answers.
        divergences: (N,) float64 KL divergence from the original's answers, zeros for the original itself.
        logits: (rows, classes) of all examples one below the other.
    """

    losses: Tensor
    correct: Tensor
    divergences: Tensor
    logits: Tensor

    def means(self) -> dict[str, float]:
        """Means over the examples; the accuracy in per cent."""
        accuracy = 100 * self.correct.mean().item()
        return {"loss": self.losses.mean().item(), "accuracy": accuracy, "divergence": self.divergences.mean().item()}


@torch.no_grad()
def score(model: nn.Module, test: Batches, reference: Tensor | None = None) -> TestScore:
    """Score a network in eval mode on test examples; `reference` are the original's logits."""
    logits = torch.cat([model(inputs).flatten(0, -2) for inputs, _ in test])
    targets = torch.cat([answers for _, answers in test])

    def per_example(rows: Tensor) -> Tensor:
        return rows.double().view(len(targets), -1).mean(1)

    ours = logits.log_softmax(1)
    theirs = ours if reference is None else reference.log_softmax(1)
    return TestScore(
        losses=per_example(functional.nll_loss(ours, targets.flatten(), reduction="none")),
        correct=per_example(logits.argmax(1) == targets.flatten()),
        divergences=per_example((theirs.exp() * (theirs - ours)).sum(1)),
        logits=logits,
    )
