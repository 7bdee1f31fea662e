"""The page of results: curves of every network, and ours less each peer at equal bytes."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from benchmarks.peers.curves import Difference, Point, at, difference, envelope, of_text
from benchmarks.peers.roster import GPT, NETWORKS, PEERS, examples_of
from benchmarks.records import Record, markdown, matching, newest, table

TWO_ERRORS = 2.0
KEY = ("network", "peer", "menu", "measured_by", "setting", "wanted", "examples", "seed")


def pages(records: Iterable[Record], about: str) -> str:
    """Everything."""
    found = newest(records, "step", *KEY)
    rows = [one for one in found if one["step"] in ("made", "ours") and "each" in one]
    parts = [f"# Ours beside compressors of other packages\n\n{about}\n", _peers(found)]
    for network in NETWORKS:
        for examples in sorted({one["examples"] for one in rows if one["network"] == network}, reverse=True):
            parts.append(_network(matching(rows, network=network, examples=examples), network, examples))
    return "\n".join(parts)


def _peers(records: list[Record]) -> str:
    """What was installed, and why something was not."""
    rows = []
    for peer in PEERS:
        installed = matching(records, step="installed", peer=peer.name)
        versions = installed[-1].get("versions", {}) if installed else {}
        versions = {name.replace("_", "-"): version for name, version in versions.items()}
        wanted = [name for name in peer.packages if "==" not in name and name != "safetensors"]
        shown = ", ".join(f"{name} {versions[name]}" for name in wanted if name in versions)
        skips = [_skip(one) for one in records if one.get("peer") == peer.name and "skipped" in one]
        rows.append([peer.name, shown, peer.source, peer.note, "; ".join(dict.fromkeys(skips)).replace("|", "/")])
    return "## The peers\n\n" + markdown(["peer", "versions", "source", "how", "skipped"], rows)


def _skip(record: Record) -> str:
    """Why there is no figure, and of what."""
    what = ", ".join(str(record[name]) for name in ("network", "setting") if name in record)
    return f"{what}: {record['skipped']}" if what else str(record["skipped"])


def _network(rows: list[Record], network: str, examples: int) -> str:
    """One network with some calibration examples: differences first, then the points of all curves."""
    first = rows[0]
    what = f"loss {first['original_loss']:.4f}" if network == GPT else f"{first['original']:.2f} %"
    title = f"## {network}, {examples_of(network, examples):,} calibration examples"
    return f"{title}\n\nThe original: {what}.\n\n{_differences(rows, network)}\n{_points(rows, network)}"


def _name(row: Record) -> str:
    return row["peer"] if row["step"] == "made" else _ours(row)


def _ours(row: Record) -> str:
    return f"ours, {row['menu']}" + ("" if row["measured_by"] == "auto" else f", {row['measured_by']}")


def _curves(rows: Sequence[Record]) -> dict[str, dict[int, list[Point]]]:
    """Name -> seed -> points."""
    found: dict[str, dict[int, list[Point]]] = {}
    for row in rows:
        point = Point(row["bytes"], of_text(row["each"]))
        found.setdefault(_name(row), {}).setdefault(row["seed"], []).append(point)
    return found


def _differences(rows: list[Record], network: str) -> str:
    """Ours less each peer's at the bytes of our files."""
    curves, ours = _curves(rows), [one for one in rows if one["step"] == "ours"]
    peers = [peer.name for peer in PEERS if peer.name in curves]
    lines = []
    for name in dict.fromkeys(map(_name, ours)):
        mine = [one for one in ours if _name(one) == name]
        for wanted in sorted({one["wanted"] for one in mine}):
            group = matching(mine, wanted=wanted)
            ratio = statistics.mean(one["ratio"] for one in group)
            cells = [_difference(group, curves[peer], network) for peer in peers]
            lines.append([name, f"{ratio:.2f}x", _score(group, network), *cells])
    if not lines:
        return ""
    unit = "nats" if network == GPT else "points"
    return (
        f"Ours less the peer's at the bytes of our file, in {unit}; more is better; plus or minus two standard errors. "
        "**Bold**: ours is worse. *Below*: the peer has no file as small.\n\n"
        + markdown(["ours", "ratio", "score", *peers], lines)
    )


def _score(rows: list[Record], network: str) -> str:
    name, factor = ("loss", ".4f") if network == GPT else ("accuracy", ".2f")
    return format(statistics.mean(one[name] for one in rows), factor)


def _difference(ours: list[Record], curve: dict[int, list[Point]], network: str) -> str:
    """One cell: the seeds that both have."""
    pairs = [(of_text(one["each"]), at(curve[one["seed"]], one["bytes"])) for one in ours if one["seed"] in curve]
    both = [(mine, theirs) for mine, theirs in pairs if theirs is not None]
    if not pairs:
        return ""
    if not both:
        return "*below*"
    return _shown(difference([mine for mine, _ in both], [theirs for _, theirs in both]), network)


def _shown(found: Difference, network: str) -> str:
    factor, digits = (1.0, 4) if network == GPT else (100.0, 2)
    text = f"{factor * found.mean:+.{digits}f} ± {TWO_ERRORS * factor * found.error:.{digits}f}"
    seeds = f" ({found.seeds} seeds)" if found.seeds > 1 else ""
    return f"**{text}**{seeds}" if found.mean < 0 else f"{text}{seeds}"


def _points(rows: list[Record], network: str) -> str:
    """The points of every curve, means over seeds; those that a smaller file of the same peer beats are left out."""
    lines = []
    for name in dict.fromkeys(map(_name, rows)):
        mine = [one for one in rows if _name(one) == name]
        first = [Point(one["bytes"], of_text(one["each"])) for one in mine if one["seed"] == mine[0]["seed"]]
        kept = {point.nbytes for point in envelope(first)}
        groups: dict[str, list[Record]] = {}
        for one in mine:
            groups.setdefault(one.get("setting") or f"{one['wanted']:g}x", []).append(one)
        for setting, group in groups.items():
            if any(one["bytes"] in kept for one in group):
                lines.append(_point(name, setting, group))
    lines.sort(key=lambda line: (line["name"].startswith("ours"), line["name"], line["ratio"]))
    columns = {
        "": "{name}", "setting": "{setting}", "bytes": "{bytes:,.0f}", "ratio": "{ratio:.2f}x",
        **({} if network == GPT else {"top-1": "{accuracy:.2f}"}), "loss": "{loss:.4f}",
        "seeds": "{seeds}", "coder": "{coder}", "CPU s, tool": "{cpu_tool:.0f}",
    }  # fmt: skip
    return table(lines, columns)


def _point(name: str, setting: str, group: list[Record]) -> Record:
    def mean(field: str) -> float:
        return statistics.mean(one.get(field, 0.0) for one in group)

    fields = {field: mean(field) for field in ("bytes", "ratio", "accuracy", "loss", "cpu_tool")}
    return fields | {"name": name, "setting": setting, "seeds": len(group), "coder": group[0].get("coder", "its own")}
