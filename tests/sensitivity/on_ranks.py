"""What the ranks of the tests of shared measurements run: ``python on_ranks.py FOLDER``."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.errors import InvalidModel, QuboCompressError
from qubo_compress.sensitivity import forecast, ranks
from qubo_compress.sensitivity.cache import Unit
from qubo_compress.sensitivity.metric import Metric, MetricResult
from qubo_compress.sensitivity.subject import Subject

OPTIONS: dict[str, dict[str, Any]] = {
    "gauss-newton": {"menu": qc.Menu.of("quantize", "compensate"), "shrinkage": 0.5},
    "products": {"metric": "products"},
    "pairwise": {"metric": "pairwise", "max_examples": 20},
}
CACHED = {"menu": qc.Menu(bits=(2, 4), sparsity=(0.0,))}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)).eval()


def batches(seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Three slices: a rank has more of them than the other."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(550, 2, 6, 6, generator=generator)
    return [(inputs, torch.randint(4, (550,), generator=generator))]


def measured(name: str, **options: Any) -> qc.SensitivityTable:
    given = {"menu": qc.Menu(bits=(2, 4), sparsity=(0.0,)), "progress": False, **OPTIONS.get(name, {}), **options}
    return qc.measure(network(), given.pop("batches", batches()), **given)


def numbers(table: qc.SensitivityTable) -> dict[str, np.ndarray]:
    """Everything in a table that is measured."""
    made = {"linear": table.linear, "divergence": table.divergence, "factor": table.factor, "fits": table.fits.data}
    if table.pairs is not None:
        made["pairs"] = table.pairs.toarray()
    for key, data in sorted(table.payloads.items()):
        made["/".join(key)] = np.frombuffer(data, dtype=np.uint8)
    known = table.provenance
    made["known"] = np.array([known.baseline_loss, known.dropped, known.trust, known.resumed, known.examples])
    return {name: a for name, a in {**made, **table.costs}.items() if a is not None}


@dataclass(frozen=True)
class Failing(Metric):
    """A metric of units that fail on rank 1: in a unit, after all units, or by the process's death."""

    where: str
    metric_name: ClassVar[str] = "failing"

    def measure(self, subject: Subject) -> MetricResult:
        units = [Unit(f"unit_{number}", lambda: self._compute("unit")) for number in range(5)]
        subject.gather(units)
        self._compute("after")
        return MetricResult(np.zeros(int(subject.offsets[-1])))

    def _compute(self, where: str) -> dict[str, np.ndarray]:
        if dist.get_rank() == 1 and where == self.where:
            raise InvalidModel("broken by the test")
        if dist.get_rank() == 1 and self.where == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return {"some": np.zeros(3)}


def error_of(call: Callable[[], Any]) -> dict[str, Any]:
    try:
        call()
    except QuboCompressError as error:
        return {"kind": type(error).__name__, "said": str(error), "rank": getattr(error, "rank", None)}
    return {"kind": "none"}


def errors(rank: int) -> dict[str, Any]:
    other_half = dist.new_group([0])
    return {
        "unit": error_of(lambda: measured("", metric=Failing("unit"))),
        "after": error_of(lambda: measured("", metric=Failing("after"))),
        "no examples": error_of(lambda: measured("", batches=[] if rank == 1 else batches())),
        "own examples": error_of(lambda: measured("", batches=batches(rank))),
        "other arguments": error_of(lambda: measured("", max_rank=5 + rank)),
        "other limits": error_of(lambda: measured("", seconds=5.0 + rank)),
        "other tables": error_of(lambda: other_menus(rank)),
        "not in the group": error_of(lambda: measured("", process_group=other_half)),
    }


def cached(rank: int, folder: Path) -> dict[str, dict[str, np.ndarray]]:
    found = {}
    for name in ("own", "common"):
        place = folder / (f"own-{rank}" if name == "own" else name)
        found[f"{name}-first"] = numbers(measured("", cache=place, **CACHED))
        dist.barrier()
        if rank == 1:
            for unit in sorted(place.glob("forward_*.npz"))[:1]:
                unit.unlink()
        dist.barrier()
        found[f"{name}-again"] = numbers(measured("", cache=place, **CACHED))
    return found


def limited(rank: int) -> qc.SensitivityTable:
    """Far too little time; rank 1 would take more examples."""
    if rank == 1:
        forecast.Forecast.examples_within = lambda self, seconds: 40
    return measured("", seconds=1e-6)


def own_examples(rank: int) -> qc.SensitivityTable:
    """As with a DistributedSampler, of unequal parts."""
    inputs, targets = batches()[0]
    rows = slice(0, 200) if rank == 0 else slice(200, None)
    return measured("", batches=[(inputs[rows], targets[rows])], process_group=False)


def other_menus(rank: int) -> qc.SensitivityTable:
    return measured("", menu=qc.Menu(bits=(2 + rank,), sparsity=(0.0,)), process_group=False).merge_ranks()


def odd_arrays(rank: int) -> list[dict[str, Any]]:
    """Arrays of unusual forms, sent in pieces of five bytes."""
    ranks.CHUNK = 5
    given = {
        "scalar": np.array(rank + 0.5), "empty": np.zeros((0, 3), dtype=np.float32),
        "columns": np.asfortranarray(np.arange(6).reshape(2, 3) + rank), "bools": np.arange(9) % 2 == rank,
        "locked": np.frombuffer(b"bytes" * 3, dtype=np.uint8),
    }  # fmt: skip
    found = ranks.ranks_of(True, nn.Identity()).exchange(given if rank == 1 else None)
    return [{} if a is None else {k: [v.dtype.str, v.shape, v.tolist()] for k, v in a.items()} for a in found]


def in_two_processes(run: Callable[[int], None]) -> list[int]:
    """The exit statuses of two processes that run this with their ranks.

    They are forked before this process has threads, which saves the time that imports and torchrun take.
    """
    children = []
    for rank in (0, 1):
        child = os.fork()
        if child == 0:
            try:
                run(rank)
                # Threads of gloo that are not yet joined at exit abort the process now and then.
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(1)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def begin(rank: int, store: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", timedelta(seconds=1800), world_size=2, rank=rank)


def be_killed(rank: int, folder: Path) -> None:
    begin(rank, folder / "store-of-the-killed")
    said = error_of(lambda: measured("", metric=Failing("killed")))
    (folder / f"killed-{rank}.json").write_text(json.dumps(said))


def measure_all(rank: int, folder: Path) -> None:
    begin(rank, folder / "store")
    (folder / f"errors-{rank}.json").write_text(json.dumps(errors(rank)))
    tables = {name: numbers(measured(name)) for name in OPTIONS}
    tables |= cached(rank, folder)
    tables["alone"] = numbers(measured("products", process_group=False)) if rank == 0 else {}
    tables["limited"] = numbers(limited(rank))
    tables["merged"] = numbers(own_examples(rank).merge_ranks())
    for name, arrays in tables.items():
        np.savez(folder / f"{name}-{rank}.npz", **arrays)
    (folder / f"odd-{rank}.json").write_text(json.dumps(odd_arrays(rank)))
    dist.barrier()
    dist.destroy_process_group()


def main(folder: Path) -> int:
    """Whether the ranks that should end well did."""
    killed = in_two_processes(lambda rank: be_killed(rank, folder))
    (folder / "killed.json").write_text(json.dumps(killed))
    return max(map(abs, in_two_processes(lambda rank: measure_all(rank, folder))))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
