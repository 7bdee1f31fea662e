"""The main job on a real network: compress the digits network tenfold and say what it cost.

    python -m benchmarks.demo [--ratio 10] [--seeds 5] [--limit] [--jobs 1] [--out out]

For every seed another network is trained, calibrated on training images and scored on the test images,
beside two opponents of the same bytes: the best single choice for all layers, the rest spent in a fixed order
(``uniform``), recovered the same way, and a smaller float32 network, trained by the same recipe. The first
network's report is written to ``out/report.html``, all figures to ``out/demo.json``.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from joblib import Parallel, delayed, parallel_config
from rich.console import Console
from rich.table import Table
from torch import nn

import qubo_compress as qc
from benchmarks.networks import accuracy_and_loss, float32_bytes, load, train_digits, train_small_digits
from benchmarks.study import Option, command_line
from qubo_compress.selection.front import FrontPoint, SolveSettings, try_ratios

CALIBRATION_EXAMPLES = 600
LIMIT_RATIOS = (10.0, 14.0, 18.0, 20.0, 22.0, 24.0, 26.0, 28.0, 30.0)


@dataclass(frozen=True)
class Row:
    """One seed: bytes and test accuracies in percent."""

    seed: int
    original_bytes: int
    bytes: int
    original: float
    compressed: float
    recovered: float
    uniform_bytes: int
    uniform: float
    uniform_choice: str
    small_bytes: int
    small: float

    @property
    def drop(self) -> float:
        """Points of test accuracy lost by the plan, recovered."""
        return self.original - self.recovered


def percent(model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Test accuracy in percent."""
    return 100.0 * accuracy_and_loss(model, batches)[0]


def run_seed(seed: int, ratio: float, report: Path | None, console: Console | None) -> Row:
    """Train or load, compress, compare."""
    network = load("digits", calibration_examples=CALIBRATION_EXAMPLES, seed=seed)
    model = network.model if seed == 0 else train_digits(seed=seed)
    result = qc.compress(
        model, network.calibration, qc.Budget(ratio=ratio), validation=network.validation,
        time_limit=3.0, seed=seed, progress=report is not None,
    )  # fmt: skip
    size = result.save(report.parent / "digits.safetensors") if report else result.plan.bytes
    if report is not None and console is not None:
        result.show()
        console.print(f"report written to [bold]{result.report(report)}[/bold]")
    uniform = qc.solve(result.table.problem(qc.Budget(ratio=ratio)), "uniform")
    uniform_plan = result.table.plan(uniform)
    uniform_model = qc.recover(uniform_plan.apply(model), network.calibration, model, progress=False)
    small = train_small_digits(size, seed=seed)
    names = [choice for choice in uniform_plan.choices.values() if choice.startswith(("quantize", "prune", "keep"))]
    return Row(
        seed=seed,
        original_bytes=result.plan.original_bytes,
        bytes=size,
        original=percent(model, network.test),
        compressed=percent(result.compressed_model, network.test),
        recovered=percent(result.model, network.test),
        uniform_bytes=uniform_plan.bytes,
        uniform=percent(uniform_model, network.test),
        uniform_choice=max(set(names), key=names.count),
        small_bytes=float32_bytes(small),
        small=percent(small, network.test),
    )


def limit(ratios: tuple[float, ...], seed: int = 0) -> list[dict[str, float]]:
    """Drop of the recovered plan over growing ratios, one measurement for all."""
    network = load("digits", calibration_examples=CALIBRATION_EXAMPLES, seed=seed)
    before = percent(network.model, network.test)
    table = qc.measure(network.model, network.calibration, progress=False)
    rows = []
    for point in try_ratios(table, ratios, SolveSettings(time_limit=3.0)):
        if not isinstance(point, FrontPoint):
            break
        small = qc.recover(point.plan.apply(network.model), network.calibration, network.model, progress=False)
        rows.append(
            {"ratio": point.plan.ratio, "bytes": point.plan.bytes, "drop": before - percent(small, network.test)}
        )
    return rows


def show(rows: list[Row], console: Console) -> None:
    """Print the comparison."""
    table = Table(title="digits: test accuracy in percent at equal bytes")
    for name in ("seed", "bytes", "ratio", "original", "applied", "recovered", "drop", "uniform", "small float32"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            str(row.seed), f"{row.bytes:,}", f"{row.original_bytes / row.bytes:.2f}", f"{row.original:.2f}",
            f"{row.compressed:.2f}", f"{row.recovered:.2f}", f"{row.drop:+.2f}",
            f"{row.uniform:.2f} ({row.uniform_choice}, {row.uniform_bytes:,} B)",
            f"{row.small:.2f} ({row.small_bytes:,} B)",
        )  # fmt: skip
    console.print(table)
    console.print(
        f"mean drop {statistics.mean(r.drop for r in rows):+.2f} points, worst {max(r.drop for r in rows):+.2f}; "
        f"uniform {statistics.mean(r.original - r.uniform for r in rows):+.2f}, "
        f"small float32 {statistics.mean(r.original - r.small for r in rows):+.2f}"
    )


def main() -> None:
    """Command line."""
    options = command_line(
        __doc__, ratio=10.0, seeds=5, out=Path("out"),
        limit=Option(False, "also find the ratio at which the drop passes one point"),
        jobs=Option(1, "processes for the seeds after the first, and for ratios"),
    )  # fmt: skip
    console = Console()
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    rows = [run_seed(0, options.ratio, options.out / "report.html", console)]
    with parallel_config(n_jobs=options.jobs):
        rows += Parallel()(delayed(run_seed)(seed, options.ratio, None, None) for seed in range(1, options.seeds))
    show(rows, console)
    with parallel_config(n_jobs=options.jobs):
        found = limit(LIMIT_RATIOS) if options.limit else []
    for point in found:
        console.print(f"ratio {point['ratio']:.1f} ({point['bytes']:,} bytes): drop {point['drop']:+.2f} points")
    seconds = time.perf_counter() - started
    console.print(f"{seconds:.0f} s in all")
    content = {"rows": [asdict(row) for row in rows], "limit": found, "seconds": seconds}
    (options.out / "demo.json").write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    # As a module of its name: other processes cannot read what belongs to __main__.
    from benchmarks import demo  # noqa: PLW0406

    demo.main()
