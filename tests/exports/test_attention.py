"""What is written for onnxruntime alone: attention in one node, products with the same inputs as one product."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional

import qubo_compress as qc
from qubo_compress.exports.difference import TOLERANCE
from qubo_compress.menu.cast import Cast
from qubo_compress.menu.keep import Keep
from qubo_compress.menu.operator import Operator
from qubo_compress.menu.quantize import Quantize
from tests.exports.networks import WIDTH, rows, unusual
from tests.exports.plans import compressed

HEADS = 4
LAYERS = ("query", "key", "value", "output")
BIASED = LAYERS


class Mixing(nn.Module):
    """Attention as most language models write it.

    Args:
        causal: whether positions see those before them only.
        masked: whether a mask says so.
        biased: the layers that have a bias.
    """

    def __init__(self, causal: bool = False, masked: bool = False, biased: tuple[str, ...] = BIASED) -> None:
        super().__init__()
        self.causal, self.masked = causal, masked
        for name in LAYERS:
            self.add_module(name, nn.Linear(WIDTH, WIDTH, bias=name in biased))

    def forward(self, inputs: Tensor) -> Tensor:
        parts = [layer(inputs) for layer in (self.query, self.key, self.value)]
        heads = [part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in parts]
        mask = torch.ones(inputs.shape[1], inputs.shape[1], dtype=torch.bool).tril() if self.masked else None
        mixed = functional.scaled_dot_product_attention(*heads, attn_mask=mask, is_causal=self.causal)
        return self.output(mixed.transpose(1, 2).flatten(2))


class Several(nn.Module):
    """Networks side by side on the same inputs."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(inputs) for part in self.parts)


class Alone(nn.Module):
    """torch's attention of the inputs to themselves."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs, inputs, inputs, need_weights=False)[0]


class Shifted(nn.Module):
    """A network on other inputs than its neighbours'."""

    def __init__(self, number: int, net: nn.Module) -> None:
        super().__init__()
        self.number, self.net = number, net

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs * (1.0 + self.number))


def written(net: nn.Module, path: Path, choice: Callable[[str], Operator]) -> Counter[str]:
    """How many nodes of every kind a file has; it computes what the network does for other batches and lengths, too."""
    inputs = rows(30, WIDTH).reshape(5, 6, WIDTH)
    small, _ = compressed(unusual(net), lambda group: choice(group.name))
    found = qc.export(small, path, inputs, runtime="onnxruntime", dynamic=(0, 1), packed_products=True)
    assert found.largest_difference <= TOLERANCE
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    running = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for part in (inputs[:1, :1], inputs[:3, :4]):
        with torch.no_grad():
            wanted = small(part)
        for one, want in zip(running.run(None, {running.get_inputs()[0].name: part.numpy()}), wanted, strict=True):
            assert np.abs(one - want.numpy()).max() <= 0.1 * want.abs().max()  # inputs are rounded to 8 bits
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_attention_in_heads_without_a_mask_is_one_node(tmp_path: Path) -> None:
    plain = Several([Mixing(), Mixing(causal=True)])
    nodes = written(plain, tmp_path / "plain.onnx", lambda name: Quantize(8) if name.endswith("weight") else Keep())
    assert nodes["Attention"] == 2 and not {"Softmax", "Transpose", "Reshape"} & set(nodes)


def test_attention_with_a_mask_or_another_order_of_axes_is_written_as_by_torch(tmp_path: Path) -> None:
    others = Several([Mixing(masked=True), Alone(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True))])
    nodes = written(others, tmp_path / "others.onnx", lambda name: Keep())
    assert nodes["Attention"] == 0 and nodes["Softmax"] == 2


CASES = [  # bits of query, key and value; which have a bias; the form of the bias; how many products and sums are left
    ((4, 4, 4), BIASED, Keep(), 2, 1),
    ((4, 4, 4), BIASED, Cast(16), 2, 1),
    ((4, 4, 4), BIASED, Cast(8), 2, 1),
    ((4, 4, 4), ("output",), Keep(), 2, 1),
    ((4, 8, 4), BIASED, Keep(), 3, 2),
    ((4, 4, 4), ("query", "value"), Keep(), 3, 0),
    ((2, 4, 8), (), Keep(), 4, 0),
]


def test_products_of_one_width_with_the_same_inputs_are_one(tmp_path: Path) -> None:
    def choice(name: str) -> Operator:
        _, case, _, layer, kind = name.split(".")
        bits, _, vectors, _, _ = CASES[int(case)]
        widths = dict(zip(LAYERS, (*bits, 8), strict=True))
        return Quantize(widths[layer]) if kind == "weight" else vectors

    # Each has inputs of its own, so that only its own products can be joined.
    nets = Several([Shifted(number, Mixing(biased=case[1])) for number, case in enumerate(CASES)])
    nodes = written(nets, tmp_path / "net.onnx", choice)
    assert nodes["MatMulNBits"] == sum(case[3] for case in CASES)
    assert nodes["Add"] == sum(case[4] for case in CASES)
