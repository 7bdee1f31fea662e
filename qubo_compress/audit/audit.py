"""What a compressed network forgot: accuracy, flips, classes and divergence, against the original.

Later audits (rare examples, robustness, calibration) are further files in this folder that take the same
two networks and batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn

from qubo_compress.errors import InvalidBatches
from qubo_compress.evaluation import ALL_EXAMPLES, outputs_of, score_examples
from qubo_compress.examples import Examples, read_examples
from qubo_compress.sensitivity.losses import target_rows

MOST_CLASSES_SHOWN = 40

NORMAL_95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""


@dataclass(frozen=True)
class ClassChange:
    """One class: how often it was recognised, before and after.

    Attributes:
        label: class index.
        examples: how many examples carry it.
        before, after: share recognised, 0 to 1.
        interval: 95 % Wilson interval of the share after.
    """

    label: int
    examples: int
    before: float
    after: float
    interval: tuple[float, float]

    @property
    def change(self) -> float:
        """Share gained or lost."""
        return self.after - self.before


@dataclass(frozen=True)
class AuditReport:
    """Two networks on the same examples. What needs labels is None without them.

    Attributes:
        examples: how many examples were read.
        rows: predictions compared: one per example, or one per position for outputs with further axes.
        agreement: share of rows on which both predict the same class.
        mismatches: rows on which they do not.
        divergence: mean KL divergence from the original's probabilities to the compressed network's.
        accuracy_before, accuracy_after: share of labelled rows predicted right.
        accuracy_interval: 95 % Wilson interval of the accuracy after.
        loss_before, loss_after: mean cross-entropy.
        harmful: mismatches where the original was right.
        repaired: mismatches where the compressed network is right.
        classes: every class that occurs.
    """

    examples: int
    rows: int
    agreement: float
    mismatches: int
    divergence: float
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    harmful: int | None = None
    repaired: int | None = None
    classes: tuple[ClassChange, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and dicts, ready for JSON."""
        found = asdict(self)
        found["classes"] = [{**asdict(item), "change": item.change} for item in self.classes]
        return found

    def table(self) -> Table:
        """The report as a rich table: totals, then the classes that lost most."""
        table = Table(title=f"Audit on {self.examples:,} examples", box=box.SIMPLE_HEAD, title_justify="left")
        for name in ("", "before", "after", "change", "95 % interval after"):
            table.add_column(name, justify="right" if name else "left", no_wrap=True)
        if self.accuracy_before is not None and self.accuracy_after is not None:
            table.add_row("accuracy", *_shares(self.accuracy_before, self.accuracy_after, self.accuracy_interval))
        if self.loss_before is not None and self.loss_after is not None:
            change = f"{self.loss_after - self.loss_before:+.4f}"
            table.add_row("loss", f"{self.loss_before:.4f}", f"{self.loss_after:.4f}", change, "")
        table.add_row("same prediction", "", f"{100 * self.agreement:.2f} %", "", "")
        kinds = "" if self.harmful is None else f" ({self.harmful:,} harmful, {self.repaired:,} repaired)"
        table.add_row(f"mismatches{kinds}", "", f"{self.mismatches:,}", "", "")
        table.add_row("mean KL divergence", "", f"{self.divergence:.4g}", "", "")
        if self.classes:
            table.add_section()
        worst = sorted(self.classes, key=lambda item: (item.change, item.label))
        for item in worst[:MOST_CLASSES_SHOWN]:
            name = f"class {item.label} ({item.examples:,} examples)"
            table.add_row(name, *_shares(item.before, item.after, item.interval))
        if len(worst) > MOST_CLASSES_SHOWN:
            table.caption = f"the {MOST_CLASSES_SHOWN} classes that lost most, of {len(worst):,}"
        return table


def audit(model: nn.Module, small: nn.Module, batches: Iterable[Any]) -> AuditReport:
    """Compare a compressed network with the original on the same examples, all of them.

    Args:
        model: the original; left as it is.
        small: the compressed one; left as it is.
        batches: see :func:`qubo_compress.examples.read_examples`. Without class labels only agreement and
            divergence are found. Example weights count in the losses and the divergence only.

    Raises:
        InvalidBatches: when the batches cannot be used, or every label is to be ignored.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> audit(net, net, [(torch.eye(2), torch.tensor([0, 1]))]).mismatches
        0
    """
    examples = read_examples(batches, ALL_EXAMPLES)
    before, after = outputs_of(model, examples), outputs_of(small, examples)
    guessed = torch.cat([rows.argmax(-1).cpu() for rows in before])
    guessed_after = torch.cat([rows.argmax(-1).cpu() for rows in after])
    differ = guessed != guessed_after
    report = AuditReport(
        examples=examples.count,
        rows=guessed.numel(),
        agreement=1.0 - float(differ.double().mean()),
        mismatches=int(differ.sum()),
        divergence=score_examples(small, examples, "kl", before).loss,
    )
    labels = _labels(examples, before)
    if labels is None:
        return report
    counted = labels >= 0  # negative labels are those to be ignored
    if not bool(counted.any()):
        raise InvalidBatches("every label is -100, which means ignored; give labels, or batches without any")
    right, right_after = (guessed == labels) & counted, (guessed_after == labels) & counted
    total, kept = int(counted.sum()), int(right_after.sum())
    return replace(
        report,
        accuracy_before=int(right.sum()) / total,
        accuracy_after=kept / total,
        accuracy_interval=wilson(kept, total),
        loss_before=score_examples(model, examples, "cross-entropy").loss,
        loss_after=score_examples(small, examples, "cross-entropy").loss,
        harmful=int((differ & right).sum()),
        repaired=int((differ & right_after).sum()),
        classes=tuple(_class(c, labels, right, right_after) for c in sorted(set(labels[counted].tolist()))),
    )


def wilson(right: int, total: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share.

    Example:
        >>> tuple(round(end, 3) for end in wilson(9, 10))
        (0.596, 0.982)
    """
    if total < 1:
        return 0.0, 1.0
    share, square = right / total, NORMAL_95**2
    middle = (share + square / (2 * total)) / (1 + square / total)
    half = NORMAL_95 / (1 + square / total) * math.sqrt(share * (1 - share) / total + square / (4 * total**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def _labels(examples: Examples, outputs: list[Tensor]) -> Tensor | None:
    """(rows,) class indices, or None when the batches bring none."""
    found = []
    for part, rows in zip(examples.slices, outputs, strict=True):
        if part.targets is None or part.targets.is_floating_point():
            return None
        found.append(target_rows(part.targets.cpu(), rows).cpu())
    return torch.cat(found)


def _class(label: int, labels: Tensor, right: Tensor, right_after: Tensor) -> ClassChange:
    members = labels == label
    total, kept = int(members.sum()), int(right_after[members].sum())
    return ClassChange(label, total, int(right[members].sum()) / total, kept / total, wilson(kept, total))


def _shares(before: float, after: float, interval: tuple[float, float] | None) -> tuple[str, ...]:
    shown = "" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"
    return f"{100 * before:.2f} %", f"{100 * after:.2f} %", f"{100 * (after - before):+.2f}", shown
