"""ONNX files: every operator on every kind of layer, in onnxruntime and OpenVINO, in the bytes it should take."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import qubo_compress as qc
from benchmarks.networks.attention import ByteGPT
from qubo_compress.errors import ExportRefused
from qubo_compress.exports.difference import TOLERANCE
from qubo_compress.menu.cast import Cast
from qubo_compress.menu.compensation.compensate import Compensate
from qubo_compress.menu.fold import Fold
from qubo_compress.menu.keep import Keep
from qubo_compress.menu.low_rank.svd import Svd
from qubo_compress.menu.operator import Operator
from qubo_compress.menu.quantize import Quantize
from qubo_compress.testing import registered_samples
from tests.exports.kernels import optimised
from tests.exports.networks import (
    WIDTH,
    Attentions,
    Convolutions,
    Side,
    Slices,
    Tables,
    Tied,
    pictures,
    rows,
    texts,
    unusual,
)
from tests.exports.plans import compressed

SAMPLES = [one for one in registered_samples() if not one.activation_bits]  # these have a test of their own
VECTORS = ("cast", "fold")
WEIGHTS = [one for one in SAMPLES if one.operator_name not in VECTORS]
KINDS = list({one.operator_name: one for one in reversed(WEIGHTS)}.values())
"""One sample of every operator on weights."""


VECTOR_SAMPLES = [one for one in SAMPLES if one.operator_name in VECTORS]


def side_by_side(axes: int, groups: int, count: int, kernel: int = 3) -> Side:
    """Convolutions, one for every operator; every other one has a normalisation behind it."""
    convolution, normalisation = (
        (nn.Conv1d, nn.BatchNorm1d),
        (nn.Conv2d, nn.BatchNorm2d),
        (nn.Conv3d, nn.BatchNorm3d),
    )[axes - 1]
    layers = [convolution(6, 6, kernel, padding=1, groups=groups, bias=n % 3 > 0) for n in range(count)]
    return Side(layers, [normalisation(6) for _ in range(count // 2)])


ALL, FEW = len(WEIGHTS), len(KINDS)
CASES: dict[str, tuple[Any, Any, list[Operator]]] = {
    "Conv1d": (lambda: side_by_side(1, 1, FEW, kernel=5), lambda: pictures(1, size=11, channels=6), KINDS),
    "Conv2d": (lambda: side_by_side(2, 1, ALL), lambda: pictures(2, size=5, channels=6), WEIGHTS),
    "depthwise": (lambda: side_by_side(2, 6, FEW), lambda: pictures(2, size=5, channels=6), KINDS),
    "Conv3d": (lambda: side_by_side(3, 2, FEW), lambda: pictures(3, size=4, channels=6), KINDS),
    "Linear": (lambda: Slices([(24 + n, 10 + n) for n in range(ALL)]), lambda: rows(5, 99), WEIGHTS),
    "Embedding": (lambda: Tables([(10 + n, 20 + n) for n in range(FEW)]), lambda: texts(), KINDS),
    "attention": (lambda: Attentions(FEW // 2), lambda: rows(30, WIDTH).reshape(5, 6, WIDTH), KINDS),
}


def by_openvino(path: Path, inputs: Tensor) -> list[np.ndarray]:
    """What OpenVINO computes in float32 arithmetic."""
    core = openvino.Core()
    exactly = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    running = core.compile_model(core.read_model(path), "CPU", exactly)
    found = running([inputs.numpy()])
    return [np.asarray(found[number]) for number in range(len(running.outputs))]


def by_onnxruntime(path: Path, inputs: Tensor) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    running = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [np.asarray(one) for one in running.run(None, {running.get_inputs()[0].name: inputs.numpy()})]


@pytest.mark.parametrize("case", CASES)
def test_every_operator_computes_the_same_in_other_programs(case: str, tmp_path: Path) -> None:
    build, given_inputs, samples = CASES[case]
    net, inputs = unusual(build()), given_inputs()
    turns = {"weight": iter(samples), "vector": iter(100 * VECTOR_SAMPLES)}
    small, _ = compressed(net, lambda group: next(turns["weight" if group.kind == "weight" else "vector"]))
    with torch.no_grad():
        wanted = [one.numpy() for one in small(inputs)]
    path = tmp_path / "net.onnx"
    found = qc.export(small, path, inputs, runtime="openvino")
    assert found.largest_difference <= TOLERANCE and found.nbytes == path.stat().st_size
    for number, (one, want) in enumerate(zip(by_openvino(path, inputs[:2]), wanted, strict=True)):
        assert np.abs(one - want[:2]).max() <= TOLERANCE * np.abs(want).max(), f"output {number}"


PACKED = {2: "int2", 3: "int4", 4: "int4", 5: "int8", 6: "int8", 7: "int8", 8: "int8", 9: "int16", 16: "int16"}
Shapes = list[tuple[int, int, int]]


def some(most_rows: int, most_columns: int) -> st.SearchStrategy[Shapes]:
    """Rows, columns and bits of six weights."""
    one = st.tuples(st.integers(1, most_rows), st.integers(1, most_columns), st.sampled_from(sorted(PACKED)))
    return st.lists(one, min_size=6, max_size=6)


def form_of(bits: int, runtime: str | None) -> str:
    return "int4" if runtime == "openvino" and bits == 2 else PACKED[bits]


fast = settings(deadline=None, max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fast
@given(shapes=some(70, 40), runtime=st.sampled_from([None, "onnxruntime", "openvino"]))
def test_linear_layers_of_any_shape(tmp_path: Path, shapes: Shapes, runtime: str | None) -> None:
    net, inputs = unusual(Slices([shape[:2] for shape in shapes])), rows(4, 70)
    bits = iter(shape[2] for shape in shapes)
    small, _ = compressed(net, lambda group: Quantize(next(bits)) if group.kind == "weight" else Keep())
    path = tmp_path / "net.onnx"
    found = qc.export(small, path, inputs, runtime=runtime, packed_products=True)
    assert found.largest_difference <= TOLERANCE
    assert [one.shape for one in by_onnxruntime(path, inputs[:3])] == [(3, shape[1]) for shape in shapes]
    for number, (ins, outs, width) in enumerate(shapes):
        held = next(one for one in found.tensors if one.name == f"layers.{number}.weight")
        # Codes may need fewer bits than they have, if there are few of them.
        assert int(held.form[3:]) <= int(form_of(width, runtime)[3:])
        assert ins * outs < 200 or held.form == form_of(width, runtime)
        if runtime != "onnxruntime":
            assert held.nbytes == -(-ins * outs * int(held.form[3:]) // 8) + 4 * outs


@fast
@given(shapes=some(20, 19), runtime=st.sampled_from([None, "openvino"]))
def test_embeddings_of_any_shape(tmp_path: Path, shapes: Shapes, runtime: str | None) -> None:
    net, picked = unusual(Tables([shape[:2] for shape in shapes])), texts(3, 4)
    bits = iter(shape[2] for shape in shapes)
    small, _ = compressed(net, lambda group: Quantize(next(bits)))
    path = tmp_path / "tables.onnx"
    found = qc.export(small, path, picked, runtime=runtime, dynamic=(0, 1))
    assert found.largest_difference <= 1e-6
    with torch.no_grad():
        wanted = [one.numpy() for one in small(picked[:, :1])]
    for one, want in zip(by_openvino(path, picked[:, :1]), wanted, strict=True):
        assert np.allclose(one, want, rtol=1e-6, atol=1e-7)
    for number, (count, width, _) in enumerate(shapes):
        held = next(one for one in found.tensors if one.name == f"layers.{number}.weight")
        each = 8 // min(8, int(held.form[3:]))
        row = -(-width // each) if each > 1 else width * int(held.form[3:]) // 8
        assert held.nbytes == count * (row + 4)


def test_the_file_is_hardly_larger_than_its_packed_tensors(tmp_path: Path) -> None:
    """At most 3 % above codes of the next wider integers, steps of 4 bytes, biases, and the graph."""
    net = unusual(Convolutions(64))
    small, compression = compressed(net, lambda group: Quantize(3) if group.kind == "weight" else Fold(16))
    found = qc.export(small, tmp_path / "net.onnx", pictures(2))
    weights = [group.members[0].shape for group in compression.layout.groups if group.kind == "weight"]
    ideal = sum(torch.Size(shape).numel() / 2 + 4 * shape[0] for shape in weights) + 4 * (64 + 64 + 64 + 128 + 5)
    assert found.nbytes <= 1.03 * (ideal + found.graph_bytes)
    assert found.graph_bytes < 3000


def test_packed_products_are_those_that_onnxruntime_has_kernels_for(tmp_path: Path) -> None:
    net = unusual(nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)))
    inputs = torch.randn(64, 96, generator=torch.Generator().manual_seed(3))
    bits = iter((2, 0, 4, 0, 8, 0))
    small, _ = compressed(net, lambda group: Quantize(next(bits) or 8))
    for runtime in (None, "onnxruntime"):
        found = qc.export(small, tmp_path / "net.onnx", inputs, runtime=runtime, packed_products=True)
        assert optimised(tmp_path / "net.onnx").count("MatMulNBits") == 3
        assert found.agreement >= 0.85  # random logits of 32 classes are close
        assert [one.faster for one in found.tensors].count("nowhere: slower than in floating point") == 3
    assert [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node].count("MatMulNBits") == 3


def test_without_packed_products_nothing_is_unpacked_at_a_run(tmp_path: Path) -> None:
    net = unusual(nn.Sequential(nn.Conv2d(3, 40, 3), nn.Flatten(), nn.Linear(1000, 30)))
    small, _ = compressed(net, lambda group: Quantize(4) if group.kind == "weight" else Keep())
    found = qc.export(small, tmp_path / "net.onnx", pictures(2), packed_products=False)
    assert set(optimised(tmp_path / "net.onnx")) <= {
        "Conv",
        "Reshape",
        "Flatten",
        "Gemm",
        "MatMul",
        "Sub",
        "ReorderOutput",
    }
    assert found.nbytes < found.float_bytes / 6 and found.agreement == 1.0


def test_normalisations_behind_convolutions_take_no_node(tmp_path: Path) -> None:
    net = unusual(Convolutions(160))
    mixed: dict[str, Operator] = {"weight": Quantize(4), "bias": Cast(16), "normalisation": Fold(16)}
    small, _ = compressed(net, lambda group: mixed[group.kind])
    found = qc.export(small, tmp_path / "net.onnx", pictures(2), runtime="openvino")
    operators = [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]
    assert "BatchNormalization" not in operators and operators.count("Conv") == 3
    forms = {one.name: one.form for one in found.tensors if one.name.startswith("norm1")}
    assert forms == {"norm1.bias": "float16"}  # the stored shift is the convolution's bias, as it is stored


def test_masks_and_sizes_are_computed_once(tmp_path: Path) -> None:
    net = unusual(ByteGPT(width=16, depth=3, heads=2, context=8))
    small, _ = compressed(net, Quantize(8))
    qc.export(small, tmp_path / "net.onnx", texts(2, 6), dynamic=(0, 1))
    operators = [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]
    assert operators.count("Trilu") == 1 and operators.count("Shape") <= 3 and "Slice" not in operators
    with torch.no_grad():
        want = small(texts(3, 4)).numpy()
    assert np.abs(by_openvino(tmp_path / "net.onnx", texts(3, 4))[0] - want).max() < 1e-4 * np.abs(want).max()


def test_low_rank_layers_are_two_products(tmp_path: Path) -> None:
    net = unusual(nn.Sequential(nn.Linear(60, 50), nn.Tanh()))
    small, _ = compressed(net, Svd(rank=16, bits=4))
    found = qc.export(small, tmp_path / "net.onnx", torch.randn(9, 60), packed_products=True)
    forms = [(one.form, one.nbytes) for one in found.tensors if one.name == "0.weight"]
    assert len(forms) == 1 and forms[0] == ("int4", 16 * (60 + 50) // 2 + 4 * (16 + 1))
    assert optimised(tmp_path / "net.onnx").count("MatMulNBits") == 2


def test_filters_with_choices_of_their_own_share_one_tensor(tmp_path: Path) -> None:
    net = unusual(nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten(2)))
    widths = iter(range(100))
    small, _ = compressed(net, lambda group: Quantize((2, 3, 4)[next(widths) % 3]), groups="filter")
    found = qc.export(small, tmp_path / "net.onnx", pictures(2), runtime="openvino")
    held = next(one for one in found.tensors if one.name == "0.weight")
    assert held.form == "int4" and held.nbytes == 16 * 27 // 2 + 4 * 16


def test_a_tied_table_is_stored_once(tmp_path: Path) -> None:
    net = unusual(Tied())
    small, _ = compressed(net, Quantize(4))
    for runtime in (None, "onnxruntime"):
        found = qc.export(small, tmp_path / "net.onnx", texts(), runtime=runtime, dynamic=(0, 1))
        assert [one.name for one in found.tensors].count("tokens.weight") == 1
        assert by_onnxruntime(tmp_path / "net.onnx", texts(2, 3))[0].shape == (2, 3, 37)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_networks_of_other_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    net = unusual(nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 3))).to(dtype)
    small, _ = compressed(net, Compensate(bits=4))
    found = qc.export(small, tmp_path / "net.onnx", torch.randn(4, 30).to(dtype))
    assert found.largest_difference <= (1e-2 if dtype == torch.float16 else 1e-6)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs) if inputs.sum() > 0 else inputs


class Noisy(nn.Module):
    """Its outputs depend on more than its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs) + torch.rand_like(inputs)


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs.reshape(2, 4))


class Speaking(Branching):
    def forward(self, inputs: Tensor) -> Tensor:
        print("the network's own words", file=sys.stderr)
        return super().forward(inputs)


def test_torch_prints_no_graph_and_the_network_may_print(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small, _ = compressed(Speaking().eval(), Quantize(4))
    capfd.readouterr()
    before = sys.stderr
    with pytest.raises(ExportRefused, match="cannot trace"):
        qc.export(small, tmp_path / "net.onnx", torch.randn(2, 4))
    assert sys.stderr is before
    written = capfd.readouterr().err
    assert set(written.splitlines()) == {"the network's own words"}


@pytest.mark.parametrize(("net", "reason"), [(Branching(), "cannot trace"), (Noisy(), "differ"), (Fixed(), "batch")])
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(net: nn.Module, reason: str, tmp_path: Path) -> None:
    small, _ = compressed(net.eval(), Quantize(4))
    (tmp_path / "net.onnx").write_text("an older file")
    with pytest.raises(ExportRefused, match=reason):
        qc.export(small, tmp_path / "net.onnx", torch.randn(2, 4))
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert (tmp_path / "net.onnx").read_text() == "an older file"


def changed_afterwards() -> nn.Module:
    small, _ = compressed(nn.Linear(4, 4).eval(), Quantize(4))
    small.weight.data += 1
    return small


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"format": "tflite"}, qc.QuboCompressError),
        ({"runtime": "tensorrt"}, qc.QuboCompressError),
        ({"dynamic": (1,)}, qc.QuboCompressError),
        ({"dynamic": "batch"}, qc.QuboCompressError),
        ({"example_inputs": []}, qc.QuboCompressError),
        ({"example_inputs": torch.zeros(0, 4)}, qc.QuboCompressError),
        ({"example_inputs": "an image"}, qc.QuboCompressError),
        ({"example_inputs": (torch.zeros(1, 4), 3)}, qc.QuboCompressError),
        ({"example_inputs": torch.zeros(2, 5)}, qc.QuboCompressError),
        ({"example_inputs": torch.full((2, 4), torch.nan)}, qc.errors.InvalidBatches),
        ({"model": changed_afterwards()}, qc.errors.WrongModel),
        ({"path": "."}, qc.errors.StorageError),
    ],
)
def test_other_arguments_are_refused(changed: dict[str, Any], error: type[Exception], tmp_path: Path) -> None:
    small, _ = compressed(nn.Linear(4, 4).eval(), Quantize(4))
    arguments = {"model": small, "path": tmp_path / "net.onnx", "example_inputs": torch.zeros(2, 4)} | changed
    with pytest.raises(error):
        qc.export(**arguments)
    assert not list(tmp_path.iterdir())


def test_networks_in_bfloat16_are_refused(tmp_path: Path) -> None:
    small, _ = compressed(nn.Linear(4, 4).to(torch.bfloat16).eval(), Quantize(4))
    with pytest.raises(ExportRefused, match="bfloat16"):
        qc.export(small, tmp_path / "net.onnx", torch.ones(2, 4).bfloat16())
    assert not list(tmp_path.iterdir())


class AnyInputs(nn.Module):
    """A forward that takes its inputs as ``*args``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(5, 6)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.first(inputs[0]) + self.second(inputs[1])


def test_inputs_may_be_any_number_of_arguments(tmp_path: Path) -> None:
    small, _ = compressed(unusual(AnyInputs()), Quantize(4))
    given = rows(3, 4), rows(3, 5)
    assert qc.export(small, tmp_path / "net.onnx", given).largest_difference <= TOLERANCE


def test_two_threads_may_export(tmp_path: Path) -> None:
    small, _ = compressed(unusual(nn.Sequential(nn.Linear(9, 5))), Quantize(4))
    before = torch.backends.mha.get_fastpath_enabled()
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda n: qc.export(small, tmp_path / f"{n}.onnx", rows(2, 9)), range(3)))
    assert [one.nbytes for one in found] == [found[0].nbytes] * 3
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_the_table_says_what_is_stored_and_what_is_faster(tmp_path: Path) -> None:
    small, _ = compressed(unusual(nn.Sequential(nn.Linear(64, 40), nn.Linear(40, 5))), Quantize(3))
    found = qc.export(small, tmp_path / "<net>.onnx", torch.randn(6, 64))
    assert "quantize(bits=3)" in str(found) and "int4" in str(found) and "nowhere" in str(found)
    assert "&lt;net&gt;" in found._repr_html_() and "<net>" not in found._repr_html_()
    assert found.ratio > 2 and found.float_bytes > found.nbytes > found.artifact_bytes


def test_the_difference_of_a_session_with_default_options_is_told(tmp_path: Path) -> None:
    """onnxruntime rounds the inputs of products with packed integers to 8 bits unless it is told not to."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    small, _ = compressed(net, lambda group: Quantize(4) if group.kind == "weight" else Keep())
    inputs = torch.randn(32, 64)
    found = qc.export(small, tmp_path / "net.onnx", inputs, packed_products=True)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    with torch.no_grad():
        wanted = small(inputs).numpy()
    (name,) = (one.name for one in session.get_inputs())
    apart = np.abs(session.run(None, {name: inputs.numpy()})[0] - wanted).max() / np.abs(wanted).max()
    assert found.default_difference == pytest.approx(apart, rel=0.2) and found.largest_difference < 1e-6 < apart
    assert f"{found.default_difference:.1e} with the runtime's defaults" in str(found)
