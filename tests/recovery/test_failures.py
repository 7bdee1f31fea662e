"""Networks and objectives that fail in a training step: our own error says where, and nothing changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.errors import ForwardFailed
from qubo_compress.testing import same_snapshot, snapshot


class Failing(nn.Module):
    """Fails under gradients, in one of several ways; without them it works."""

    def __init__(self, body: nn.Module, how: str) -> None:
        super().__init__()
        self.body, self.how = body, how

    def forward(self, inputs: Tensor) -> Tensor:
        found = self.body(inputs)
        if torch.is_grad_enabled() and found.requires_grad and self.how == "raises":
            raise ValueError("no training here")
        if torch.is_grad_enabled() and self.how == "numpy":
            return torch.from_numpy(found.numpy())
        if torch.is_grad_enabled() and found.requires_grad and self.how == "in place":
            changed = found.exp()
            with torch.no_grad():
                changed.add_(1.0)
            return changed
        return found


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 3))


def depthwise() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.ReLU6(), nn.Conv2d(3, 6, 1), nn.Flatten(), nn.Linear(216, 3))


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    return nn.Sequential(nn.Flatten(2), nn.Linear(64, 8), layer, nn.Flatten(), nn.Linear(24, 3))


@pytest.mark.parametrize("made", [convolutional, depthwise, transformer])
@pytest.mark.parametrize(
    ("how", "cause", "says"),
    [
        ("raises", ValueError, "the model's forward raised ValueError: no training here"),
        ("numpy", RuntimeError, "forward raised RuntimeError: Can't call numpy"),
        ("in place", RuntimeError, "the backward pass raised RuntimeError.*modified by an inplace operation.*epochs=0"),
    ],
)
def test_a_step_that_fails_is_named(made: Any, how: str, cause: type[Exception], says: str) -> None:
    torch.manual_seed(0)
    net = Failing(made(), how).eval()
    data = [(torch.randn(12, 3, 8, 8), torch.arange(12) % 3)]
    menu = qc.Menu(bits=(4,), sparsity=(0.0,), vector_bits=())
    table = qc.measure(net, data, menu, "magnitude", progress=False)
    weight = next(name for name in table.group_names if name.endswith("weight"))
    small = table.plan({weight: "quantize(bits=4)"}).apply(net)
    before = snapshot(net), snapshot(small)
    with pytest.raises(ForwardFailed, match=rf"(?s)in step 1 of 2 of fine-tuning.*{says}") as raised:
        qc.recover(small, data, net, epochs=2, progress=False)
    assert isinstance(raised.value.__cause__, cause)
    assert same_snapshot(before[0], snapshot(net)) and same_snapshot(before[1], snapshot(small))
    assert qc.recover(small, data, net, progress=False) is not small
