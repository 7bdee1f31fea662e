"""The summary on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qubo_compress._internal.text import printable
from qubo_compress.page.numbers import number, percent, signed, size
from qubo_compress.report import facts, verdict

if TYPE_CHECKING:
    from qubo_compress.pipeline.compress import CompressionResult

MOST_ROWS = 80
MOST_KEPT = 20


def print_summary(result: CompressionResult, console: Console | None = None) -> None:
    """Print what the compression did: sizes, losses, solver, every group, and what was kept.

    Args:
        result: of :func:`qubo_compress.compress`.
        console: where to print; default: standard output.
    """
    details = [
        Text(printable(f"  {sentence}"), "dim")
        for sentence in (*verdict.about_solver(result), *facts.about_calibration(result))
    ]
    warned = [said for said in (verdict.warnings(result), verdict.few_examples(result)) if said]
    # One renderable, so that a notebook shows one output instead of a dozen.
    everything = Group(
        Text(f"\n{verdict.headline(result)}\n", "bold"),
        *(Text(printable(sentence)) for sentence in verdict.measured_sentences(result)),
        *(Text(printable(f"\nWarning: {' '.join(sentences)}"), "bold red") for sentences in warned),
        "",
        scores_table(result),
        "",
        candidates_table(result),
        "",
        groups_table(result),
        *_kept(result),
        *details,
        Text(f"  {facts.about_speed(result)}"),
    )
    (console or Console()).print(everything)


def scores_table(result: CompressionResult) -> Table:
    """Bytes, loss and accuracy before and after."""
    plan = result.plan
    stages = [("before", result.before, plan.original_bytes), ("plan applied", result.compressed, plan.bytes)]
    if result.recovered is not None:
        stages.append((f"recovered{'' if result.recovery_kept else ', not kept'}", result.recovered, plan.bytes))
    table = Table(title="What it cost", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", "bytes", "smaller", "bits/weight", "loss", "accuracy"):
        table.add_column(name, justify="right" if name else "left")
    for name, score, count in stages:
        table.add_row(
            name, f"{count:,}", f"{plan.original_bytes / count:.2f} x", f"{8 * count / max(1, plan.parameters):.2f}",
            number(score.loss), percent(score.accuracy),
        )  # fmt: skip
    table.caption = f"on {verdict.counted(result.before.examples)}"
    table.caption_justify = "left"
    return table


def candidates_table(result: CompressionResult) -> Table:
    """Predicted and measured loss of every plan that was compared."""
    proof, model = verdict.proof_text(result)
    table = Table(
        title="Every plan that was measured", title_justify="left", title_style="bold", caption_justify="left",
        caption=f"± two standard errors; solver {result.solution.solver}: {proof.lower()} {model}",
        box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    for name in verdict.CANDIDATE_HEAD:
        table.add_column(name, justify="left" if name == "plan" else "right", overflow="fold")
    for row in verdict.candidate_rows(result):
        table.add_row(*row, style="bold" if row[0].startswith("taken") else None)
    return table


def groups_table(result: CompressionResult) -> Table:
    """One row per group: choice, bits, zeros, bytes, and the loss change of the choice alone."""
    every = facts.group_rows(result)
    bundles = facts.bundle(every, most=MOST_ROWS, vectors_from=len(every) + 1)
    table = Table(
        title="Groups", title_justify="left", title_style="bold", caption=bundles.sentence or None,
        caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=0,
    )  # fmt: skip
    table.add_column("group", overflow="fold")
    table.add_column("choice", overflow="fold")
    for name in ("bits", "zeros", "bytes", "from", "loss alone"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in facts.bundled_rows(every, bundles):
        table.add_row(
            escape(row.name), escape(_narrow(row.choice)), f"{row.bits:.3g}",
            "–" if row.zeros is None else f"{100 * row.zeros:.0f} %", f"{row.bytes:,}", f"{row.original_bytes:,}",
            signed(row.alone, digits=2),
        )  # fmt: skip
    table.add_section()
    kept = sum(item.nbytes for item in result.table.layout.kept)
    table.add_row("header, kept tensors", "", "", "", f"{result.table.fixed_costs['bytes']:,}", f"{kept:,}", "")
    plan = result.plan
    table.add_row("in all", "", "", "", f"{plan.bytes:,}", f"{plan.original_bytes:,}", "", style="bold")
    return table


def _narrow(choice: str) -> str:
    """A choice that may break after commas; of several joined ones, the two most common."""
    listed = choice.split("; ")
    shown = "; ".join(listed[:2]) + ("; …" if len(listed) > 2 else "")
    return shown.replace(",", ", ").replace(" × ", "×")


def _kept(result: CompressionResult) -> list[Text]:
    rows = facts.kept_rows(result)
    lines = [Text("Kept as it was" if rows else "Kept as it was: nothing", "bold")]
    lines += [Text(f"  {row.name} ({size(row.nbytes)}): {row.reason}") for row in rows[:MOST_KEPT]]
    if len(rows) > MOST_KEPT:
        lines.append(Text(f"  and {len(rows) - MOST_KEPT:,} more; the HTML report lists them"))
    return lines
