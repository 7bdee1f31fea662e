"""The demo's comparison for five networks: the shipped one, and four trained like it with other seeds.

    python -m benchmarks.studies.example_network [--seeds 0 1 2 3 4] [table]

Needs Fashion-MNIST; trains what was not trained before, two CPU minutes a network. Every network has the ratio that the
demo's rule gives it, and is scored on all 10,000 test pictures. The picture is ``docs/example_network.png``.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict
from typing import Any

from benchmarks.demo import RULE, Contender, compared, ratio_where_choosing_matters
from benchmarks.demo.screen import COLOURS, draw
from benchmarks.networks.example import example_of_seed
from benchmarks.records import RESULTS
from benchmarks.study import Study, grid
from qubo_compress import measure

PICTURE = RESULTS.parents[1] / "docs" / "example_network.png"
STUDY = Study(__doc__, "example_network", seeds=[0, 1, 2, 3, 4])


@STUDY.step(lambda options: grid(seed=options.seeds))
def comparison(options: Any, seed: int) -> dict[str, Any]:
    """The ratio of one network, and its contenders."""
    network = example_of_seed(seed)
    tried = ratio_where_choosing_matters(network, measure(network.model, network.calibration, progress=False), print)
    found = compared(network, tried[-1].ratio, seed, progress=False)
    return {
        "ratio": tried[-1].ratio, "uniform_lost_on_calibration": tried[-1].lost, "winner": list(found.winner),
        "contenders": [asdict(one) for one in found.contenders],
    }  # fmt: skip


@STUDY.table
def tables(options: Any) -> str:
    """A row for each network, the means, and the picture."""
    records = sorted(STUDY.records(), key=lambda record: record["seed"])
    networks = [[Contender(**one) for one in record["contenders"]] for record in records]
    lines = [
        f"Ratio: {RULE}. Change of test accuracy in points, and flips in percent of the answers; 95 % intervals over "
        f"the {networks[0][0].examples:,} test pictures.",
        "",
        "| seed | ratio | bytes | accuracy | uniform | flips | additive | flips | ours | flips | plan taken |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for record, contenders in zip(records, networks, strict=True):
        scores = [cell for name in COLOURS for cell in _cells(contenders, name)]
        ours = _of(contenders, "ours")
        lines.append(
            f"| {record['seed']} | {record['ratio']:g}x | {ours.bytes:,} | {contenders[0].accuracy:.2f} % | "
            f"{' | '.join(scores)} | {', '.join(record['winner'])} |"
        )
    means = [
        f"{statistics.mean(value(_of(contenders, name)) for contenders in networks):{form}}"
        for name in COLOURS
        for value, form in ((lambda one: one.change[0], "+.2f"), (lambda one: one.flipped[0], ".2f"))
    ]
    lines.append(f"| mean | | | | {' | '.join(means)} | |")
    draw(networks, PICTURE)
    return "\n".join(lines) + "\n"


def _of(contenders: list[Contender], name: str) -> Contender:
    return next(one for one in contenders if one.name == name)


def _cells(contenders: list[Contender], name: str) -> tuple[str, str]:
    one = _of(contenders, name)
    change, flips = one.change, one.flipped
    return (
        f"{change[0]:+.2f} ({change[1]:+.2f} to {change[2]:+.2f})",
        f"{flips[0]:.2f} ({flips[1]:.2f} to {flips[2]:.2f})",
    )


if __name__ == "__main__":
    STUDY.main()
