"""Tools of other packages on our networks: onnxruntime's static quantization, NNCF, torch-pruning."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import onnxruntime
import openvino
import torch
import torch_pruning
from onnxruntime import quantization
from torch import Tensor, nn

from benchmarks.networks import Batches
from benchmarks.runtimes import AT_ONCE, Running, by_onnxruntime, by_openvino, cross_entropy
from benchmarks.studies.channels import multiplications

CALIBRATORS = ("MinMax", "Entropy", "Percentile")
PRODUCTS = ["Conv", "MatMul", "Gemm"]
SCOPES: dict[str, list[str] | None] = {"all operators": None, "products": PRODUCTS}
"""What onnxruntime's tool rounds; its guide advises products alone for transformers."""

STEPS = 400
"""Of torch-pruning, from no channels removed to nearly all."""


class _Reader(quantization.CalibrationDataReader):
    """Calibration inputs for onnxruntime's tool."""

    def __init__(self, name: str, inputs: np.ndarray) -> None:
        # Histograms need batches of one size.
        size = max(count for count in range(1, AT_ONCE + 1) if len(inputs) % count == 0)
        self._left = iter({name: part} for part in inputs.reshape(-1, size, *inputs.shape[1:]))

    def get_next(self) -> Any:
        return next(self._left, None)


def static_quantization(plain: Path, inputs: np.ndarray, made: Path, calibrator: str, scope: str) -> None:
    """The file of onnxruntime's static quantization: unsigned activations, signed weights by channel."""
    prepared = made.with_suffix(".prepared.onnx")
    quantization.quant_pre_process(plain, prepared)
    name = onnxruntime.InferenceSession(prepared).get_inputs()[0].name
    quantization.quantize_static(
        prepared, made, _Reader(name, inputs), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
        activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod[calibrator], op_types_to_quantize=SCOPES[scope],
    )  # fmt: skip


def nncf_quantization(plain: Path, inputs: np.ndarray, made: Path, preset: str, transformer: bool) -> None:
    """The file of NNCF's post-training quantization, for OpenVINO."""
    model = openvino.Core().read_model(plain)
    parts = [inputs[number : number + 1] for number in range(len(inputs))]
    found = nncf.quantize(
        model, nncf.Dataset(parts), subset_size=len(parts), preset=nncf.QuantizationPreset(preset),
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
    )  # fmt: skip
    openvino.save_model(found, made, compress_to_fp16=False)


def _ways(runtime: str, transformer: bool) -> Iterator[tuple[str, Callable[[Path, np.ndarray, Path], None], str]]:
    """(description, tool, ending of its file) of everything that is tried for a runtime."""
    if runtime == "openvino":
        for preset in ("performance", "mixed"):
            yield preset, lambda p, x, made, s=preset: nncf_quantization(p, x, made, s, transformer), ".xml"
        return
    for calibrator, scope in itertools.product(CALIBRATORS, SCOPES):
        described = f"{calibrator}, {scope}"
        yield described, lambda p, x, made, c=calibrator, s=scope: static_quantization(p, x, made, c, s), ".onnx"


def rounded_by_runtime(
    runtime: str, plain: Path, calibration: Batches, stem: Path, transformer: bool
) -> tuple[Path, dict[str, float]]:
    """The file of a runtime's own tool with the settings of least cross-entropy on the calibration examples.

    Returns:
        The file, and the cross-entropy of every way; infinite where a tool fails.
    """
    inputs = torch.cat([batch for batch, _ in calibration]).numpy()
    losses: dict[str, float] = {}
    files: dict[str, Path] = {}
    for number, (name, tool, ending) in enumerate(_ways(runtime, transformer)):
        made = stem.with_name(f"{stem.name}-{number}{ending}")
        try:
            tool(plain, inputs, made)
            run: Running = by_openvino(made) if runtime == "openvino" else by_onnxruntime(made)
            losses[name], files[name] = cross_entropy(run, calibration), made
        except Exception as error:  # the tools raise what they like; the other ways count
            print(f"{runtime}, {name}: {type(error).__name__}: {str(error)[:200]}", flush=True)
            losses[name] = float("inf")
    best = min(files, key=losses.__getitem__)
    return files[best], losses


def nbytes(path: Path) -> int:
    """Bytes of a file; of OpenVINO's, which are two, of both."""
    return sum(one.stat().st_size for one in {path, path.with_suffix(".bin")} if one.exists())


def by_torch_pruning(model: nn.Module, example: Tensor, macs: int, together: int = 1) -> nn.Module:
    """The network pruned by torch-pruning's magnitudes, until the multiplications fit.

    Groups are ranked over all layers. Outputs stay. Only the inner channels of blocks are pruned where shortcuts pad
    channels, which the tool cannot follow (issue 64 of its repository), and in transformers, of which only the
    perceptrons become narrower.
    """
    small = copy.deepcopy(model)
    for parameter in small.parameters():
        parameter.requires_grad_(True)
    fixed = [module for name, module in small.named_modules() if _stays(name)]
    pruner = torch_pruning.pruner.BasePruner(
        small, example[:1], importance=torch_pruning.importance.GroupMagnitudeImportance(p=2), pruning_ratio=0.95,
        iterative_steps=STEPS, global_pruning=True, ignored_layers=fixed, round_to=together,
    )  # fmt: skip
    for _ in range(STEPS):
        if multiplications(small, example) <= macs:
            return small.eval()
        pruner.step()
    raise ValueError("torch-pruning cannot cut the multiplications as far")


def _stays(name: str) -> bool:
    last = name.rpartition(".")[2]
    stream = ("conv1", "linear", "_fc", "head", "token", "position", "patches", "query", "key", "value", "output")
    return name in stream or last in ("conv2", "down", "linear2", "self_attn", *stream[-4:])
