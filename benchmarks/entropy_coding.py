"""What the entropy coder saves, and what it costs in time.

    python -m benchmarks.entropy_coding [--network cifar10-resnet20]

Every weight of the network is stored by ``quantize`` at several widths and sparsities, and on the even grid of
``lattice``, plainly and coded. The bound is the empirical entropy of every tensor's codes and mask, with the bytes that
no coder touches (scales, steps); a coder that does not know the frequencies cannot reach it. Speeds are of the values
coded; the step is what ``project`` takes for all layers, which fine-tuning pays at every step, after weights moved by a
tenth of their deviation. Records go to ``results/entropy_coding.jsonl``; the table is ``results/entropy_coding.md``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.networks import load
from benchmarks.records import RESULTS, append, environment, markdown, read
from qubo_compress.examples import read_examples
from qubo_compress.menu.coded import Coded
from qubo_compress.menu.groups import Group, discover
from qubo_compress.menu.operator import looks_at_data, parse
from qubo_compress.menu.streams import Mask, Streamed, Whole
from qubo_compress.sensitivity.losses import make_loss, rows_of
from qubo_compress.statistics import Calibration
from qubo_compress.statistics.input_moments import InputMoments

PATH = RESULTS / "entropy_coding.jsonl"
CHOICES = (
    *(f"quantize(bits={bits})" for bits in (2, 3, 4, 6, 8)),
    *(f"quantize(bits={bits},sparsity={share})" for bits in (2, 3, 4) for share in (0.5, 0.75, 0.9)),
    *(f"lattice(step={step},rate=1.0)" for step in (0.4, 0.8, 1.3, 2.2)),
)


class EntropyBound:
    """Adds up the empirical entropy of every stream."""

    def __init__(self) -> None:
        self.total = 0.0

    def raw(self, data: bytes) -> None:
        """As it is."""
        self.total += len(data)

    def mask(self, survivors: Mask) -> None:
        """Of the mask."""
        self.codes(survivors.astype(np.int64), 0, 1)

    def codes(self, values: Whole, low: int, high: int) -> None:
        """Of the codes."""
        counts = np.unique(values, return_counts=True)[1]
        self.total += float(-(counts * np.log2(counts / counts.sum())).sum()) / 8


def seconds_of(work: Callable[[], Any], repeats: int) -> float:
    """The least of several runs."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def run(options: argparse.Namespace) -> None:
    """Store, code, read back and project."""
    network = load(options.network, calibration_examples=options.examples)
    groups = [g for g in discover(network.model).groups if g.kind == "weight"]
    parts = {g.name: dict(network.model.named_parameters())[g.name].detach() for g in groups}
    examples = read_examples(network.calibration, options.examples)
    data = Calibration(network.model, examples, make_loss("cross-entropy"), lambda x: rows_of(network.model(x)), 0)
    moments = {g.name: InputMoments().collect(data, g) for g in groups}
    for name in CHOICES:
        stored = [_stored(name, group, parts[group.name], moments[group.name]) for group in groups]
        record = {"choice": name, **measured(name, groups, list(parts.values()), stored, options.repeats),
                  "network": options.network, "examples": options.examples, **environment()}  # fmt: skip
        append(PATH, record)
        print(" ".join(row_of(record)), flush=True)


def _stored(name: str, group: Group, part: Tensor, moments: tuple[Any, ...]) -> Streamed:
    operator: Any = parse(name)
    if looks_at_data(operator):
        return cast(Streamed, operator.encode_with(group, [part], {InputMoments(): moments}))
    return cast(Streamed, operator.encode(group, [part]))


def measured(
    name: str, groups: list[Group], parts: list[Tensor], stored: list[Streamed], repeats: int
) -> dict[str, Any]:
    """Bytes and seconds over all layers."""
    operator, bound = Coded(of=name), EntropyBound()
    coded = [operator._checked(packed) for packed in stored]
    for packed in stored:
        packed.write(bound)
    files = [packed.to_bytes() for packed in coded]
    generator = torch.Generator().manual_seed(0)
    moved = [[p + 0.1 * p.std() * torch.randn(p.shape, generator=generator)] for p in parts]

    def projected(packs: list[Any]) -> None:
        for packed, values in zip(packs, moved, strict=True):
            packed.project(values, refit=True)

    for group, packed, file in zip(groups, coded, files, strict=True):
        again = operator.decode(group, memoryview(file))[0]
        if not torch.equal(again.tensors()[0], packed.tensors()[0]):
            raise RuntimeError(f"{group.name} did not come back from {name}")
    return {
        "values": sum(p.numel() for p in parts),
        "plain": sum(packed.nbytes for packed in stored),
        "coded": sum(len(file) for file in files),
        "bound": bound.total,
        "encode": seconds_of(lambda: [operator._checked(packed) for packed in stored], repeats),
        "decode": seconds_of(
            lambda: [operator.decode(g, memoryview(f)) for g, f in zip(groups, files, strict=True)], repeats
        ),
        "plain_step": seconds_of(lambda: projected(stored), repeats),
        "coded_step": seconds_of(lambda: projected(coded), repeats),
    }


def row_of(record: dict[str, Any]) -> list[str]:
    """One line of the table."""
    values, coded = record["values"], record["coded"]
    return [
        record["choice"], f"{record['plain']:,}", f"{coded:,}", f"{record['bound']:,.0f}",
        f"{8 * coded / values:.3f}", f"{100 * (1 - coded / record['plain']):.1f}",
        f"{100 * (coded / record['bound'] - 1):.2f}", f"{values / record['encode'] / 1e6:.1f}",
        f"{values / record['decode'] / 1e6:.1f}", f"{1000 * record['plain_step']:.0f}",
        f"{1000 * record['coded_step']:.0f}",
    ]  # fmt: skip


def table_text() -> str:
    """The last record of every choice."""
    found = {(r["network"], r["choice"]): r for r in read(PATH)}
    parts = []
    for network in dict.fromkeys(name for name, _ in found):
        rows = [row_of(record) for (name, _), record in found.items() if name == network]
        header = [
            "choice", "plain bytes", "coded bytes", "entropy bound", "bits per weight", "saved %", "above bound %",
            "encode, M values/s", "decode, M values/s", "step plain, ms", "step coded, ms",
        ]  # fmt: skip
        parts.append(f"All weights of {network}.\n\n{markdown(header, rows)}")
    return "\n".join(parts)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="cifar10-resnet20")
    parser.add_argument("--examples", type=int, default=250)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="only write the table of the records there are")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.table:
        run(options)
    text = table_text()
    (RESULTS / "entropy_coding.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
