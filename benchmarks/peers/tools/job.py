"""What every tool's script needs: the network and its calibration examples, and a place for codes."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

LEAST_FIT = 1e-3
"""How far a weight may be from its codes, in steps."""


class Job:
    """The folder of a job, named on the command line."""

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(sys.argv[1] if folder is None else folder)
        self.given: dict[str, Any] = json.loads((self.folder / "job.json").read_text())
        self.settings: dict[str, Any] = self.given["settings"]
        self._codes: dict[str, npt.NDArray[Any]] = {}

    @cached_property
    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """The network's tensors."""
        return dict(load_file(self.folder / "weights.safetensors"))

    def network(self) -> Any:
        """The network in eval mode; needs torch."""
        import torch

        model = BUILDERS[self.given["network"]](lambda name: _module(Path(self.given["modules"]), name))
        state = {name: torch.from_numpy(value.copy()) for name, value in self.weights.items()}
        model.load_state_dict(state, strict=False)
        return model.eval()

    def inputs(self) -> Any:
        """Calibration inputs as one tensor; needs torch."""
        import torch

        return torch.from_numpy(load_file(self.folder / "calibration.safetensors")["inputs"].copy())

    def rounded(self, name: str, codes: Any, scale: Any, zero: Any = None) -> None:
        """Codes of one weight: (codes - zero) x scale."""
        self._codes[f"{name}|codes"] = np.ascontiguousarray(np.asarray(codes), dtype=np.int16)
        self._codes[f"{name}|scale"] = np.atleast_1d(np.asarray(scale, dtype=np.float32)).reshape(-1).copy()
        if zero is not None:
            self._codes[f"{name}|zero"] = np.atleast_1d(np.asarray(zero, dtype=np.int16)).reshape(-1).copy()

    def on_grid(self, name: str, values: Any, scale: Any, zero: Any = None) -> None:
        """Codes of a weight whose rounded values and scales the tool gives; refuses values off the grid."""
        weight = np.asarray(values, dtype=np.float64)
        rows = weight.shape[0]
        steps = np.asarray(scale, dtype=np.float64).reshape(-1)
        groups = max(1, steps.size // rows) if steps.size > 1 else 1
        split = weight.reshape(rows, groups, -1) / (steps.reshape(rows, groups, 1) if steps.size > 1 else steps)
        offset = 0.0 if zero is None else np.asarray(zero, dtype=np.float64).reshape(-1, groups, 1)
        codes = np.rint(split + offset)
        off = float(np.abs(split + offset - codes).max())
        if off > LEAST_FIT * max(1.0, float(np.abs(codes).max())):
            raise ValueError(f"{name} is {off:.3f} steps off its grid")
        self.rounded(name, codes.reshape(weight.shape), steps, zero)

    def changed(self, name: str, value: Any) -> None:
        """A tensor that the tool changed and did not round."""
        self._codes[f"{name}|value"] = np.ascontiguousarray(np.asarray(value, dtype=np.float32))

    def finish(self, **said: Any) -> None:
        """Write everything."""
        if self._codes:
            save_file(self._codes, self.folder / "codes.safetensors")
        (self.folder / "said.json").write_text(json.dumps(said))


def torchvision_without_kernels() -> None:
    """Let torchvision be imported where only its build for CUDA is: its operators are declared, and never called.

    Tools import it for their data sets.
    """
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARIES.append(library)


_LIBRARIES: list[Any] = []
"""Declarations last as long as these objects."""


def _module(folder: Path, name: str) -> ModuleType:
    """One of the files of ``benchmarks.networks`` that need torch alone, without the rest of the package."""
    spec = importlib.util.spec_from_file_location(f"network_{name}", folder / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"there is no {name}.py in {folder}")
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    return found


def _efficientnet(_: Callable[[str], ModuleType]) -> Any:
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0")


BUILDERS: dict[str, Callable[[Callable[[str], ModuleType]], Any]] = {
    "digits": lambda module: module("architectures").DigitsNet(),
    "cifar10-resnet20": lambda module: module("architectures").ResNet20(),
    "imagenet-efficientnet-lite0": _efficientnet,
    "text-gpt": lambda module: module("attention").ByteGPT(),
    "fashion-mnist-vit": lambda module: module("attention").VisionTransformer(),
}
