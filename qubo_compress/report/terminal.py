"""The summary on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qubo_compress._internal.text import broken, printable
from qubo_compress.page.numbers import number, percent, signed, size
from qubo_compress.report import amounts, facts, verdict
from qubo_compress.report.candidates import candidate_head, candidate_rows, column_sentences
from qubo_compress.report.comparisons import REPAIR, basis, compared_repaired

if TYPE_CHECKING:
    from qubo_compress.pipeline.compress import CompressionResult

MOST_ROWS = 80
MOST_KEPT = 20

COLUMNS_OF_NUMBERS = 40
"""What all other columns of the groups' table take."""

LONGEST_WORD = 18
"""Columns that most choices need, broken after commas: ``quantize(bits=3,``."""

FEWEST_COLUMNS = 12


def print_summary(result: CompressionResult, console: Console | None = None) -> None:
    """Print what the compression did: sizes, losses, solver, every group, and what was kept.

    Args:
        result: of :func:`qubo_compress.compress`.
        console: where to print; default: standard output.
    """
    console = console or Console()
    details = [
        Text(printable(f"  {sentence}"), "dim")
        for sentence in (*verdict.about_solver(result), *facts.about_calibration(result))
    ]
    warned = [said for said in (verdict.warnings(result), verdict.few_examples(result)) if said]
    # One renderable, so that a notebook shows one output instead of a dozen.
    everything = Group(
        Text(f"\n{verdict.headline(result)}\n", "bold"),
        *(Text(printable(sentence)) for sentence in verdict.measured_sentences(result)),
        *([Text(REPAIR)] if result.recovered is not None and compared_repaired(result) else []),
        *(Text(printable(f"\nWarning: {' '.join(sentences)}"), "bold red") for sentences in warned),
        "",
        scores_table(result),
        "",
        candidates_table(result),
        "",
        groups_table(result, console.width),
        *_kept(result),
        *details,
        Text(f"  {facts.about_speed(result)}"),
    )
    console.print(everything)


def scores_table(result: CompressionResult) -> Table:
    """Bytes, loss and accuracy before and after."""
    plan = result.plan
    stages = [("before", result.before, plan.original_bytes), ("plan applied", result.compressed, plan.bytes)]
    if result.recovered is not None:
        stages.append((verdict.stage_name(result), result.recovered, plan.bytes))
    table = Table(title="What it cost", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", "bytes", "smaller", "bits/weight", "loss", "accuracy"):
        table.add_column(name, justify="right" if name else "left")
    for name, score, count in stages:
        table.add_row(
            name, f"{count:,}", f"{plan.original_bytes / count:.2f} x", f"{8 * count / max(1, plan.parameters):.2f}",
            number(score.loss), percent(score.accuracy),
        )  # fmt: skip
    table.caption = f"on {amounts.counted(result.before.examples)}"
    table.caption_justify = "left"
    return table


def candidates_table(result: CompressionResult) -> Table:
    """Predicted and measured loss of the plans that were compared: the taken one, and the best of each kind."""
    proof, model = verdict.proof_text(result)
    found = result.taken
    some = any(candidate.repaired is not None for candidate in found.candidates)
    shown = candidate_head(result)[: 4 + some]
    rows, hidden = [], 0
    for candidate, row in zip(found.candidates, candidate_rows(result), strict=True):
        in_pool = candidate.name.startswith("solver ") and not candidate.also
        if in_pool and candidate.name != found.winner and candidate.repaired is None:
            hidden += 1
        else:
            rows.append(row[: len(shown)])
    solvers = f"solver: the answer of {result.solution.solver}, {proof.lower()} {model}."
    said = [sentence for sentence in (basis(result), *column_sentences(result), solvers) if sentence]
    if hidden:
        said.insert(0, f"Not shown: {hidden:,} more of the solver's best plans, measured in the same way.")
    table = Table(
        title="Plans that were measured", title_justify="left", title_style="bold", caption_justify="left",
        caption="\n".join(said), box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    for name in shown:
        table.add_column(name, justify="left" if name == "plan" else "right", no_wrap=name != "plan")
    for cells in rows:
        table.add_row(*cells, style="bold" if cells[0].startswith("taken") else None)
    return table


def groups_table(result: CompressionResult, width: int = 80) -> Table:
    """One row per group: choice, bits, zeros, bytes, and the loss change of the choice alone."""
    left = max(2 * FEWEST_COLUMNS, width - COLUMNS_OF_NUMBERS)
    every = facts.group_rows(result)
    bundles = facts.bundle(every, most=MOST_ROWS, vectors_from=len(every) + 1)
    table = Table(
        title="Groups", title_justify="left", title_style="bold", caption=bundles.sentence or None,
        caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=0,
    )  # fmt: skip
    table.add_column("group", no_wrap=True)
    table.add_column("choice", no_wrap=True)
    for name in ("bits", "zeros", "bytes", "from", "loss alone"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = list(facts.bundled_rows(every, bundles))
    longest = max((len(row.name) for row in rows), default=0)
    for row in rows:
        name = broken(row.name, max(left // 2, min(longest, left - LONGEST_WORD)))
        choice = broken(_narrow(row.choice), left - min(longest, max(left // 2, left - LONGEST_WORD)))
        table.add_row(
            escape(name), escape(choice), f"{row.bits:.3g}",
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
