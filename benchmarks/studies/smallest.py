"""The smallest file for a given accuracy: coded codes of a trellis, and what each part of them is worth.

    python -m benchmarks.studies.smallest layer        # one layer alone: output error against bits; seconds per weight
    python -m benchmarks.studies.smallest curve        # compress to every ratio with every menu, without fine-tuning
    python -m benchmarks.studies.smallest uniform      # one step for all layers
    python -m benchmarks.studies.smallest part         # without one part after another, at equal bytes
    python -m benchmarks.studies.smallest table        # the tables, from the records

Every file is written, and its bytes are counted; the network in it is scored on the test images, which serve for
nothing else. Batch normalisations are estimated again on the calibration images. Records are appended to
``benchmarks/results/smallest.jsonl``.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

import qubo_compress as qc
from benchmarks.networks import Network, accuracy_and_loss, channels_last, load
from benchmarks.records import Record, newest, table
from benchmarks.study import Option, Options, Study, grid
from qubo_compress.calibration.statistics.damping import Validation
from qubo_compress.calibration.statistics.input_moments import InputMoments
from qubo_compress.menu import choices_of, discover
from qubo_compress.menu.coding.coded import Coded, coded_name
from qubo_compress.menu.coding.trellis.search import Target
from qubo_compress.menu.coding.trellis.trellis import OFFERED
from qubo_compress.sensitivity.measurement import Measurement
from qubo_compress.sensitivity.preparation import prepared
from qubo_compress.sensitivity.specimen import Specimen

MENUS = {
    "trellis": "trellis(step={step})",
    "four states": "trellis(step={step},states=4)",
    "plain": "trellis(step={step},states=0)",
    "not compensated": "trellis(step={step},damping=1000000.0)",
    "lattice": "lattice(step={step},rate=1.0)",
}
"""Name of a menu -> its choices, by their step."""

PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "everything": ("trellis", {}),
    "layers stored once": ("trellis", {"reconstruct": False}),
    "four states": ("four states", {}),
    "plain codes": ("plain", {}),
    "not compensated": ("not compensated", {}),
    "older contexts": ("trellis", {}),
    "fixed damping": ("trellis", {}),
    "one step for all": ("trellis", {}),
}
"""What is left out -> the menu, and options of ``compress``."""

WITHOUT = {
    "everything": "nothing", "additive": "pairs of layers", "layers stored once": "reconstruction",
    "four states": "eight states (four)", "plain codes": "the trellis", "not compensated": "compensation",
    "older contexts": "the adaptive coder", "fixed damping": "damping and doubt from halves of the examples",
    "one step for all": "steps per layer",
}  # fmt: skip
"""A part's name -> what is missing, for the table."""

REPLACED: dict[str, tuple[str, Any]] = {
    "older contexts": ("qubo_compress.menu.coding.coded.can_be_adaptive", lambda *given: False),
    "fixed damping": (
        "qubo_compress.calibration.statistics.input_moments.validated",
        lambda halves, blocks, least: Validation(least),
    ),
}
"""A part that no option leaves out -> the function that is replaced, and by what."""

FINEST, COARSEST, STEP_SEARCHES = 0.1, 12.0, 7
"""Steps between which the one for all is searched by bisection."""

LAYER_STEPS = tuple(float(f"{step:.2g}") for step in np.geomspace(0.3, 6.0, 10))
BITS = (0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5)

STUDY = Study(
    __doc__, "smallest", field="step", network="cifar10-resnet20", images=512, seed=0,
    ratios=[8.0, 10.0, 12.0, 16.0, 20.0, 24.0], menus=Option(["trellis", "lattice"], choices=MENUS),
    parts=Option(list(PARTS), choices=PARTS),
    layers=["layer1.1.conv2.weight", "layer2.1.conv2.weight", "layer3.2.conv2.weight"], threads=1,
)  # fmt: skip


def menu_of(name: str) -> qc.Menu:
    """The coded choices of every step, and vectors at lower precision."""
    return qc.Menu([coded_name(MENUS[name].format(step=step)) for step in OFFERED] + list(choices_of("vectors")))


def network_of(options: Options) -> Network:
    """The network and its calibration images."""
    return channels_last(load(options.network, calibration_examples=options.images, seed=options.seed))


def scored(model: torch.nn.Module, network: Network) -> Record:
    """Bytes of the network's file, and what the network in it does on the test images."""
    with tempfile.TemporaryDirectory() as folder:
        size = qc.save(model, Path(folder) / "small.qc")
        accuracy, loss = accuracy_and_loss(qc.load(Path(folder) / "small.qc", network.model), network.test)
    return {"bytes": size, "accuracy": 100 * accuracy, "test_loss": loss}


def asked(options: Options) -> Record:
    """What every record of a measurement says."""
    return {"network": options.network, "images": options.images, "seed": options.seed}


@STUDY.step(lambda o: [asked(o) | cell for cell in grid(menu=o.menus, ratio=o.ratios)])
def curve(options: Options, menu: str, ratio: float, **_: Any) -> Record:
    """Compress to a ratio, as users do."""
    network, started = network_of(options), time.process_time()
    found = qc.compress(
        network.model, network.calibration, qc.Budget(ratio=ratio), menu=menu_of(menu), seed=options.seed,
        max_examples=options.images, progress=False,
    )  # fmt: skip
    seconds = time.process_time() - started
    return {"cpu_seconds": seconds, "kept_repair": found.recovery_kept} | scored(found.model, network)


@STUDY.step(lambda o: [asked(o) | cell for cell in grid(menu=o.menus)])
def uniform(options: Options, menu: str, **_: Any) -> Iterator[Record]:
    """One step, relative to each layer's root mean square, for all layers."""
    network = network_of(options)
    found = qc.measure(
        network.model, network.calibration, menu=menu_of(menu), metric="magnitude", max_examples=options.images,
        progress=False,
    )  # fmt: skip
    for step in OFFERED:
        name = coded_name(MENUS[menu].format(step=step))
        pairs = zip(found.group_names, found.choices, strict=True)
        offered = {
            group: next(choice for choice in (name, "fold(bits=8)", "cast(bits=8)", "keep") if choice in names)
            for group, names in pairs
        }
        applied = found.plan(offered).apply(network.model)
        mended = qc.recover(applied, network.calibration, network.model, epochs=0, progress=False)
        yield {"width": step} | scored(mended, network)


@STUDY.step(lambda o: [asked(o) | cell for cell in grid(part=o.parts, ratio=o.ratios)])
def part(options: Options, part: str, ratio: float, **_: Any) -> Iterator[Record]:
    """Compress to a ratio without one part; with all of them, also by the plan that takes layers for independent."""
    network, started = network_of(options), time.process_time()
    if part == "one step for all":
        mended = _by_one_step(network, ratio, options)
        yield {"cpu_seconds": time.process_time() - started} | scored(mended, network)
        return
    menu, settings = PARTS[part]
    stored = part if part in REPLACED else menu
    folder = Path("out/smallest") / f"{options.network}_{options.images}_{options.seed}_{stored.replace(' ', '_')}"
    with mock.patch(*REPLACED[part]) if part in REPLACED else contextlib.nullcontext():
        found = qc.compress(
            network.model, network.calibration, qc.Budget(ratio=ratio), menu=menu_of(menu), seed=options.seed,
            max_examples=options.images, progress=False, cache=folder, **settings,
        )  # fmt: skip
        seconds = time.process_time() - started
        yield {"cpu_seconds": seconds} | scored(found.model, network)
    if part == "everything":
        plans = {name: candidate.plan for candidate in found.taken.candidates for name in candidate.names}
        mended = _mended(plans["additive"].apply(network.model), network, options)
        yield {"allocation": "additive", "same": plans["additive"] == found.plan} | scored(mended, network)


def _mended(applied: torch.nn.Module, network: Network, options: Options) -> torch.nn.Module:
    """A network as ``compress`` repairs it."""
    return qc.recover(
        applied, network.calibration, network.model, max_examples=options.images, reconstruct=True, progress=False
    )


def _by_one_step(network: Network, ratio: float, options: Options) -> torch.nn.Module:
    """The network of the smallest step that fits, in units of each layer's root mean square; vectors have 8 bits."""
    low, high, best = math.log(FINEST), math.log(COARSEST), None
    for _ in range(STEP_SEARCHES):
        name = coded_name(f"trellis(step={math.exp((low + high) / 2):.4g})")
        menu = qc.Menu([name, *choices_of("vectors")])
        found = qc.measure(
            network.model,
            network.calibration,
            menu=menu,
            metric="magnitude",
            max_examples=options.images,
            progress=False,
        )
        wanted = (name, "fold(bits=8)", "cast(bits=8)", "keep")
        pairs = zip(found.group_names, found.choices, strict=True)
        plan = found.plan({group: next(one for one in wanted if one in names) for group, names in pairs})
        if plan.ratio >= ratio:
            high, best = (low + high) / 2, plan
        else:
            low = (low + high) / 2
    if best is None:
        raise ValueError(f"no step up to {COARSEST:g} makes the network {ratio:g} times smaller")
    return _mended(best.apply(network.model), network, options)


@STUDY.step(lambda o: [asked(o) | cell for cell in grid(layer=o.layers, menu=MENUS)])
def layer(options: Options, layer: str, menu: str, **_: Any) -> Record:
    """Error of the outputs, and bits, of one layer at every step."""
    network = network_of(options)
    specimen = Specimen.of(network.model, network.calibration, Measurement(max_examples=options.images))
    subject = prepared(specimen)
    group = next(g for g in discover(network.model).groups if g.name == layer)
    parts = [network.model.state_dict()[member.name] for member in group.members]
    moments = InputMoments().collect(subject.choices.calibration, group)
    target = Target.of(parts[0].flatten(1).double().numpy(), moments[0], 0.01)
    whole, points, started = target.error(0 * target.values), [], time.process_time()
    for step in LAYER_STEPS:
        coded = Coded(MENUS[menu].format(step=step)).encode_with(group, parts, {InputMoments(): moments})
        values = coded.tensors()[0].flatten(1).double().numpy()
        error = target.error(np.ascontiguousarray(values.T))
        points.append((8 * coded.nbytes / group.numel, 10 * math.log10(error / whole)))
    seconds = (time.process_time() - started) / len(LAYER_STEPS) / group.numel
    return {"weights": group.numel, "points": points, "seconds_per_million": 1e6 * seconds}


def _at(record: Record, bits: float) -> str:
    """Decibels at a number of bits, between the measured points."""
    points = sorted(record["points"])
    if not points[0][0] <= bits <= points[-1][0]:
        return ""
    return f"{np.interp(bits, [x for x, _ in points], [y for _, y in points]):.2f}"


@STUDY.table
def tables(options: Options) -> str:
    """The last records of each setting."""
    said = ["## Accuracy at equal bytes, without fine-tuning"]
    columns = {
        "network": "{network}", "images": "{images}", "seed": "{seed}", "menu": "{menu}", "asked for": "{ratio:g}x",
        "file B": "{bytes}", "test top-1 %": "{accuracy:.2f}", "test loss": "{test_loss:.4f}",
        "CPU s": "{cpu_seconds:.0f}",
    }  # fmt: skip
    found = newest(STUDY.records("curve"), "network", "images", "seed", "menu", "ratio")
    said.append(table(sorted(found, key=lambda r: (r["network"], r["images"], r["ratio"], r["menu"])), columns))
    said.append("## Without one part")
    columns = {
        "images": "{images}", "asked for": "{ratio:g}x", "without": "{without}", "file B": "{bytes}",
        "test top-1 %": "{accuracy:.2f}", "test loss": "{test_loss:.4f}",
    }  # fmt: skip
    parts = [
        {**record, "without": WITHOUT[record.get("allocation", record["part"])]} for record in STUDY.records("part")
    ]
    found = newest(parts, "network", "images", "seed", "without", "ratio")
    said.append(table(sorted(found, key=lambda r: (r["network"], r["images"], r["ratio"], -r["accuracy"])), columns))
    said.append("## One step for all layers")
    columns = {
        "network": "{network}", "images": "{images}", "menu": "{menu}", "step": "{width:g}", "file B": "{bytes}",
        "test top-1 %": "{accuracy:.2f}", "test loss": "{test_loss:.4f}",
    }  # fmt: skip
    said.append(table(newest(STUDY.records("uniform"), "network", "images", "seed", "menu", "width"), columns))
    said.append("## One layer: output error in dB of the output, at equal bits per weight of the coded tensor")
    columns = {
        "layer": "{layer}", "menu": "{menu}", **{f"{bits:g} bits": _column(bits) for bits in BITS},
        "CPU s per million weights": "{seconds_per_million:.1f}",
    }  # fmt: skip
    said.append(table(newest(STUDY.records("layer"), "network", "images", "seed", "layer", "menu"), columns))
    return "\n\n".join(said) + "\n"


def _column(bits: float) -> Any:
    return lambda record: _at(record, bits)


if __name__ == "__main__":
    STUDY.main()
