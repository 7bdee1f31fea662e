"""From a tool's answer to a file that restores the repaired network, and back to the network that is scored."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.networks import Batches
from benchmarks.peers.container import CODERS, Rounded, folded, packed, restored, stored_names, unpacked
from benchmarks.peers.environments import Environment
from benchmarks.peers.jobs import Answer, read_answer, write_job
from benchmarks.peers.repair import repaired
from benchmarks.peers.roster import Peer, Settings

LARGE = 4096
"""Weights of as many values that a tool leaves alone are rounded to 8 bits by rows; smaller ones stay floats."""

DONE = "done.json"


@dataclass(frozen=True)
class Made:
    """A compressed network.

    Attributes:
        model: restored from the file, in eval mode.
        nbytes: of the file.
        figures: bytes by coder, CPU seconds, what the tool said.
    """

    model: nn.Module
    nbytes: int
    figures: dict[str, Any]


@dataclass(frozen=True)
class Work:
    """One tool on one network with some calibration examples.

    Attributes:
        peer: the tool.
        network: name of the network.
        model: the original.
        batches: calibration examples, of the repair and of tools that calibrate.
        drawn: says which these are, for names of folders.
        root: folder of environments and jobs.
    """

    peer: Peer
    network: str
    model: nn.Module
    batches: Batches
    drawn: str
    root: Path

    @property
    def environment(self) -> Environment:
        """Where the tool runs."""
        return environment_of(self.peer, self.root)

    def answer(self, settings: Settings) -> tuple[Answer, float]:
        """What the tool makes of the original, and its CPU seconds; kept in a folder for the next call."""
        folder = self._folder(settings)
        done = folder / DONE
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            state = _without_counters(
                folded(self.model.state_dict(), self.model) if self.peer.own_file else self.model.state_dict()
            )
            write_job(folder, self.network, state, settings, self.batches if self.peer.calibrates else None)
            cpu = self.environment.run(self.peer.script, folder, self.peer.seconds)
            done.write_text(json.dumps({"cpu": cpu}))
        return read_answer(folder, self.model), json.loads(done.read_text())["cpu"]

    def size(self, settings: Settings) -> int:
        """Bytes of the file without the repair, which changes them by little."""
        answer, _ = self.answer(settings)
        if self.peer.own_file and answer.stream is not None:
            return len(answer.stream)
        return min(map(len, self._files(answer, self._weights(answer), dict(self.model.state_dict())).values()))

    def made(self, settings: Settings) -> Made:
        """The network that the file restores, after the repair."""
        answer, cpu = self.answer(settings)
        weights = self._weights(answer)
        values = {name: rounded.values() for name, rounded in weights.items()} | answer.floats
        started = time.process_time()
        state = repaired(self.model, values, self.batches)
        figures: dict[str, Any] = {"cpu_tool": cpu, "cpu_repair": time.process_time() - started, **answer.said}
        if self.peer.own_file:
            found, nbytes = self._own_file(settings, state, answer)
            return Made(restored(found, self.model), nbytes, figures)
        files = self._files(answer, weights, state)
        best = min(files, key=lambda coder: len(files[coder]))
        found = self._read(files[best], answer)
        sizes = {f"bytes_{coder}": len(data) for coder, data in files.items()}
        return Made(restored(found, self.model), len(files[best]), figures | sizes | {"coder": best})

    def _folder(self, settings: Settings) -> Path:
        said = "_".join(f"{name}={value}" for name, value in settings.items())
        drawn = self.drawn if self.peer.calibrates else "all"
        return (self.root / "jobs" / self.network / self.peer.name / said / drawn).absolute()

    def _weights(self, answer: Answer) -> dict[str, Rounded]:
        """Codes of the tool, and of large weights that it left alone; none where it writes a stream."""
        if answer.stream is not None:
            return {}
        found = dict(answer.weights)
        for name, tensor in self.model.state_dict().items():
            if name not in found and tensor.ndim > 1 and tensor.numel() >= LARGE:
                found[name] = _in_eight_bits(answer.floats.get(name, tensor))
        return found

    def _files(self, answer: Answer, weights: Mapping[str, Rounded], state: Mapping[str, Tensor]) -> dict[str, bytes]:
        """The file by every coder; by itself where the tool coded the weights."""
        state = folded(state, self.model)
        if answer.stream is None:
            return {coder: packed(state, weights, self.model, coder) for coder in CODERS}
        floats = b"".join(state[name].half().numpy().tobytes() for name in self._vectors(answer))
        return {self.peer.name: answer.stream + floats}

    def _vectors(self, answer: Answer) -> list[str]:
        """The tensors that are not in the tool's stream."""
        return [name for name in stored_names(self.model) if name not in answer.floats]

    def _read(self, data: bytes, answer: Answer) -> dict[str, Tensor]:
        if answer.stream is None:
            return unpacked(data, self.model)
        found, start = dict(answer.floats), len(answer.stream)
        state = self.model.state_dict()
        for name in self._vectors(answer):
            values = np.frombuffer(data, np.float16, state[name].numel(), start).astype(np.float32)
            found[name], start = torch.from_numpy(values).reshape(state[name].shape), start + values.size * 2
        return found

    def _own_file(self, settings: Settings, state: dict[str, Tensor], first: Answer) -> tuple[dict[str, Tensor], int]:
        """The tool's file of the original weights and the repaired vectors, and what it decodes to.

        Raises:
            ValueError: when the weights in it are not those that were repaired for.
        """
        original = self.model.state_dict()
        vectors = {name: tensor for name, tensor in folded(state, self.model).items() if tensor.ndim < 2}
        folder = self._folder(settings).with_name(f"repaired-{self.drawn}")
        shutil.rmtree(folder, ignore_errors=True)
        write_job(folder, self.network, _without_counters(original | vectors), settings, None)
        self.environment.run(self.peer.script, folder, self.peer.seconds)
        second = read_answer(folder, self.model)
        other = [
            name
            for name, value in second.floats.items()
            if value.ndim > 1 and not torch.equal(value, first.floats[name])
        ]
        if other or second.stream is None:
            raise ValueError(f"{self.peer.name} coded other weights the second time: {', '.join(other[:3])}")
        return second.floats, len(second.stream)


def environment_of(peer: Peer, root: Path) -> Environment:
    """The environment of a peer: our own for those that need no package."""
    if not peer.packages:
        return Environment(None)
    return Environment(
        (root / "environments" / peer.script.removeprefix("by_").removesuffix(".py")).absolute(), peer.packages
    )


def nearest(work: Work, ratio: float, original: int) -> Settings:
    """The setting whose file is nearest to a ratio, by bisection over settings whose files shrink."""
    settings, wanted = work.peer.settings, original / ratio
    low, high = 0, len(settings) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if work.size(settings[middle]) > wanted else (low, middle)
    return min((settings[low], settings[high]), key=lambda one: abs(np.log(work.size(one) / wanted)))


def _without_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def _in_eight_bits(tensor: Tensor) -> Rounded:
    """Nearest codes of 8 bits, with a scale for each row."""
    rows = tensor.detach().float().reshape(tensor.shape[0], -1)
    scale = (rows.abs().amax(1) / 127).clamp(min=1e-7).half().float()
    codes = (rows / scale[:, None]).round().reshape(tensor.shape)
    return Rounded(codes.numpy().astype(np.int64), scale.numpy())
