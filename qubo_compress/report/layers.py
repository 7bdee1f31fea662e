"""What the plan does to each layer: two strips of bars, and a table that sorts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from qubo_compress.page.html import table_html
from qubo_compress.page.numbers import number, percent, signed, size
from qubo_compress.report import facts
from qubo_compress.report.facts import GroupRow, bundle, bundled_rows

if TYPE_CHECKING:
    from qubo_compress.pipeline.compress import CompressionResult

MOST_BARS = 240
"""Groups in a strip; beyond that, several share a bar."""

MOST_CHANNELS = 40
"""The same where groups are channels, which are either there or not: what is left of each layer says more."""

VECTORS_JOINED_FROM = 80

MOST_ROWS = 400
"""Groups in the table; beyond that, filters are joined to layers."""

TALL_FROM = 30
"""A table of more rows scrolls in a box."""

ABOUT_BITS = (
    "Bits per value as the file stores it, scales and masks included, in the order of the network. "
    "Pale: biases and normalisations."
)
ABOUT_COLUMNS = (
    "Code bits: of one number in the file. Stored bits: all bytes in the file, scales and masks included, over the "
    "values that the layer had. The loss change of a choice alone is with everything else unchanged."
)
ABOUT_FOLD = (
    "A fold stores two numbers, scale and shift, for the four of a normalisation's channel, so its stored bits are "
    "about half of its code bits. "
)
ABOUT_BYTES = "Bytes: grey before, amber after."


def layers_section(result: CompressionResult) -> str:
    """Strips and table as one section of HTML."""
    every = facts.group_rows(result)
    return f"<section><h2>Layers</h2>{strips(every)}{_table(result, every)}</section>"


def strips(every: Sequence[GroupRow]) -> str:
    """Bits and bytes of every group as bars, each of which tells name, choice and bytes."""
    most_bars = MOST_CHANNELS if any(row.kind == "channels" for row in every) else MOST_BARS
    bundles = bundle(every, most=most_bars, vectors_from=VECTORS_JOINED_FROM)
    rows = bundled_rows(every, bundles)
    # One group kept at 32 bits must not flatten the difference between 2 and 4.
    most = max(8.0, min(16.0, max(row.stored_bits for row in rows)))
    # Neither must a row of many joined groups flatten the bytes of all others.
    single = [row.original_bytes for row in rows if row.groups == 1 or row.kind == "channels"]
    largest = max(1, *(single or [row.original_bytes for row in rows]))
    bits, sizes = [], []
    for row in rows:
        told, pale = escape(_told(row), quote=True), ' class="pale"' * (row.kind not in ("weight", "channels"))
        bits.append(f'<i{pale} title="{told}" style="--v:{min(1.0, row.stored_bits / most):.3g}"></i>')
        left = min(1.0, row.bytes / max(1, row.original_bytes))
        sizes.append(
            f'<i class="grey" title="{told}" style="--v:{min(1.0, row.original_bytes / largest):.3g}">'
            f'<b style="--v:{left:.3g}"></b></i>'
        )
    lines = "".join(f'<em style="--v:{tick / most:.3g}">{tick}</em>' for tick in (2, 4, 8, 16) if tick <= most)
    least, greatest = min(row.stored_bits for row in rows), max(row.stored_bits for row in rows)
    alternative = (
        f"bits per value of {len(rows)} rows in the network's order, from {number(least)} to {number(greatest)}; the "
        "table below has them all"
    )
    before, after = sum(row.original_bytes for row in rows), sum(row.bytes for row in rows)
    below = f"bytes of the same rows: {size(before)} before, {size(after)} after; the table below has them all"
    joined = f" {bundles.sentence}" if bundles.sentence else ""
    return (
        f'<p class="key">{ABOUT_BITS}{escape(joined)}</p><div class="strip" role="img" aria-label="{alternative}">'
        f'{lines}{"".join(bits)}</div><p class="key">{ABOUT_BYTES}</p><div class="strip low" role="img" '
        f'aria-label="{below}">{"".join(sizes)}</div><p class="told" aria-live="polite"></p>'
    )


def _told(row: GroupRow) -> str:
    return (
        f"{row.name}: {row.choice}, {size(row.original_bytes)} to {size(row.bytes)}, {row.stored_bits:.1f} bits per "
        "value"
    )


def _table(result: CompressionResult, every: Sequence[GroupRow]) -> str:
    bundles = bundle(every, most=MOST_ROWS, vectors_from=len(every) + 1)
    rows = bundled_rows(every, bundles)
    lines = [
        [
            row.name, row.choice, f"{row.bits:.3g}", f"{row.stored_bits:.1f}", percent(row.zeros),
            f"{row.original_bytes:,}", f"{row.bytes:,}", signed(row.alone),
        ]
        for row in rows
    ]  # fmt: skip
    kept = sum(item.nbytes for item in result.table.layout.kept)
    overhead = int(result.table.fixed_costs["bytes"])
    totals = [
        ["file header, tensors outside all groups", "", "", "", "", f"{kept:,}", f"{overhead:,}", ""],
        ["in all", "", "", "", "", f"{result.plan.original_bytes:,}", f"{result.plan.bytes:,}", ""],
    ]
    bars = {
        3: ("blue", _shares([min(row.stored_bits, 16.0) for row in rows])),
        4: ("teal", [row.zeros or 0.0 for row in rows]),
        6: ("amber", _shares([float(row.bytes) for row in rows])),
    }
    head = ["layer", "choice", "code bits", "stored bits", "zeros", "bytes before", "after", "loss change alone"]
    said = f"{ABOUT_COLUMNS} {ABOUT_FOLD * any('fold' in row.choice for row in rows)}{bundles.sentence}"
    if bundles.sentence:
        said += " The plan's own file, written by plan.save, has them all."
    table = table_html(
        head, lines, numeric=range(2, 8), names=(0, 1), totals=totals, bars=bars, tall=len(lines) > TALL_FROM
    )
    return f'<p class="note" style="margin-top:14px">{escape(said)}</p>{table}'


def _shares(values: Sequence[float]) -> list[float]:
    most = max(values) or 1.0
    return [value / most for value in values]
