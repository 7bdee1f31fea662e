"""What a compressed network forgot: accuracy, flips, classes, margins and exemplars, against the original."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any, Unpack

import torch
from rich import box
from rich.console import Console, Group
from rich.table import Table
from torch import Tensor, nn

from qubo_compress._internal.checks import refuse_unknown
from qubo_compress.audits.churn import Churn, churn_of
from qubo_compress.audits.classes import ClassChange, class_changes
from qubo_compress.audits.exemplars import Exemplars, exemplars_of
from qubo_compress.audits.long_tail import Forgotten, Images, forgotten, images_of
from qubo_compress.audits.margins import MarginBin, margin_bins
from qubo_compress.audits.mismatches import (
    Answers,
    Mismatches,
    answers_of,
    change_interval,
    count_mismatches,
    population,
)
from qubo_compress.audits.notebook import audit_html
from qubo_compress.audits.regression import RegressionChange, is_regression, regression_change
from qubo_compress.audits.section import write_audit
from qubo_compress.calibration.evaluation import EvaluationOptions, outputs_of, read_settled
from qubo_compress.calibration.examples import Examples
from qubo_compress.calibration.intervals import Correction, corrected, wilson
from qubo_compress.errors import InvalidBatches
from qubo_compress.network.losses.classification import (
    BinaryCrossEntropy,
    CrossEntropy,
    KullbackLeibler,
    Loss,
    SquaredError,
    make_loss,
)
from qubo_compress.network.losses.regression import binary_labels
from qubo_compress.network.scores import two_columns

MOST_CLASSES_SHOWN = 40
MOST_FORGOTTEN = 48

MISMATCH = "a mismatch is a changed answer; harmful: right before, wrong after; gained: wrong before, right after"
PRINTED_WIDTH = 110
"""Columns of the text of a report."""


@dataclass(frozen=True)
class AuditReport:
    """Two networks on the same examples. Without labels, whatever needs them is None or empty.

    Attributes:
        examples: how many examples were read.
        rows: predictions compared: one per example, or one per position for outputs with further axes.
        agreement: share of rows on which both predict the same class; None where outputs are numbers.
        mismatches: rows on which they differ; None where outputs are numbers.
        divergence: mean KL divergence from the original's probabilities to the compressed network's, or mean squared
            change where outputs are numbers.
        accuracy_before, accuracy_after: share of labelled rows predicted right.
        accuracy_interval: 95 % Wilson interval of the accuracy after.
        accuracy_change_interval: 95 % interval of the change of the accuracy, from the pairs of answers: far narrower,
            because most examples are answered alike by both; see :func:`qubo_compress.audit.paired_change`.
        loss_before, loss_after: mean cross-entropy.
        harmful: mismatches where the original was right.
        repaired: mismatches where the compressed network is right; the tables call them gained.
        classes: every class that occurs.
        kinds: the mismatches by kind, with an interval of their share.
        margins: rows in ten even bins by the original's margin.
        forgotten: harmful mismatches; those that the original was surest of come first.
        images: the forgotten inputs if they are pictures; not part of :meth:`to_dict`.
        exemplars: examples that most of several compressed networks change; None without ``others``.
        seed_churn: mismatches between those networks; None without ``others``.
        original_churn: mismatches between independently trained originals; None without them.
        correction: how the classes' p-values were corrected.
        regression: how far outputs moved if they are numbers and not classes; None otherwise.
    """

    examples: int
    rows: int
    agreement: float | None
    mismatches: int | None
    divergence: float
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    harmful: int | None = None
    repaired: int | None = None
    classes: tuple[ClassChange, ...] = ()
    kinds: Mismatches = field(default_factory=lambda: Mismatches(0, 0, (0.0, 1.0)))
    margins: tuple[MarginBin, ...] = ()
    forgotten: tuple[Forgotten, ...] = ()
    images: Images | None = field(default=None, repr=False, compare=False)
    exemplars: Exemplars | None = field(default=None, compare=False)
    seed_churn: Churn | None = field(default=None, compare=False)
    original_churn: Churn | None = field(default=None, compare=False)
    correction: Correction = "holm"
    regression: RegressionChange | None = None
    accuracy_change_interval: tuple[float, float] | None = None

    @property
    def worst_class(self) -> ClassChange | None:
        """The class recognised least after compression; the first of a tie."""
        return min(self.classes, key=lambda item: item.after, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and dicts, ready for JSON."""
        # Pictures and populations hold arrays: pictures are left out, populations have their own to_dict.
        populations = ("exemplars", "seed_churn", "original_churn")
        plain = replace(self, images=None, exemplars=None, seed_churn=None, original_churn=None)
        found = {name: value for name, value in asdict(plain).items() if name not in ("images", *populations)}
        found["classes"] = [{**asdict(c), "change": c.change, "changed": c.changed} for c in self.classes]
        found["margins"] = [{**asdict(item), "share": item.share} for item in self.margins]
        found["kinds"]["share"] = self.kinds.share
        for name in populations:
            value = getattr(self, name)
            found[name] = None if value is None else value.to_dict()
        return found

    def table(self) -> Table:
        """Totals, then the classes that lost most; a star marks changes beyond chance."""
        table = Table(title=f"Audit on {self.examples:,} examples", box=box.SIMPLE_HEAD, title_justify="left")
        for name in ("", "before", "after", "change", "95 % interval of it"):
            table.add_column(name, justify="right" if name else "left", no_wrap=True)
        if self.accuracy_before is not None and self.accuracy_after is not None:
            table.add_row(
                "accuracy", *_shares(self.accuracy_before, self.accuracy_after, self.accuracy_change_interval)
            )
        if self.loss_before is not None and self.loss_after is not None:
            change = f"{self.loss_after - self.loss_before:+.4f}"
            table.add_row("loss", f"{self.loss_before:.4f}", f"{self.loss_after:.4f}", change, "")
        if self.agreement is None or self.mismatches is None:
            for name, before, after, change in [] if self.regression is None else self.regression.rows():
                table.add_row(name, before, after, change, "")
            return table
        table.add_row("same prediction", "", f"{100 * self.agreement:.2f} %", "", "")
        low, high = self.kinds.interval
        share = f"share {100 * low:.1f} to {100 * high:.1f} %"
        table.add_row("mismatches", "", f"{self.mismatches:,}", "", share)
        if self.harmful is not None:
            table.add_row("  harmful", "", f"{self.harmful:,}", "", "")
            table.add_row("  gained", "", f"{self.repaired:,}", "", "")
        table.add_row("mean KL divergence", "", f"{self.divergence:.4g}", "", "")
        if self.classes:
            table.add_section()
        worst = sorted(self.classes, key=lambda item: (item.change, item.label))
        for item in worst[:MOST_CLASSES_SHOWN]:
            name = f"class {item.label} ({item.examples:,} examples)" + (" *" if item.changed else "")
            table.add_row(name, *_shares(item.before, item.after, item.change_interval))
        notes = [] if self.harmful is None else [MISMATCH]
        if any(item.changed for item in worst):
            notes.append(f"* changed by more than chance (mid-p McNemar, {self.correction}, 5 %)")
        if len(worst) > MOST_CLASSES_SHOWN:
            notes.append(f"the {MOST_CLASSES_SHOWN} classes that lost most, of {len(worst):,}")
        table.caption, table.caption_justify = "; ".join(notes) or None, "left"
        return table

    def __repr__(self) -> str:
        """Its counts: all rows and classes would fill a terminal."""
        counted = "" if self.mismatches is None else f", mismatches={self.mismatches:,}, harmful={self.harmful}"
        return f"AuditReport(examples={self.examples:,}{counted}, divergence={self.divergence:.4g})"

    def __str__(self) -> str:
        """All tables as plain text."""
        text = StringIO()
        Console(file=text, width=PRINTED_WIDTH, color_system=None).print(self.tables())
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip()

    def _repr_html_(self) -> str:
        return audit_html(self)

    def show(self) -> None:
        """Print all tables on the terminal."""
        Console().print(self.tables())

    def margin_table(self) -> Table:
        """Flips by how sure the original was."""
        table = Table(title="Flips by the original's margin", box=box.SIMPLE_HEAD, title_justify="left")
        for name in ("margin", "rows", "mismatches", "harmful", "share", "95 % interval"):
            table.add_column(name, justify="right", no_wrap=True)
        for item in self.margins:
            low, high = item.interval
            table.add_row(
                f"{item.low:.2f} to {item.high:.2f}", f"{item.rows:,}", f"{item.mismatches:,}",
                "" if item.harmful is None else f"{item.harmful:,}", f"{100 * item.share:.2f} %",
                f"{100 * low:.1f} to {100 * high:.1f} %",
            )  # fmt: skip
        return table

    def population_table(self) -> Table | None:
        """Exemplars and churn over several seeds, or None when only one network was audited."""
        if self.exemplars is None and self.original_churn is None:
            return None
        table = Table(title="Several networks", box=box.SIMPLE_HEAD, title_justify="left", show_header=False)
        table.add_column("what")
        table.add_column("value", justify="right", no_wrap=True)
        for name, found in (("compressed networks", self.seed_churn), ("originals", self.original_churn)):
            if found is not None:
                table.add_row(f"mean mismatch between two {name}", f"{100 * found.mean:.2f} %")
        if (found_exemplars := self.exemplars) is not None:
            table.add_row("compression-identified exemplars", f"{found_exemplars.rows.size:,}")
            for when in ("before", "after"):
                share = getattr(found_exemplars, f"accuracy_{when}_on_exemplars")
                if share is not None:
                    table.add_row(f"accuracy on them {when}", f"{100 * share:.1f} %")
            for item in found_exemplars.classes:
                if item.corrected_p_value < 0.05:
                    table.add_row(f"class {item.label} beside the mean", f"{100 * item.shift:+.2f} points")
            if found_exemplars.untested:
                count = f"{found_exemplars.untested:,} of {len(found_exemplars.classes):,}"
                table.add_row("classes whose shift beside the mean is not testable", count)
        return table

    def tables(self) -> Group:
        """All tables as one renderable for rich."""
        extra = self.population_table()
        if self.regression is not None:
            return Group(self.table())
        return Group(self.table(), self.margin_table(), *([] if extra is None else [extra]))

    def write(self, path: str | Path) -> Path:
        """Write the audit as one self-contained HTML file, pictures of the forgotten examples included.

        Raises:
            StorageError: when the file cannot be written.
        """
        return write_audit(self, path)


def audit(
    model: nn.Module,
    small: nn.Module,
    batches: Iterable[Any],
    *,
    others: Sequence[nn.Module] = (),
    originals: Sequence[nn.Module] = (),
    correction: Correction = "holm",
    most_forgotten: int = MOST_FORGOTTEN,
    **options: Unpack[EvaluationOptions],
) -> AuditReport:
    """Compare a compressed network with the original on all examples of the batches.

    Args:
        model: the original; unchanged.
        small: the compressed network; unchanged.
        batches: read once, so every network sees the same rows; see
            :func:`qubo_compress.calibration.examples.read_examples`.
            Without class labels there are only agreement, margins and divergence. Example weights count in the losses
            and the divergence only. A binary network's single logit is compared as two classes; outputs that are
            numbers, by how far they moved: see :class:`qubo_compress.audit.RegressionChange`.
        others: more compressed networks, such as plans from other calibration seeds: with ``small`` they form the
            population for exemplars and for the churn due to the seed alone.
        originals: networks trained independently of ``model``, as a second baseline.
        correction: for the classes' p-values: ``"holm"``, ``"benjamini-hochberg"`` or ``"none"``.
        most_forgotten: how many forgotten examples, or largest changes of numbers, are listed.
        options: ``loss``, what the networks are for; ``output`` and ``class_axis``, how what they return is read;
            ``batch_size``, examples run at once: see :func:`qubo_compress.measure`.

    Raises:
        InvalidBatches: when the batches cannot be used, every label is ignored, or several networks give numbers.
        UnknownName: when there is no such correction.

    Example:
        >>> import torch
        >>> net = nn.Linear(2, 2)
        >>> audit(net, net, [(torch.eye(2), torch.tensor([0, 1]))]).mismatches
        0
    """
    refuse_unknown(audit, options, EvaluationOptions.__annotations__)
    corrected((), correction)  # a misspelt name must fail before the networks run
    examples, loss = read_settled(model, batches, **options)
    before, after = outputs_of(model, examples), outputs_of(small, examples)
    task = make_loss(loss)
    if is_regression(task, before[0].shape[-1]):
        if others or originals:
            raise InvalidBatches("others and originals are compared by their classes, and these networks give numbers")
        return AuditReport(
            examples=examples.count, rows=sum(len(rows) for rows in before), agreement=None, mismatches=None,
            divergence=_mean_loss(SquaredError(), _unlabelled(examples), after, before), correction=correction,
            regression=regression_change(examples, before, after, most_forgotten),
        )  # fmt: skip
    if isinstance(task, BinaryCrossEntropy):
        examples = _binary(examples, before)
        before, after = _single_logits(before), _single_logits(after)
    answers = answers_of(examples, before, after)
    kinds = count_mismatches(answers)
    report = AuditReport(
        examples=examples.count,
        rows=kinds.rows,
        agreement=1.0 - float(answers.differ.double().mean()),
        mismatches=kinds.total,
        divergence=_mean_loss(KullbackLeibler(), examples, after, before),
        kinds=kinds,
        margins=margin_bins(answers),
        correction=correction,
    )
    report = _with_population(report, answers, others, originals, examples)
    if answers.labels is None:
        return report
    if not bool(answers.counted.any()):  # negative labels are those to be ignored
        raise InvalidBatches("every label is -100, which means ignored; give labels, or batches without any")
    total, kept = int(answers.counted.sum()), int(answers.right_after.sum())
    lost = forgotten(answers, most_forgotten)
    return replace(
        report,
        accuracy_before=int(answers.right.sum()) / total,
        accuracy_after=kept / total,
        accuracy_interval=wilson(kept, total),
        accuracy_change_interval=change_interval(answers, examples, [len(rows) for rows in before]),
        loss_before=_mean_loss(CrossEntropy(), examples, before, before),
        loss_after=_mean_loss(CrossEntropy(), examples, after, before),
        harmful=kinds.harmful,
        repaired=kinds.repaired,
        classes=class_changes(answers, correction),
        forgotten=lost,
        images=images_of(examples, [item.row for item in lost]) if kinds.rows == examples.count else None,
    )


def _with_population(
    report: AuditReport,
    answers: Answers,
    others: Sequence[nn.Module],
    originals: Sequence[nn.Module],
    examples: Examples,
) -> AuditReport:
    if not others and not originals:
        return report
    labels = answers.labels
    first = _joined(answers.before, originals, examples)
    if others:
        second = _joined(answers.after, others, examples)
        report = replace(
            report,
            exemplars=exemplars_of(first, second, labels, report.correction),
            seed_churn=churn_of(second, labels),
        )
    return replace(report, original_churn=churn_of(first, labels) if originals else None)


def _joined(known: Tensor, others: Sequence[nn.Module], examples: Examples) -> Tensor:
    """(1 + K, M) predictions: the known ones, then those of the other networks."""
    if not others:
        return known[None]
    found = population(others, examples)[0]
    if found.shape[1] != known.shape[0]:
        raise InvalidBatches("several networks are compared by one answer in a row, and these give several")
    return torch.cat([known[None], found])


def _single_logits(outputs: list[Tensor]) -> list[Tensor]:
    """(M C, 2) rows: two classes for every logit."""
    return [two_columns(rows.reshape(-1, 1)) for rows in outputs]


def _binary(examples: Examples, outputs: list[Tensor]) -> Examples:
    """The examples with a label 0, 1 or -100 for every logit; without labels if the targets are anything else."""
    labels = [binary_labels(part.targets, rows.cpu()) for part, rows in zip(examples.slices, outputs, strict=True)]
    if any(found is None for found in labels):
        return _unlabelled(examples)
    slices = [
        replace(part, targets=found.reshape(len(part), -1))
        for part, found in zip(examples.slices, labels, strict=True)
        if found is not None
    ]
    return replace(examples, slices=tuple(slices))


def _unlabelled(examples: Examples) -> Examples:
    return replace(examples, slices=tuple(replace(part, targets=None) for part in examples.slices), labelled=False)


def _mean_loss(loss: Loss, examples: Examples, outputs: list[Tensor], reference: list[Tensor]) -> float:
    """Weighted mean loss of outputs already computed: neither network runs again."""
    values = []
    for part, rows, against in zip(examples.slices, outputs, reference, strict=True):
        targets = None if part.targets is None else part.targets.to(rows.device)
        values.append(loss.values(rows, targets, against.to(rows.device)))
    return examples.mean(values)


def _shares(before: float, after: float, interval: tuple[float, float] | None) -> tuple[str, ...]:
    shown = "" if interval is None else f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}"
    return f"{100 * before:.2f} %", f"{100 * after:.2f} %", f"{100 * (after - before):+.2f}", shown
