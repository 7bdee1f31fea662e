"""Examples with the uncompressed network's outputs on them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qubo_compress.calibration.examples import Examples


@dataclass(frozen=True)
class Sample:
    """Some examples, and the uncompressed network's output rows on them, slice by slice, if needed."""

    examples: Examples
    reference: list[Tensor] | None

    def select(self, index: npt.NDArray[np.int64]) -> Sample:
        """The examples of these rising numbers, with their share of the reference outputs.

        Raises:
            InvalidModel: for a part of batches that must not be split.
        """
        chosen = self.examples.select(index)
        if self.reference is None:
            return Sample(chosen, None)
        rows, start = [], 0
        for part, outputs in zip(self.examples.slices, self.reference, strict=True):
            inside = index[(index >= start) & (index < start + len(part))] - start
            start += len(part)
            if inside.size:
                by_example = outputs.reshape(len(part), -1, outputs.shape[-1])
                rows += list(by_example[torch.from_numpy(inside).to(outputs.device)])
        counts = np.cumsum([0, *(len(part) for part in chosen.slices)])
        return Sample(chosen, [torch.cat(rows[a:b]) for a, b in itertools.pairwise(counts)])
