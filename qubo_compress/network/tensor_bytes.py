"""The bytes of a tensor, as files store them and digests read them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def raw_bytes(tensor: Tensor) -> bytes:
    """The bytes of a tensor in memory order, little endian."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def from_raw_bytes(data: memoryview, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Inverse of :func:`raw_bytes`."""
    if 0 in shape:
        if len(data):
            raise ValueError(f"{len(data)} bytes were given for an empty tensor")
        return torch.empty(shape, dtype=dtype)
    flat = torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())
    return flat.view(dtype).reshape(shape)
