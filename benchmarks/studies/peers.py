"""Ours beside compressors of other packages: accuracy against the bytes of one file that restores the network.

    python -m benchmarks.studies.peers installed                 # environments, once; needs PyPI
    python -m benchmarks.studies.peers chosen made --networks cifar10-resnet20 --peers nncodec
    python -m benchmarks.studies.peers ours --networks cifar10-resnet20
    python -m benchmarks.studies.peers table

Every peer runs in its own environment and process (``benchmarks/peers``), is given the original network and the same
calibration examples, and is repaired as ours are by default: normalisations and biases are matched to the original's
outputs on those examples, without training. Everything counts: codes, scales, biases, normalisations, headers. nncodec
writes its own file. Deep Compression's weights are its own stream. Codes of the others go through xz, zstd and our own
entropy coder, and the smallest file counts; their floats have 16 bits, as ours. Scored is the network that the file
restores. Test examples choose nothing, but where a peer has several settings, those of the best test accuracy at
their bytes make its curve, which favours the peer. One thread. CPU seconds are those of the tool's whole process.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any

import torch

import qubo_compress as qc
from benchmarks.networks import Network, channels_last, load
from benchmarks.networks.scores import TestScore, score
from benchmarks.peers.curves import as_text
from benchmarks.peers.environments import LONGEST_MESSAGE, Unavailable
from benchmarks.peers.files import Work, environment_of, nearest
from benchmarks.peers.roster import GPT, NETWORKS, PEERS, Settings, examples_of, named
from benchmarks.peers.tables import pages
from benchmarks.processes import in_new_process, warm_up
from benchmarks.records import Record
from benchmarks.study import Option, Options, Study, grid

RATIOS = [8.0, 10.0, 12.0, 16.0, 20.0, 24.0]
LATTICES = (0.4, 0.5, 0.63, 0.8, 1.0, 1.26, 1.6, 2.0, 2.5)
VECTORS = ("fold(bits=16)", "cast(bits=16)", "fold(bits=8)", "cast(bits=8)")


def _lattices() -> qc.Menu:
    """Compensated codes on even grids, as release 0.4 had them, and vectors of 16 or 8 bits."""
    names = [f"coded(of='lattice(step={step},rate=1.0)')" for step in LATTICES]
    return qc.Menu([*names, "coded(of='quantize(bits=8)')", *VECTORS])


MENUS: dict[str, Callable[[], qc.Menu]] = {"lattice": _lattices, "smallest": lambda: qc.Menu.preset("smallest")}
"""Ours, by name."""

STUDY = Study(
    __doc__, "peers", field="step", networks=Option(list(NETWORKS), choices=NETWORKS),
    peers=Option([peer.name for peer in PEERS], choices=[peer.name for peer in PEERS]),
    menus=Option(list(MENUS), choices=MENUS), ratios=RATIOS, examples=[2_000], seeds=[0, 1, 2],
    settings=Option([], "of peers, as records name them; all where none is given", type=str),
    loss=Option("auto", "of our own measurement"), root=Option(Path("out/peers"), "folder of environments and jobs"),
)  # fmt: skip


@lru_cache(maxsize=2)
def loaded(network: str, examples: int, seed: int) -> Network:
    """A network with the calibration examples of a seed."""
    return channels_last(load(network, calibration_examples=examples_of(network, examples), seed=seed))


@lru_cache(maxsize=1)
def original(network: str) -> tuple[TestScore, int]:
    """Test scores of the network itself, and its bytes."""
    torch.set_num_threads(1)
    found = loaded(network, 64, 0)
    return score(found.model, found.test), sum(t.numel() * t.element_size() for t in found.model.state_dict().values())


def figures(network: str, model: torch.nn.Module, nbytes: int) -> Record:
    """What a record says about a file and its network."""
    before, whole = original(network)
    found = score(model, loaded(network, 64, 0).test, before.logits)
    each = -found.losses if network == GPT else found.correct
    return {
        "bytes": nbytes, "ratio": whole / nbytes, **found.means(), "original": before.means()["accuracy"],
        "original_loss": before.means()["loss"], "each": as_text(each.numpy()),
    }  # fmt: skip


def said(settings: Settings) -> str:
    """Settings as a record names them."""
    return ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in settings.items()
    )


def work(options: Options, network: str, peer: str, examples: int, seed: int) -> Work:
    """A tool on a network."""
    found = loaded(network, examples, seed)
    return Work(named(peer), network, found.model, found.calibration, f"{examples}-{seed}", options.root)


def or_skipped(measure: Callable[..., Record]) -> Callable[..., Record]:
    """What a function measures, or why it could not: what one tool does wrong does not end the study."""

    @wraps(measure)
    def call(options: Options, **cell: Any) -> Record:
        try:
            return measure(options, **cell)
        except Unavailable as error:
            return {"skipped": str(error)}
        except Exception as error:  # an answer can be wrong in any way
            traceback.print_exc()
            return {"skipped": f"{type(error).__name__}: {error}"[:LONGEST_MESSAGE]}

    return call


@STUDY.step(lambda options: grid(peer=options.peers))
@or_skipped
def installed(options: Options, peer: str) -> Record:
    """Environments of all peers, or why there is none."""
    started = time.perf_counter()
    versions = environment_of(named(peer), options.root).versions()
    return {"versions": versions, "seconds": time.perf_counter() - started}


def _bisected(options: Options) -> Iterator[Record]:
    for cell in grid(network=options.networks, peer=options.peers, wanted=options.ratios):
        if named(cell["peer"]).bisected and cell["network"] in named(cell["peer"]).networks:
            yield cell


@STUDY.step(_bisected)
@or_skipped
def chosen(options: Options, network: str, peer: str, wanted: float) -> Record:
    """The setting whose file is nearest to a ratio, before the repair; no example has a part in it."""
    found = work(options, network, peer, 64, 0)
    setting = nearest(found, wanted, original(network)[1])
    return {"setting": said(setting), "ratio": original(network)[1] / found.size(setting)}


def _settings(network: str, peer: str) -> list[str]:
    """The settings that are run on a network."""
    if not named(peer).bisected:
        return [said(setting) for setting in named(peer).settings]
    found = STUDY.records("chosen", network=network, peer=peer)
    return list(dict.fromkeys(one["setting"] for one in found if "setting" in one))


def _runs(options: Options) -> Iterator[Record]:
    for cell in grid(network=options.networks, peer=options.peers, examples=options.examples, seed=options.seeds):
        if cell["network"] in named(cell["peer"]).networks:
            settings = _settings(cell["network"], cell["peer"])
            yield from ({**cell, "setting": one} for one in settings if one in options.settings or not options.settings)


@STUDY.step(_runs)
@or_skipped
def made(options: Options, network: str, peer: str, examples: int, seed: int, setting: str) -> Record:
    """One file of a peer."""
    settings = next(one for one in named(peer).settings if said(one) == setting)
    found = work(options, network, peer, examples, seed).made(settings)
    return found.figures | figures(network, found.model, found.nbytes)


def _ours(options: Options) -> Iterator[Record]:
    said = {
        "network": options.networks,
        "menu": options.menus,
        "measured_by": [options.loss],
        "examples": options.examples,
    }
    return grid(**said, seed=options.seeds, wanted=options.ratios)


def compressed(
    options: Options, network: str, menu: str, measured_by: str, examples: int, seed: int, wanted: float
) -> Record:
    """One ``compress`` call, and the file that it makes; runs in a separate process."""
    found = loaded(network, examples, seed)
    warm_up()
    started = time.process_time()
    folder = options.root / "ours" / f"{network}_{menu}_{measured_by}_{examples}_{seed}"
    result = qc.compress(
        found.model, found.calibration, qc.Budget(ratio=wanted), menu=MENUS[menu](), loss=measured_by, seed=seed,
        cache=folder / "table", progress=False,
    )  # fmt: skip
    cpu = time.process_time() - started
    path = folder / f"{wanted:g}x.qc"
    qc.save(result.model, path)
    restored = qc.load(path, found.model)
    return {
        "cpu_tool": cpu, "resumed": result.table.provenance.resumed, "winner": result.taken.winner,
        "reconstructed": result.reconstructed,
        **figures(network, restored, path.stat().st_size),
    }  # fmt: skip


@STUDY.step(_ours)
def ours(options: Options, **cell: Any) -> Record:
    """Our own files, with the defaults of ``compress`` but the menu."""
    found: Record = in_new_process(compressed, options, *cell.values(), threads=1)
    return found


@STUDY.table
def tables(options: Options) -> str:
    """One page."""
    about = (__doc__ or "").partition("Every peer runs")
    return pages(STUDY.records(), f"{about[1]}{about[2]}".strip())


if __name__ == "__main__":
    STUDY.main()
