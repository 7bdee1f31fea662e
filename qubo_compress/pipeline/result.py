"""The result of one call of ``compress``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from qubo_compress.artifact.writing import save
from qubo_compress.audits import AuditReport
from qubo_compress.budget import Budget
from qubo_compress.calibration.evaluation import Score
from qubo_compress.exports import Exported, export
from qubo_compress.network.inputs import Inputs
from qubo_compress.pipeline.decisions import ChannelDecisions
from qubo_compress.pipeline.refinement import Round
from qubo_compress.plan import Plan
from qubo_compress.report import print_summary, write_report
from qubo_compress.report.notebook import result_html, result_text
from qubo_compress.selection.comparison import Comparison
from qubo_compress.selection.evolution import Evolution
from qubo_compress.sensitivity.table import SensitivityTable
from qubo_compress.solvers.solution import Solution
from qubo_compress.timing import Elsewhere, run_elsewhere


@dataclass(frozen=True, eq=False)
class CompressionResult:
    """The complete result of one call of :func:`compress`.

    Attributes:
        model: the compressed network, recovered if that helped, in eval mode; it carries its plan.
        original: the given network, unchanged.
        compressed_model: the plan applied, before any recovery.
        plan: the choice of every group.
        solution: the solver's answer behind the plan, with its bound.
        table: the sensitivity table that was solved first.
        rounds: the first solve and every refinement.
        before, compressed, recovered: scores on the held-out examples: of the original, the plan applied,
            and the plan recovered (None without recovery), kept or not.
        applied_comparison, recovered_comparison: the last two networks against the original, example by example.
        recovery_kept: whether ``model`` is the recovered network, which it is unless recovery made it worse on the
            held-out examples, by the measure that chose the plan.
        held_out_is_validation: whether these examples are the caller's validation batches.
        budget: as given.
        evolution: the search on the network, with its trace; None without one. Its plan is the candidate
            ``"evolved"`` of the round taken.
        decisions: what was decided about channels beside the layers' choices; None if nothing was.
        inputs: some of the held-out inputs, batch by batch, which :meth:`export` checks a file with.
        epochs: passes of fine-tuning behind ``recovered``; 0: a repair without training. Not known to
            :func:`qubo_compress.pipeline.review.review`, which says 0.
        reconstructed: whether the repair stored layers again for their inputs in the compressed network; not known with
            fine-tuning.
    """

    model: nn.Module
    original: nn.Module
    compressed_model: nn.Module
    plan: Plan
    solution: Solution
    table: SensitivityTable
    rounds: tuple[Round, ...]
    before: Score
    compressed: Score
    recovered: Score | None
    applied_comparison: Comparison
    recovered_comparison: Comparison | None
    recovery_kept: bool
    held_out_is_validation: bool
    budget: Budget
    evolution: Evolution | None = None
    decisions: ChannelDecisions | None = None
    inputs: tuple[Inputs, ...] = ()
    epochs: int = 0
    reconstructed: bool = False

    def __repr__(self) -> str:
        """Its headline: networks and tables would fill a notebook."""
        return result_text(self)

    def _repr_html_(self) -> str:
        return result_html(self)

    @property
    def taken(self) -> Round:
        """The round whose plan was taken: the last accepted one."""
        return [found for found in self.rounds if found.accepted][-1]

    @property
    def expected_loss(self) -> float:
        """Predicted loss change of the plan, corrected by the measurement of another plan of its table.

        ``plan.predicted_loss`` is the table's own prediction. Both are for the plan applied, before any recovery; see
        :func:`qubo_compress.selection.candidates.expectations`.
        """
        return self.taken.chosen.expected

    @property
    def predicted_latency(self) -> float | None:
        """Milliseconds of one run, as the budget's latency table predicts them; None without a table.

        :func:`qubo_compress.measured_latency` measures them.
        """
        return None if self.budget.latency is None else self.budget.latency.predicted(self.plan.choices)

    @property
    def final(self) -> Score:
        """The score of ``model`` on the held-out examples."""
        return self.recovered if self.recovered is not None and self.recovery_kept else self.compressed

    @property
    def comparison(self) -> Comparison:
        """``model`` against the original on the held-out examples."""
        kept = self.recovered_comparison if self.recovery_kept else None
        return self.applied_comparison if kept is None else kept

    def save(self, path: str | Path) -> int:
        """Write the compressed network; returns the bytes written."""
        return save(self.model, path)

    def export(self, path: str | Path, format: str = "onnx", **options: Any) -> Exported:
        """Write the compressed network for other programs, checked on held-out examples.

        Args:
            path: of the file.
            format: see :func:`qubo_compress.export`.
            options: its other arguments.
        """
        return export(self.model, path, list(self.inputs), format, **options)

    def elsewhere(self, batch: int = 1, runtimes: Sequence[str] | None = None, **options: Any) -> Elsewhere:
        """Export the original and the compressed network, and run both: bytes, milliseconds, equal answers.

        Args:
            batch: held-out examples of one run.
            runtimes: ``"onnxruntime"``, ``"openvino"``; None: those that are installed.
            options: of :func:`qubo_compress.timing.run_elsewhere`.
        """
        whole = self.table if self.decisions is None else self.decisions.table
        plain = whole.plan({}).apply(self.original)
        return run_elsewhere(self.model, plain, list(self.inputs), batch, runtimes, **options)

    def report(self, path: str | Path, audit: AuditReport | None = None, elsewhere: Elsewhere | None = None) -> Path:
        """Write one self-contained HTML file and return its path.

        Args:
            path: of the file.
            audit: adds its sections.
            elsewhere: of :meth:`elsewhere`; adds the table of runtimes.
        """
        return write_report(self, path, audit=audit, elsewhere=elsewhere)

    def show(self) -> None:
        """Print the summary tables on the terminal."""
        print_summary(self)
