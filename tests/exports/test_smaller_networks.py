"""Networks that lost channels: saved, loaded, exported to every format, compressed again and trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import qubo_compress as qc
from benchmarks.networks.architectures import ResNet20
from benchmarks.networks.attention import ByteGPT, VisionTransformer
from qubo_compress import layers
from qubo_compress.errors import ExportRefused, WrongModel
from tests.exports.networks import unusual

EXAMPLES = 24
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
"""OpenVINO's settings: without them products round their inputs to 8 bits."""

Data = list[tuple[Tensor, Tensor]]
Case = tuple[nn.Module, nn.Module, Data]


class Separable(nn.Module):
    """Depthwise convolutions with a gate per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.depthwise, self.point = nn.Conv2d(6, 12, 3, padding=1, groups=6), nn.Conv2d(12, 8, 1)
        self.squeeze, self.excite = nn.Linear(12, 4), nn.Linear(4, 12)
        self.head = nn.Linear(8 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.depthwise(functional.silu(self.norm(self.stem(x))))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(hidden.mean((2, 3))))))
        hidden = self.point(hidden * gate[:, :, None, None])
        return self.head(functional.avg_pool2d(torch.relu(hidden), 3).flatten(1))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "residual": lambda: (ResNet20(blocks=1), torch.randn(EXAMPLES, 3, 8, 8)),
    "depthwise": lambda: (Separable(), torch.randn(EXAMPLES, 2, 6, 6)),
    "vit": lambda: (VisionTransformer(16, 1, 4, 14), torch.randn(EXAMPLES, 1, 28, 28)),
    "gpt": lambda: (ByteGPT(24, 1, 4, 8), torch.randint(0, 256, (EXAMPLES, 8))),
}


@pytest.fixture(scope="module", params=NETWORKS)
def case(request: pytest.FixtureRequest) -> Case:
    """A network, the same without some channels, and examples."""
    torch.manual_seed(3)
    net, inputs = NETWORKS[request.param]()
    data = [(inputs, inputs.roll(-1, 1) if request.param == "gpt" else torch.arange(EXAMPLES) % 3)]
    table = qc.measure(unusual(net), data, groups="channel", progress=False)
    budget = qc.Budget(ratio=0.5, macs=int(0.7 * table.provenance.multiplications))
    return net, table.plan(qc.solve(table.problem(budget), "greedy", time_limit=2.0)).apply(net), data


def outputs(net: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return net(inputs)


def refuse_difference_elsewhere(path: Path, wanted: Tensor, inputs: Tensor) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(path), options)
    network = openvino.Core().compile_model(str(path), "CPU", EXACT)
    found = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0], network([inputs.numpy()])[0]
    for one in found:
        np.testing.assert_allclose(one, wanted.numpy(), atol=1e-4 * float(wanted.abs().max()), rtol=0)


def test_every_format_holds_it(case: Case, tmp_path: Path) -> None:
    net, small, [(inputs, _)] = case
    assert sum(p.numel() for p in small.parameters()) < 0.9 * sum(p.numel() for p in net.parameters())
    wanted = outputs(small, inputs)
    qc.save(small, tmp_path / "small.safetensors")
    assert torch.equal(outputs(qc.load(tmp_path / "small.safetensors", net), inputs), wanted)
    found = qc.export(small, tmp_path / "small.onnx", inputs)
    assert found.nbytes < 4 * sum(p.numel() for p in small.parameters()) + 40_000
    refuse_difference_elsewhere(tmp_path / "small.onnx", wanted, inputs)
    qc.export(small, tmp_path / "layers.safetensors", inputs, format="torch")
    assert torch.equal(outputs(layers.load(tmp_path / "layers.safetensors", small), inputs), wanted)
    with pytest.raises(WrongModel, match=r"channels were removed .* give the smaller network"):
        layers.load(tmp_path / "layers.safetensors", net)
    assert qc.export(small, tmp_path / "tensors", inputs, format="compressed-tensors").largest_difference < 1e-6


def test_it_is_compressed_again(case: Case, tmp_path: Path) -> None:
    net, small, data = case
    inputs, rounded = data[0][0], isinstance(net, (Separable, VisionTransformer))
    menu = qc.Menu(bits=(3, 8), sparsity=(0.0,))
    menu = menu.with_activations(8, instead=True) if rounded else menu
    table = qc.measure(small, data, menu=menu, progress=False)
    least = table.plan({name: choices[-1] for name, choices in zip(table.group_names, table.choices)}).bytes
    budget = qc.Budget(bytes=int(1.1 * least))
    result = qc.compress(
        small, data, budget, groups="layer", menu=menu, solver="greedy", time_limit=1.0, progress=False, rounds=0
    )
    both = result.model
    assert any(("activations" in choice) == rounded and choice != "keep" for choice in result.plan.choices.values())
    trained = qc.recover(both, data, teacher=net, epochs=1, progress=False)
    for number, made in enumerate((both, trained)):
        wanted = outputs(made, inputs)
        assert qc.save(made, tmp_path / "both.safetensors") == result.plan.bytes
        # The file says what was removed, so the original gives the architecture.
        loaded = qc.load(tmp_path / "both.safetensors", net)
        torch.testing.assert_close(outputs(loaded, inputs), wanted)
        qc.export(loaded, tmp_path / f"{number}.safetensors", inputs, format="torch")
        again = outputs(layers.load(tmp_path / f"{number}.safetensors", small), inputs)
        torch.testing.assert_close(again, wanted)
    found = qc.export(trained, tmp_path / "both.onnx", inputs, runtime="openvino")
    assert found.agreement >= 0.95  # of 24 examples: onnxruntime rounds the inputs of packed products
    if not rounded:
        refuse_difference_elsewhere(tmp_path / "both.onnx", wanted, inputs)
    if rounded or isinstance(net, ResNet20):
        with pytest.raises(ExportRefused, match=r"Linear and Embedding|are rounded"):
            qc.export(trained, tmp_path / "tensors", inputs, format="compressed-tensors")
    else:
        qc.export(trained, tmp_path / "tensors", inputs, format="compressed-tensors")
