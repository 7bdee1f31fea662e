"""What it takes to store and price every choice: CPU seconds and memory per million parameters, default menu.

python -m benchmarks.studies.pricing [--case convolutions | linear | filters | layers | embedding] [--repeats 3]

``filters`` and ``layers`` price a ResNet-20 with one group per filter, and per layer. ``embedding`` measures memory:
run it in a separate process. One thread; what is compiled once is not counted.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

import qubo_compress as qc
from benchmarks.networks.architectures import ResNet20
from benchmarks.study import Option, command_line
from qubo_compress.network.discovery import GroupRule, discover
from qubo_compress.network.replay import trace_calls
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.sensitivity.cache import UnitCache
from qubo_compress.sensitivity.choices import StoredChoices
from qubo_compress.sensitivity.costs import price_choices
from qubo_compress.sensitivity.measurement import Measurement
from qubo_compress.sensitivity.subject import Subject, Work


def convolutions() -> nn.Module:
    """2.6 M parameters in 3 x 3, depthwise and 1 x 1 kernels."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.Conv2d(64, 128, 3), nn.Conv2d(128, 256, 3), nn.Conv2d(256, 512, 3),
        nn.Conv2d(512, 512, 5, groups=512), nn.Conv2d(512, 2000, 1),
    )  # fmt: skip


def linear() -> nn.Module:
    """3.1 M parameters in linear layers."""
    return nn.Sequential(nn.Linear(784, 1024), nn.Linear(1024, 2048), nn.Linear(2048, 100))


def embedding() -> nn.Module:
    """20 M parameters, half of them in an embedding."""
    return nn.Sequential(nn.Embedding(10_000, 1000), nn.Linear(1000, 5000), nn.Linear(5000, 1000))


IMAGE = (1, 3, 32, 32)
CASES: dict[str, tuple[Callable[[], nn.Module], GroupRule, torch.Tensor]] = {
    "convolutions": (convolutions, "layer", torch.zeros(IMAGE)),
    "linear": (linear, "layer", torch.zeros(1, 784)),
    "layers": (ResNet20, "layer", torch.zeros(IMAGE)),
    "filters": (ResNet20, "filter", torch.zeros(IMAGE)),
    "embedding": (embedding, "layer", torch.zeros(1, 4, dtype=torch.long)),
}


def subject_of(model: nn.Module, groups: GroupRule, inputs: torch.Tensor, menu: qc.Menu) -> Subject:
    """A measurement that only needs prices."""
    layout, tensors = discover(model, groups), NetworkTensors(model)
    choices = StoredChoices(layout, [menu.offered(group, tensors.parts(group)) for group in layout.groups], tensors)
    return Subject(
        tensors, choices, examples=None, loss=None,  # type: ignore[arg-type]
        reference=[torch.zeros(1)], outputs=[], trace=trace_calls(model, inputs), settings=Measurement(),
        work=Work(UnitCache(None, {})),
    )  # fmt: skip


def seconds(model: nn.Module, groups: GroupRule, inputs: torch.Tensor, menu: qc.Menu, repeats: int) -> float:
    """Median CPU seconds of encoding and pricing every choice once."""
    found = []
    for _ in range(repeats):
        subject = subject_of(model, groups, inputs, menu)
        start = time.process_time()
        price_choices(subject)
        found.append(time.process_time() - start)
    return statistics.median(found)


def main() -> None:
    """Print the figures of one case."""
    given = command_line(__doc__, case=Option("convolutions", choices=sorted(CASES)), repeats=3, threads=1)
    torch.manual_seed(0)
    make, groups, inputs = CASES[given.case]
    model, menu = make().eval(), qc.Menu()
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    for rule in ("layer", "filter"):
        seconds(small, rule, torch.zeros(IMAGE), menu, 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    spent = seconds(model, groups, inputs, menu, given.repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{given.case}: {millions:.2f} M parameters, {spent:.3f} CPU s, {spent / millions:.3f} per million; "
        f"memory {before:.2f} GB before, peak {peak:.2f} GB, network {4 * millions / 1e3:.2f} GB"
    )


if __name__ == "__main__":
    main()
