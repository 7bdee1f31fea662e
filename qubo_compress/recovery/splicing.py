"""Masks that move while a compressed network is fine-tuned: pruned weights may return.

Source: the dynamic pruning of Guo, Yao, Chen, "Dynamic Network Surgery for Efficient DNNs", NeurIPS 2016, which Liu et
al., NeurIPS 2018, use on cosine coefficients. There a threshold is fixed and the number of survivors follows; here the
number of survivors is fixed, because the plan has paid for it, and the threshold follows.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from qubo_compress.network.groups import Group
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.recovery.latent import Latent

logger = logging.getLogger(__name__)

LOW, HIGH = 0.9, 1.1
"""Hysteresis: survivors below LOW times the threshold may leave, pruned numbers above HIGH times it may return."""

FROZEN_FROM = 0.6
"""Masks are frozen after this share of the steps."""


class Splicing:
    """Moves the masks of stored groups between the steps of training.

    Pruned numbers are zero in the network but keep a real value, initially the teacher's, and a gradient. The threshold
    T of a tensor is its n-th largest magnitude, with n the number of its survivors. As many survivors below 0.9 T leave
    as pruned numbers above 1.1 T return, the most extreme first; in between nothing changes. A group's masks are
    updated with probability (1 - t / t_frozen)^2 after step t, and fixed from t_frozen on.

    The number of survivors is fixed, and so are the bytes of their codes. A mask that takes more bytes than planned is
    rejected: the exchange is halved until it fits. If it takes fewer, the file is padded.

    Args:
        teacher: the original network, whose values initialise the pruned numbers.
        seed: of the updates.
    """

    def __init__(self, teacher: nn.Module, seed: int) -> None:
        self._tensors = NetworkTensors(teacher)
        self._generator = torch.Generator().manual_seed(seed)
        self._paid: dict[str, int] = {}
        #: Numbers that returned, counted each time.
        self.returned = 0

    def __call__(self, latent: Latent, done: int, total: int) -> None:
        """What :func:`~qubo_compress.recovery.training.fine_tuned` calls before the first and after every step."""
        if done == 0:
            for group in latent.groups:
                self._wake(latent, group)
            if not self._paid:
                logger.warning("splicing moves masks, and no choice of this plan has one: nothing will be spliced")
            return
        frozen_from = FROZEN_FROM * total
        if done >= frozen_from:
            return
        chance = (1 - done / frozen_from) ** 2
        for name in self._paid:
            if float(torch.rand((), generator=self._generator)) < chance:
                self._splice(latent, name)

    def _wake(self, latent: Latent, group: Group) -> None:
        """Give pruned numbers their original values, never above the smallest survivor that is not zero."""
        stored = latent.stored[group.name]
        masks = stored.movable_masks()
        if not masks:
            return
        self._paid[group.name] = stored.nbytes
        originals = stored.numbers(self._tensors.parts(group))
        with torch.no_grad():
            for number, mask, original in zip(latent.values(group.name), masks, originals, strict=True):
                kept = mask.to(number.device)
                sizes = number[kept & (number != 0)].abs()
                limit = float(sizes.min()) if sizes.numel() else 0.0
                number.copy_(torch.where(kept, number, original.to(number.device).clamp(-limit, limit)))

    def _splice(self, latent: Latent, name: str) -> None:
        stored = latent.stored[name]
        masks = stored.movable_masks()
        numbers = [number.detach().cpu() for number in latent.values(name)]
        exchanges = [exchange(number, mask) for number, mask in zip(numbers, masks, strict=True)]
        share = 1.0
        while any(int(share * leaving.numel()) for leaving, _ in exchanges):
            moved = [_exchanged(mask, pair, share) for mask, pair in zip(masks, exchanges, strict=True)]
            candidate = stored.remasked(moved, numbers)
            if candidate.nbytes <= self._paid[name]:
                latent.stored[name] = candidate
                self.returned += sum(int(share * leaving.numel()) for leaving, _ in exchanges)
                return
            share /= 2


def exchange(numbers: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Flat positions of the survivors that leave and of the pruned numbers that return, equally many of both.

    Args:
        numbers: real-valued numbers behind the stored ones, pruned ones too.
        mask: which survive, in the same shape.

    Example:
        >>> mask = torch.tensor([True, True, True, False, False, False])
        >>> exchange(torch.tensor([5.0, 0.1, 2.0, 4.0, 2.1, 0.0]), mask)
        (tensor([1]), tensor([3]))
    """
    size, survives = numbers.abs().reshape(-1), mask.reshape(-1)
    count = int(survives.sum())
    threshold = float(torch.topk(size, count).values[-1])
    leaving = torch.nonzero(survives & (size < LOW * threshold)).reshape(-1)
    returning = torch.nonzero(~survives & (size > HIGH * threshold)).reshape(-1)
    pairs = min(leaving.numel(), returning.numel())
    smallest = torch.argsort(size[leaving], stable=True)[:pairs]
    largest = torch.argsort(size[returning], descending=True, stable=True)[:pairs]
    return leaving[smallest], returning[largest]


def _exchanged(mask: Tensor, pair: tuple[Tensor, Tensor], share: float) -> Tensor:
    """The mask after a share of the exchange, the most extreme first."""
    count = int(share * pair[0].numel())
    moved = mask.reshape(-1).clone()
    moved[pair[0][:count]] = False
    moved[pair[1][:count]] = True
    return moved.reshape(mask.shape)
