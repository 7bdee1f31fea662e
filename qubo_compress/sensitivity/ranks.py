"""The ranks of ``torch.distributed`` that share one measurement, and their messages.

Only numbers are sent: shapes and types as text, values as bytes. Nothing is pickled. Every exchange begins with a
status message from every rank, so that an error on one is raised on all.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from qubo_compress.errors import RankFailed, RanksDisagree
from qubo_compress.network.tensors import NetworkTensors

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Arrays = dict[str, npt.NDArray[Any]]

CHUNK = 2**28
"""Most bytes per message: some backends count them in 32 bits."""

CPU = torch.device("cpu")

DIFFERENT_DATA = (
    "The ranks share the work on the same examples: give every rank the same batches, in the same order, without a "
    "DistributedSampler. If every rank has its own examples, measure a table on each with process_group=False "
    "and join them by table.merge_ranks(), or by SensitivityTable.merge"
)

DIFFERENT_ARGUMENTS = (
    "Call with the same arguments on every rank. A loss or metric that holds what cannot be compared, such as an open "
    "file or an object without a repr of its own, counts as another one: give process_group=False, or hold numbers only"
)


@dataclass(frozen=True)
class Ranks:
    """The processes that share a measurement; by default, only this process.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        device: of the tensors that are sent.
        group: the process group; None for the default one.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    group: ProcessGroup | None = None

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Context for work of all ranks: an error on one ends all of them, the others with :class:`RankFailed`."""
        try:
            yield
        except RankFailed:
            raise  # all ranks know already
        except Exception as failure:
            # The next exchange of the others begins with every rank's status. This rank's own error matters more than a
            # failure to send it.
            with contextlib.suppress(RankFailed):
                self._words(f"{type(failure).__name__}: {failure}".encode(), failed=True)
            raise
        self._words(b"")

    def require_same(self, settings: Mapping[str, str]) -> None:
        """Raise :class:`RanksDisagree` on every rank unless all have equal settings."""
        every = [dict(json.loads(word)) for word in self._words(json.dumps(dict(settings)).encode())]
        for rank, theirs in enumerate(every):
            different = sorted(name for name in {*theirs, *every[0]} if theirs.get(name) != every[0].get(name))
            if different:
                raise RanksDisagree(
                    f"rank {rank} was given other {', '.join(different)} than rank 0. "
                    + (DIFFERENT_DATA if "data" in different else DIFFERENT_ARGUMENTS)
                )

    def flags(self, values: Sequence[bool]) -> npt.NDArray[np.bool_]:
        """(ranks, n) the flags of every rank."""
        words = self._words(np.array(values, dtype=bool).tobytes())
        return np.stack([np.frombuffer(word, dtype=bool) for word in words])

    def first(self, compute: Callable[[], Arrays]) -> Arrays:
        """Compute a value on rank 0 only, and return it on every rank."""
        return self.exchange(compute() if self.rank == 0 else None)[0] or {}

    def exchange(self, arrays: Arrays | None) -> list[Arrays | None]:
        """Every rank's arrays, bit for bit, on every rank; None for a rank without any.

        Raises:
            RankFailed: when a rank raised an error instead, or stopped answering.
        """
        if self.size == 1:
            return [arrays]
        own = None if arrays is None else {name: np.asarray(a, order="C") for name, a in arrays.items()}
        if own is not None and any(array.dtype.hasobject for array in own.values()):
            raise TypeError("arrays of Python objects are not sent; a unit's arrays must hold numbers")
        forms = None if own is None else [(name, a.dtype.str, a.shape) for name, a in own.items()]
        found: list[Arrays | None] = []
        for rank, word in enumerate(self._words(json.dumps(forms).encode())):
            said = json.loads(word)
            if rank == self.rank or said is None:
                found.append(own if rank == self.rank else None)
            else:
                found.append({name: np.empty(shape, dtype=np.dtype(kind)) for name, kind, shape in said})
        self._words(b"")  # every rank has allocated its buffers
        for rank, received in enumerate(found):
            for array in (received or {}).values():
                self._send(array, rank)
        return found

    def _send(self, array: npt.NDArray[Any], source: int) -> None:
        """Fill an array with the source rank's."""
        data = array.reshape(-1).view(np.uint8)
        for start in range(0, data.size, CHUNK):
            part = data[start : start + CHUNK]
            # A copy of a read-only array, which torch would complain about.
            sent = torch.from_numpy(part if part.flags.writeable else part.copy()).to(self.device)
            with _answering():
                dist.broadcast(sent, self._global(source), group=self.group)
            if source != self.rank and self.device.type != "cpu":
                part[:] = sent.cpu().numpy()

    def _words(self, word: bytes, failed: bool = False) -> list[bytes]:
        """The status messages of all ranks; raises :class:`RankFailed` if one reports a failure."""
        if self.size == 1:
            return [word]
        sizes = [t.tolist() for t in self._gathered(torch.tensor([int(failed), len(word)]))]
        longest = max(1, *(size for _, size in sizes))
        padded = torch.from_numpy(np.frombuffer(word.ljust(longest, b"\0"), dtype=np.uint8).copy())
        texts = self._gathered(padded)
        words = [text.numpy()[:size].tobytes() for text, (_, size) in zip(texts, sizes, strict=True)]
        for rank, (bad, _) in enumerate(sizes):
            if bad:
                raise RankFailed(
                    f"rank {rank} of {self.size} failed, so the measurement that they share ends here: "
                    f"{words[rank].decode(errors='replace')}",
                    rank,
                )
        return words

    def _gathered(self, tensor: Tensor) -> list[Tensor]:
        sent = tensor.to(self.device)
        found = [torch.empty_like(sent) for _ in range(self.size)]
        with _answering():
            dist.all_gather(found, sent, group=self.group)
            return [t.cpu() for t in found]

    def _global(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)


ALONE = Ranks()
"""This process alone, which shares nothing."""


def ranks_of(process_group: ProcessGroup | bool, model: nn.Module | None = None) -> Ranks:
    """The ranks that share a measurement of this model.

    Args:
        process_group: True: the default group if ``torch.distributed`` is initialised; a group; False: none.
        model: with a GPU-only backend, messages use its device, or the current GPU if it is on the CPU.

    Raises:
        RanksDisagree: when this process is not in the group.

    Example:
        >>> ranks_of(True).size  # nothing was initialised
        1
    """
    if process_group is False or not (dist.is_available() and dist.is_initialized()):
        return ALONE
    group = None if process_group is True else process_group
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if rank < 0:
        raise RanksDisagree("this process is not in the process group given; call from its ranks only, or give another")
    if size == 1:
        return ALONE
    if "cpu:" in dist.get_backend_config(group):
        return Ranks(rank, size, CPU, group)
    device = CPU if model is None else NetworkTensors(model).device
    if device.type == "cpu":  # a model on the CPU does not tell which GPU belongs to this rank
        device = torch.device("cuda", torch.cuda.current_device())
    return Ranks(rank, size, device, group)


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """Turn errors of the backend into :class:`RankFailed`."""
    try:
        yield
    except RuntimeError as cause:
        raise RankFailed(
            f"another rank ended, or did not answer within the process group's timeout ({cause}). All ranks must call "
            "measure with the same arguments; give process_group=False to measure in this process alone"
        ) from cause
