"""The network's own loss under an assignment, for searches that minimise it instead of the energy."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable

from qubo_compress.problem.choice_problem import FloatArray, IntArray

LossFunction = Callable[[IntArray, int | None], float]
"""(assignment (G,), number of examples or None for all) -> mean loss; every :class:`NetworkLoss` is one."""


class NetworkLoss(ABC):
    """The network's own loss under an assignment, to be minimised; ``qubo_compress.StitchedLoss`` is one.

    ``evopress``, ``spdy`` and ``reinforcement`` take it as ``loss=``, and any :data:`LossFunction` as well.

    Attributes:
        evaluations: examples forwarded through the network so far.
    """

    evaluations: int = 0

    @abstractmethod
    def __call__(self, assignment: IntArray, examples: int | None = None) -> float:
        """Mean loss on this many examples, the same for every assignment; None: on all."""

    def redraw(self, seed: int) -> None:  # noqa: B027 - a loss that always takes all examples has no other sample
        """Use another sample of the examples from now on."""


class ExampleLoss(NetworkLoss):
    """A network loss that is known example by example; ``surrogate`` needs one.

    Two assignments compared on the same examples differ far less by luck than two means, and an assignment measured on
    some examples goes on to further ones without repeating the first.
    """

    @property
    @abstractmethod
    def weights(self) -> FloatArray:
        """(N,) weight of every example, in the order of :meth:`values`; they sum to one."""

    @abstractmethod
    def values(self, assignment: IntArray, start: int, stop: int) -> FloatArray:
        """(stop - start,) losses of the examples from number ``start`` up to ``stop``.

        The order of the examples is random and changes only with :meth:`redraw`. Values that are not finite stay so.
        """

    def whole(self, count: int) -> int:
        """At least this many examples, such that none of the batches that must stay whole is split."""
        return min(count, self.weights.size)


class _Function(NetworkLoss):
    """A plain function as a loss; 0.4's functions that count or redraw examples work for one more release."""

    def __init__(self, function: LossFunction) -> None:
        self.function = function
        self.counts, self.redraws = hasattr(function, "evaluations"), hasattr(function, "redraw")
        if self.counts or self.redraws:
            warnings.warn(
                f"{type(function).__name__} has evaluations or redraw: from the next release on only losses that "
                "inherit from qubo_compress.problem.network_loss.NetworkLoss are asked for them",
                DeprecationWarning,
                stacklevel=4,
            )
        self._count(None)

    def __call__(self, assignment: IntArray, examples: int | None = None) -> float:
        value = float(self.function(assignment, examples))
        self._count(examples)
        return value

    def redraw(self, seed: int) -> None:
        if self.redraws:
            self.function.redraw(seed)  # type: ignore[attr-defined]

    def _count(self, examples: int | None) -> None:
        counted = self.evaluations + (examples or 0)
        self.evaluations = self.function.evaluations if self.counts else counted  # type: ignore[attr-defined]


def network_loss(loss: LossFunction) -> NetworkLoss:
    """A loss unchanged, or a plain function as a loss that counts its examples.

    Example:
        >>> import numpy as np
        >>> loss = network_loss(lambda assignment, examples: 0.5)
        >>> loss(np.zeros(3, dtype=np.int64), 16), loss.evaluations
        (0.5, 16)
    """
    return loss if isinstance(loss, NetworkLoss) else _Function(loss)
