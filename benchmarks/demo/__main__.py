"""The main job on one small trained network, beside what one would do without it.

    python -m benchmarks.demo [--ratio 12] [--seed 0] [--out out]

The network is ``qc.example_network()``. The ratio is chosen by a rule that looks at calibration examples only: the
demo prints it. The network is then compressed to the same bytes in three ways: ``uniform`` (the best single choice for
all layers, the rest spent in a fixed order), ``additive`` (the optimum of the same table without interactions), and
ours; all are recovered in the same way, and scored on the same 1,000 test examples. The report is written to
``out/report.html``, the picture to ``out/demo.png``, all figures to ``out/demo.json``. Several networks:
``python -m benchmarks.studies.example_network``.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

import qubo_compress as qc
from benchmarks.demo import RULE, Compared, Tried, compared, ratio_where_choosing_matters
from benchmarks.demo.alive import Alive
from benchmarks.demo.screen import draw, last_screen
from benchmarks.study import Option, command_line


def main() -> None:
    """Command line."""
    options = command_line(
        __doc__, seed=0, out=Path("out"),
        ratio=Option(None, "original bytes / bytes; default: by the rule", type=float),
    )  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    console, started = Console(), time.perf_counter()
    with Alive(console) as alive, TemporaryDirectory() as cache:
        network = qc.example_network()
        tried: list[Tried] = []
        if options.ratio is None:
            console.print(f"The ratio: {RULE}.", highlight=False)
            alive.step("measuring every choice of every layer")
            table = qc.measure(network.model, network.calibration, seed=options.seed, cache=cache)
            alive.step("looking for the ratio")
            tried = ratio_where_choosing_matters(network, table, lambda line: console.print(line, highlight=False))
        ratio = tried[-1].ratio if tried else options.ratio
        alive.step(f"compressing {ratio:g} times, and recovering three plans")
        found = compared(network, ratio, options.seed, cache)
        alive.step("writing the report")
        files = _written(found, tried, ratio, options.out)
    console.print(last_screen(found, ratio, RULE if tried else "given on the command line"))
    console.print(f"report: {files['report']}\npicture: {files['picture']}\nfile: {files['network']}", highlight=False)
    console.print(f"{time.perf_counter() - started:.0f} s in all", highlight=False)


def _written(found: Compared, tried: list[Tried], ratio: float, folder: Path) -> dict[str, Path]:
    """Write the network, the report, the picture and the figures; returns where they are."""
    files = {"network": folder / "example.safetensors", "picture": folder / "demo.png"}
    found.result.save(files["network"])
    files["report"] = found.result.report(folder / "report.html")
    draw([found.contenders], files["picture"])
    figures = {
        "rule": RULE, "tried": [asdict(one) for one in tried], "ratio": ratio, "winner": found.winner,
        "contenders": [asdict(one) for one in found.contenders],
    }  # fmt: skip
    (folder / "demo.json").write_text(json.dumps(figures, indent=1))
    return files


if __name__ == "__main__":
    main()
