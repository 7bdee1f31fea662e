"""The folder through which a network goes to the process of another package, and its codes come back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.networks import Batches
from benchmarks.peers.container import Rounded

NETWORKS = Path(__file__).parents[1] / "networks"
JOB, WEIGHTS, CALIBRATION, CODES, STREAM = (
    "job.json",
    "weights.safetensors",
    "calibration.safetensors",
    "codes.safetensors",
    "stream.bin",
)


@dataclass(frozen=True)
class Answer:
    """What a tool made.

    Attributes:
        weights: name -> codes.
        floats: name -> other tensors that the tool changed, such as biases.
        stream: bytes of the tool's own file, or None.
        said: what the tool says about itself.
    """

    weights: dict[str, Rounded]
    floats: dict[str, Tensor]
    stream: bytes | None
    said: dict[str, Any]


def write_job(
    folder: Path, network: str, state: Mapping[str, Tensor], settings: Mapping[str, Any], batches: Batches | None
) -> None:
    """Write everything that a tool is given.

    Args:
        folder: of the job.
        network: its name, by which ``tools/job.py`` builds it.
        state: the network's tensors.
        settings: of the tool.
        batches: calibration examples, or None for tools that use none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    job = {"network": network, "settings": dict(settings), "modules": str(NETWORKS)}
    (folder / JOB).write_text(json.dumps(job))
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS)
    if batches is not None:
        inputs, targets = (torch.cat(parts).contiguous() for parts in zip(*batches, strict=True))
        save_file({"inputs": inputs, "targets": targets}, folder / CALIBRATION)


def read_answer(folder: Path, model: nn.Module) -> Answer:
    """What a tool left in the folder of its job.

    Raises:
        ValueError: when a tensor is none of the network's, or has another shape.
    """
    tensors = load_file(folder / CODES) if (folder / CODES).exists() else {}
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    weights, floats = {}, {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition("|")
        if shapes.get(name) != tensor.shape and part in ("codes", "value"):
            raise ValueError(f"{key} of shape {tuple(tensor.shape)} came back, and the network has {shapes.get(name)}")
        if part == "value":
            floats[name] = tensor.float()
        elif part == "codes":
            zero = tensors.get(f"{name}|zero")
            weights[name] = Rounded(
                tensor.numpy().astype(np.int64), tensors[f"{name}|scale"].numpy().astype(np.float32),
                None if zero is None else zero.numpy().astype(np.int64),
            )  # fmt: skip
    stream = folder / STREAM
    said = json.loads((folder / "said.json").read_text()) if (folder / "said.json").exists() else {}
    return Answer(weights, floats, stream.read_bytes() if stream.exists() else None, said)
