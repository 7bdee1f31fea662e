"""Which products an ONNX file packs by default, and the names in it."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.menu.keep import Keep
from qubo_compress.menu.quantize import Quantize
from tests.exports.kernels import optimised
from tests.exports.networks import unusual
from tests.exports.plans import compressed


def test_linear_layers_are_packed_from_the_width_on_from_which_it_pays(tmp_path: Path) -> None:
    net = unusual(nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 255)))
    small, _ = compressed(net, lambda group: Quantize(4) if group.kind == "weight" else Keep())
    inputs = torch.randn(4, 256, generator=torch.Generator().manual_seed(3))
    sizes = {}
    for packed, count in ((None, 1), (True, 2), (False, 0)):
        found = qc.export(small, tmp_path / "net.onnx", inputs, packed_products=packed)
        assert optimised(tmp_path / "net.onnx").count("MatMulNBits") == count
        sizes[packed] = found.nbytes
        if packed is None:
            assert [one.faster for one in found.tensors if one.name == "0.weight"] == ["onnxruntime, one row at a time"]
    assert max(sizes.values()) < 1.02 * min(sizes.values())
    with pytest.raises(qc.errors.InvalidOption, match="packed_products"):
        qc.export(small, tmp_path / "net.onnx", inputs, packed_products="wide")


class Mapped(nn.Module):
    """A classifier as Hugging Face's: keyword inputs, and a mapping as its output."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(20, 6), nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor | None]:
        mixed = self.tokens(input_ids) * attention_mask[..., None]
        return {"loss": None, "logits": self.head(mixed.sum(1)), "hidden": mixed}


def test_inputs_outputs_and_free_axes_have_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small, _ = compressed(unusual(Mapped()), Quantize(4))
    given = {"input_ids": torch.arange(15).reshape(3, 5), "attention_mask": torch.ones(3, 5)}
    with caplog.at_level("WARNING"):
        qc.export(small, tmp_path / "net.onnx", given, dynamic=(0, 1))
    assert not [one for one in caplog.records if one.name.startswith("onnx")]
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    length = "input_ids_axis_1"
    assert [(one.name, one.shape) for one in session.get_inputs()] == [(name, ["batch", length]) for name in given]
    assert [(one.name, one.shape) for one in session.get_outputs()] == [
        ("logits", ["batch", 3]),
        ("hidden", ["batch", length, 6]),
    ]
