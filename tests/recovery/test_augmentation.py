"""Fine-tuning on inputs that are changed anew in every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.errors import InvalidBatches, InvalidBudget


@pytest.fixture
def small() -> tuple[nn.Module, nn.Module, list[Any]]:
    """A compressed perceptron, the original and its examples."""
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    data = [(torch.randn(40, 6), torch.arange(40) % 3)]
    table = qc.measure(net, data, menu=qc.Menu(bits=(3,), sparsity=(0.0,)), progress=False)
    return table.plan(qc.solve(table.problem(qc.Budget(ratio=1)), time_limit=1)).apply(net), net, data


def recovered(
    case: tuple[nn.Module, nn.Module, list[Any]], augment: Callable[[Any], Any] | None, seed: int = 0
) -> Tensor:
    network, net, data = case
    found = qc.recover(network, data, teacher=net, epochs=3, seed=seed, augment=augment, progress=False)
    return torch.cat([tensor.flatten().float() for tensor in found.state_dict().values()])


def noisy(inputs: Tensor) -> Tensor:
    return inputs + 0.3 * torch.randn_like(inputs)


def test_both_networks_see_the_new_inputs_and_the_seed_repeats_them(
    small: tuple[nn.Module, nn.Module, list[Any]],
) -> None:
    seen = []

    def noted(inputs: Tensor) -> Tensor:
        seen.append(inputs.clone())
        return noisy(inputs)

    state = torch.random.get_rng_state()
    found = recovered(small, noted)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sum(len(batch) for batch in seen) % (3 * 40) == 0
    assert torch.equal(found, recovered(small, noisy))
    assert not torch.equal(found, recovered(small, None))
    assert not torch.equal(found, recovered(small, noisy, seed=1))


def test_the_original_answers_for_the_new_inputs(small: tuple[nn.Module, nn.Module, list[Any]]) -> None:
    network, net, data = small
    goals = []

    def noting(found: Tensor, goal: Tensor, labels: Tensor | None) -> Tensor:
        goals.append(goal)
        return (found - goal).square().sum(1)

    qc.recover(network, data, teacher=net, epochs=1, objective=noting, augment=torch.zeros_like, progress=False)
    with torch.no_grad():
        wanted = net(torch.zeros(1, 6))
    assert any(torch.allclose(goal, wanted.expand_as(goal), atol=1e-5) for goal in goals)


@pytest.mark.parametrize(
    "wrong", [lambda x: x[:-1], lambda x: (x,), lambda x: x.numpy()], ids=["fewer", "tuple", "array"]
)
def test_inputs_of_another_form_are_refused(
    small: tuple[nn.Module, nn.Module, list[Any]], wrong: Callable[[Tensor], Any]
) -> None:
    with pytest.raises(InvalidBatches, match="as many examples"):
        recovered(small, wrong)


def test_augmentation_needs_epochs(small: tuple[nn.Module, nn.Module, list[Any]]) -> None:
    network, net, data = small
    with pytest.raises(InvalidBudget, match="augment"):
        qc.recover(network, data, teacher=net, augment=noisy, progress=False)
