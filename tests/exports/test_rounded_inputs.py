"""Files of networks with rounded inputs: integer kernels in onnxruntime and OpenVINO, and the answers of PyTorch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.exports.exported import IN_INTEGERS, IN_INTEGERS_OPENVINO, NOWHERE
from qubo_compress.menu.operator import parse

EXAMPLES = 400


class Residual(nn.Module):
    """Convolutions with normalisations, ReLUs and a sum, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.inner, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.outer, self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 16, 1)
        self.hidden, self.head = nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(self.stem(x)))
        hidden = torch.relu(hidden + self.outer(torch.relu(self.second(self.inner(hidden)))))
        return self.head(nn.functional.gelu(self.hidden(torch.relu(self.deep(hidden)).mean((2, 3)))))


class Tokens(nn.Module):
    """Linear layers on three axes, with a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.narrow(nn.functional.gelu(self.wide(x)))).mean(1))


INTEGERS = {"residual": (4, 2), "tokens": (0, 3)}
"""Convolutions and linear layers."""

MAKERS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "residual": lambda: (Residual(), torch.randn(EXAMPLES, 3, 8, 8)),
    "tokens": lambda: (Tokens(), torch.randn(EXAMPLES, 7, 16)),
}


def _rounded(name: str, choice: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net, inputs = MAKERS[name]()
    net = net.eval()
    labels = net(inputs).argmax(1)
    table = qc.measure(
        net, [(inputs[:64], labels[:64])], menu=qc.Menu([choice]), metric="products", interactions=False, progress=False
    )
    name = parse(choice).written
    offered = dict(zip(table.group_names, table.choices, strict=True))
    return table.plan({group: name for group, names in offered.items() if name in names}).apply(net), inputs


def _agreement(found: np.ndarray, small: nn.Module, inputs: Tensor) -> float:
    with torch.no_grad():
        return float((found.argmax(1) == small(inputs).argmax(1).numpy()).mean())


def _kernels(path: Path) -> Counter[str]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(path.with_suffix(".opt")), 3
    onnxruntime.InferenceSession(path, options)
    return Counter(node.op_type for node in onnx.load(path.with_suffix(".opt")).graph.node)


@pytest.mark.parametrize("runtime", [None, "onnxruntime"])
@pytest.mark.parametrize("name", sorted(MAKERS))
def test_both_runtimes_give_the_answers_of_pytorch(name: str, runtime: str | None, tmp_path: Path) -> None:
    small, inputs = _rounded(name, "quantize(bits=8,activations=8)")
    found = qc.export(small, tmp_path / "net.onnx", inputs[:64], runtime=runtime)
    assert found.agreement >= 0.98
    running = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    by_ort = running.run(None, {running.get_inputs()[0].name: inputs.numpy()})[0]
    core = openvino.Core()
    by_openvino = core.compile_model(core.read_model(tmp_path / "net.onnx"), "CPU")(inputs.numpy())[0]
    assert _agreement(by_ort, small, inputs) >= 0.99
    assert _agreement(by_openvino, small, inputs) >= 0.99
    kernels = _kernels(tmp_path / "net.onnx")
    assert kernels["MatMulIntegerToFloat"] == INTEGERS[name][1]
    if runtime == "onnxruntime":
        assert kernels["QLinearConv"] == INTEGERS[name][0]
        assert not any(kernels[floating] for floating in ("Conv", "FusedConv", "MatMul", "Gemm", "MatMulNBits"))


def test_narrow_codes_are_written_in_the_eight_bits_that_kernels_read(tmp_path: Path) -> None:
    small, inputs = _rounded("residual", "quantize(bits=4,activations=8)")
    found = qc.export(small, tmp_path / "net.onnx", inputs[:64], runtime="onnxruntime")
    assert {one.form for one in found.tensors if one.choice.startswith("quantize")} == {"int8"}
    assert _kernels(tmp_path / "net.onnx")["QLinearConv"] == 4


def test_activations_of_four_bits_are_cut_off_and_rounded_in_as_many_levels(tmp_path: Path) -> None:
    small, inputs = _rounded("tokens", "quantize(bits=8,activations=4)")
    qc.export(small, tmp_path / "net.onnx", inputs[:64])
    running = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    found = running.run(None, {running.get_inputs()[0].name: inputs.numpy()})[0]
    with torch.no_grad():
        wanted = small(inputs).numpy()
    assert np.median(np.abs(found - wanted)) <= 0.02 * np.abs(wanted).max()
    assert _agreement(found, small, inputs) >= 0.97


class Kept(nn.Module):
    """A wide convolution, clipped; a layer behind it that is kept in floating point, and a sum of clipped values."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.wide, self.depthwise = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.narrow, self.other, self.head = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)
        self.pool = nn.MaxPool2d(2) if pooled else nn.Identity()
        with torch.no_grad():
            self.wide.weight *= 40  # most of what the convolution gives is cut off
            self.depthwise.weight *= torch.logspace(-2, 1, 16).reshape(16, 1, 1, 1)  # one step does not serve all rows

    def forward(self, x: Tensor) -> Tensor:
        six = nn.functional.relu6
        hidden = self.narrow(six(self.depthwise(self.pool(six(self.wide(x))))))
        return self.head((hidden + six(20 * self.other(hidden))).mean((2, 3)))


@pytest.mark.parametrize("pooled", [False, True])
def test_a_layer_that_is_kept_in_floats_reads_floats(pooled: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, inputs = Kept(pooled).eval(), torch.randn(EXAMPLES, 3, 8, 8)
    choice = "quantize(bits=8,activations=8)"
    batches = [(inputs[:64], net(inputs[:64]).argmax(1))]
    table = qc.measure(net, batches, menu=qc.Menu([choice]), metric="products", interactions=False, progress=False)
    rounded = [group for group in table.group_names if "weight" in group and "depthwise" not in group]
    small = table.plan(dict.fromkeys(rounded, choice)).apply(net)
    qc.export(small, tmp_path / "net.onnx", inputs[:64], runtime="onnxruntime")
    running = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    found = running.run(None, {running.get_inputs()[0].name: inputs.numpy()})[0]
    with torch.no_grad():
        wanted = small(inputs).numpy()
    assert np.linalg.norm(found - wanted) <= 0.02 * np.linalg.norm(wanted)
    assert _agreement(found, small, inputs) >= 0.99
    kernels = _kernels(tmp_path / "net.onnx")
    assert kernels["Conv"] + kernels["FusedConv"] == 2  # the one that was kept, and the one that it reads
    assert kernels["QLinearConv"] == 2


@pytest.mark.parametrize("runtime", [None, "onnxruntime", "openvino"])
def test_the_table_says_that_integers_are_faster(runtime: str | None, tmp_path: Path) -> None:
    small, inputs = _rounded("residual", "quantize(bits=8,activations=8)")
    found = qc.export(small, tmp_path / "net.onnx", inputs[:8], runtime=runtime)
    told = {one.name: one.faster for one in found.tensors if one.name.endswith("weight") and one.form == "int8"}
    wanted = IN_INTEGERS if runtime == "onnxruntime" else IN_INTEGERS_OPENVINO
    assert {name for name, faster in told.items() if faster == IN_INTEGERS} >= {"hidden.weight", "head.weight"}
    assert told["inner.weight"] == told["deep.weight"] == wanted
    assert all(one.faster == NOWHERE for one in found.tensors if one.name.endswith("bias"))
