"""Is annealing worth it for the published QUBO of filters and bits, and is that QUBO worth it for the network?

    python -m benchmarks.studies.published                 # about half an hour of CPU on one core
    python -m benchmarks.studies.published sizes energies  # the model, and who minimises it: no recovery

Wang et al. (arXiv 2505.16332) prune filters and choose bit-widths by one unconstrained QUBO, and compare annealing with
a genetic algorithm and reinforcement learning. What of the paper could be read, and what is ours, is said in
``qubo_compress/encodings/published/__init__.py`` and docs/published.md.

- ``sizes``: bits, couplings and the largest clique of the model, for every network.
- ``settings``: form of L_q and beta, the best of several by validation loss after a short recovery, for the published
  rows only: in favour of the published formulation.
- ``energies``: equal CPU seconds for every method on the same H, at the gamma that meets the budget; the gap is to the
  exact minimum by sorting, as a share of the minimum's depth below the untouched network, whose H is 0.
- ``plans``: accuracy at equal stored bytes, before and after the same recovery: the same training images, epochs and
  seed for every row. ``published, ...`` rows search for gamma with that method as the solver. ``exact, budget``
  minimises L_p + beta L_q under the budget of bytes, without gamma. ``layer table`` and ``filter table`` are ours:
  metric ``products`` on the images that recovery uses; ``uniform`` is one width everywhere from the layer table.

Test images serve only for the figures. Records are appended to ``benchmarks/results/published.jsonl``.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import dimod
import numpy as np
import torch
from dwave.samplers import SimulatedAnnealingSampler, TabuSampler
from torch import nn

import qubo_compress as qc
from benchmarks.networks import Batches, Network, accuracy_and_loss, channels_last, first, load
from benchmarks.networks.loading import channels_last_batches
from benchmarks.records import Record, newest, table
from benchmarks.study import Option, Options, Study
from qubo_compress.encodings.published import FiltersAndBits, minimum, to_problem
from qubo_compress.published import Formulation, SizedPlan, filters_and_bits, plan_of_size

NEVER = 2_000_000_000
ENOUGH = 0.9
"""Share of the CPU seconds that a method must have had."""
SIZED = ("cifar10-resnet20", "fashion-mnist-resnet56", "fashion-mnist-vit", "text-gpt", "digits")
FORMS = (("error", 0.001), ("error", 0.01), ("error", 0.1), ("error", 1.0), ("fitted", 0.01), ("fitted", 0.1))
ENERGY_METHODS = ("sorting", "simulated annealing", "tabu", "annealer", "greedy", "genetic", "reinforcement")
PLAN_METHODS = (
    "published, sorting", "layer table", "uniform", "exact, budget", "published, simulated annealing", "filter table",
    "published, annealer", "published, tabu", "published, genetic", "published, reinforcement",
)  # fmt: skip
DEEP = ("published, sorting", "layer table", "filter table", "uniform", "published, annealer")
"""Methods on networks other than ResNet-20, where a plan takes minutes."""
FILTER_MENU = ("zero", "quantize(bits=2)", "quantize(bits=3)", "quantize(bits=4)", "quantize(bits=6)", "fold(bits=16)")
BEFORE = 1000
"""Test images of accuracies before recovery."""
CHIPS = {"Pegasus P16 without defects": 180, "Zephyr Z12 without defects": 184, "chips as built, at worst": 131}

STUDY = Study(
    __doc__, "published", field="step", networks=Option(["cifar10-resnet20", "fashion-mnist-resnet56"]),
    ratios=[8.0, 12.0], images=300, epochs=3, test=2000, seconds=10.0, methods=Option(PLAN_METHODS, None, PLAN_METHODS),
    threads=1,
)  # fmt: skip


@lru_cache(maxsize=1)
def network_of(name: str) -> Network:
    """A network with images channels last."""
    return channels_last(load(name))


def pictures(network: Network, count: int) -> Batches:
    """The first training images: those of recovery and of our tables."""
    return channels_last_batches(first(network.train, count))


def clock() -> float:
    """CPU seconds of this process."""
    return time.process_time()


@STUDY.step(lambda o: [{"network": name} for name in SIZED])
def sizes(options: Options, network: str) -> Record:
    """The model of a network, at any gamma."""
    model = load(network).model
    start = clock()
    bqm, decode = filters_and_bits(model, 1.0)
    seconds = clock() - start
    largest = decode.objective.largest_clique
    return {
        "seconds": seconds, "layers": len(decode.layers), "bits": bqm.num_variables, "couplings": bqm.num_interactions,
        "clique": largest, "weights": decode.objective.num_weights, "original_bytes": decode.layout.original_bytes,
        "fits": {chip: largest <= most for chip, most in CHIPS.items()},
        "layers_beyond": sum(layer.numbers.filters + 3 > 131 for layer in decode.layers),
    }  # fmt: skip


@STUDY.step(
    lambda o: [
        {"network": o.networks[0], "ratio": ratio, "form": form, "beta": beta}
        for ratio in o.ratios
        for form, beta in FORMS
    ]
)
def settings(options: Options, network: str, ratio: float, form: str, beta: float) -> Record:
    """Validation loss of a setting's exact plan, after a short recovery."""
    found = network_of(network)
    sized = plan_of_size(found.model, qc.Budget(ratio=ratio), formulation=Formulation(beta=beta, quantization=form))
    small = qc.recover(
        sized.plan.apply(found.model), pictures(found, 250), found.model, 1, max_examples=250, progress=False
    )
    accuracy, loss = accuracy_and_loss(small, channels_last_batches(first(found.validation, 500)))
    return {"validation_loss": loss, "validation_accuracy": 100 * accuracy, "pruned": pruned(sized.plan)}


def pruned(plan: qc.Plan) -> int:
    """Number of filters that a plan prunes."""
    return sum(choice == "zero" for choice in plan.choices.values())


def best_setting(options: Options, ratio: float) -> Formulation:
    """The setting of least validation loss at a ratio, from the first network."""
    tried = STUDY.records("settings", network=options.networks[0], ratio=ratio)
    best = min(tried, key=lambda record: record["validation_loss"])
    return Formulation(beta=best["beta"], quantization=best["form"])


@lru_cache(maxsize=4)
def sorted_plan(name: str, ratio: float, form: str, beta: float) -> tuple[SizedPlan, float]:
    """The exact plan of a budget, and its CPU seconds."""
    start = clock()
    formulation = Formulation(beta=beta, quantization=form)
    found = plan_of_size(network_of(name).model, qc.Budget(ratio=ratio), formulation=formulation)
    return found, clock() - start


@STUDY.step(
    lambda o: [
        {"network": name, "ratio": ratio, "method": method}
        for name in o.networks
        for ratio in (o.ratios if name == o.networks[0] else o.ratios[:1])
        for method in ENERGY_METHODS
    ]
)
def energies(options: Options, network: str, ratio: float, method: str) -> Record:
    """The best H of one method, and the CPU seconds at which it first had it."""
    setting = best_setting(options, ratio)
    sized, _ = sorted_plan(network, ratio, str(setting.quantization), setting.beta)
    objective = sized.plans.objective
    start = clock()
    least = objective.energy(minimum(objective))
    exact_seconds = clock() - start
    if method == "sorting":
        energy, seconds, total = least, exact_seconds, exact_seconds
    elif method in SAMPLERS:
        energy, seconds, total = sampled(objective, SAMPLERS[method], options.seconds)
    else:
        energy, seconds, total = solved(objective, method, options.seconds)
    return {
        "gamma": objective.gamma, "form": setting.quantization, "beta": setting.beta, "energy": energy,
        "least": least, "gap": (energy - least) / abs(least), "seconds": seconds, "total": total,
    }  # fmt: skip


Sampling = Callable[[dimod.BinaryQuadraticModel, int], dimod.SampleSet]


def annealed(bqm: dimod.BinaryQuadraticModel, seed: int) -> dimod.SampleSet:
    """One read of D-Wave's simulated annealing: classical."""
    return SimulatedAnnealingSampler().sample(bqm, num_reads=1, num_sweeps=2000, seed=seed)


def searched(bqm: dimod.BinaryQuadraticModel, seed: int) -> dimod.SampleSet:
    """One read of D-Wave's tabu search, ended by its updates and not by the clock."""
    return TabuSampler().sample(
        bqm, num_reads=1, num_restarts=20, coefficient_z_first=1000, coefficient_z_restart=250, lower_bound_z=1,
        timeout=NEVER, seed=seed,
    )  # fmt: skip


SAMPLERS: dict[str, Sampling] = {"simulated annealing": annealed, "tabu": searched}


def sampled(objective: FiltersAndBits, sampling: Sampling, limit: float) -> tuple[float, float, float]:
    """Best energy of reads, CPU seconds until its read ended, CPU seconds of all; building the model counts."""
    start, best, reached, seed = clock(), np.inf, 0.0, 0
    bqm = objective.to_bqm()
    while clock() - start < limit:
        energy = sampling(bqm, seed).first.energy
        seed += 1
        if energy < best - 1e-12 * abs(energy):
            best, reached = energy, clock() - start
    return float(best), reached, clock() - start


def solved(objective: FiltersAndBits, solver: str, limit: float) -> tuple[float, float, float]:
    """The same for a solver of this library: on a shared machine, its time limit is stretched to equal CPU seconds."""
    problem, stretch = to_problem(objective), 1.0
    qc.solve(problem, solver, time_limit=limit, work_limit=2)  # compiles its kernels, imports its packages
    while True:
        start, wall = clock(), time.perf_counter()
        found = qc.solve(problem, solver, time_limit=stretch * limit, seed=0)
        total, elapsed = clock() - start, time.perf_counter() - wall
        if total >= ENOUGH * limit or elapsed < ENOUGH * stretch * limit:
            break  # the second: it ended by itself
        stretch *= limit / total
    share = total / elapsed
    tolerance = 1e-9 * abs(found.energy)
    moments = [moment for moment, energy, _ in found.trace if energy <= found.energy + tolerance]
    return found.energy, share * min(moments, default=elapsed), total


def plan_cells(options: Options) -> Iterator[Record]:
    """The main methods of every network first, then the others."""
    for methods in (PLAN_METHODS[:4], PLAN_METHODS[4:]):
        for name in options.networks:
            whole = name == options.networks[0]
            for ratio in options.ratios if whole else options.ratios[:1]:
                for method in methods:
                    if method in options.methods and (whole or method in DEEP):
                        yield {"network": name, "ratio": ratio, "method": method, "images": options.images}


@STUDY.step(plan_cells)
def plans(options: Options, network: str, ratio: float, method: str, images: int) -> Record:
    """A method's plan, its bytes, and its network before and after recovery."""
    found = network_of(network)
    plan, figures = PLANS[method.partition(",")[0]](options, found, ratio, method)
    digest = hashlib.sha256(json.dumps(sorted(plan.choices.items())).encode()).hexdigest()[:12]
    known = [
        r for r in STUDY.records("plans", network=network, plan=digest, images=images) if r["test"] == options.test
    ]
    scores = known[-1] if known else scored(options, found, plan)
    kept = ("accuracy_before", "accuracy", "loss", "recovery_seconds", "original_accuracy")
    return figures | {
        "plan": digest, "bytes": plan.bytes, "limit": int(plan.original_bytes / ratio), "pruned": pruned(plan),
        "groups": len(plan.choices), "epochs": options.epochs, "test": options.test,
        **{name: scores[name] for name in kept},
    }  # fmt: skip


def scored(options: Options, network: Network, plan: qc.Plan) -> Record:
    """Test accuracy before and after recovery."""
    test = channels_last_batches(first(network.test, options.test))
    small = plan.apply(network.model)
    before, _ = accuracy_and_loss(small, first(test, BEFORE))
    start = clock()
    recovered: nn.Module = qc.recover(
        small, pictures(network, options.images), network.model, options.epochs, 0, max_examples=options.images,
        progress=False,
    )  # fmt: skip
    seconds = clock() - start
    accuracy, loss = accuracy_and_loss(recovered, test)
    return {
        "accuracy_before": 100 * before, "accuracy": 100 * accuracy, "loss": loss, "recovery_seconds": seconds,
        "original_accuracy": 100 * original(network.name, options.test),
    }  # fmt: skip


@lru_cache
def original(name: str, count: int) -> float:
    """Test accuracy of a network as it is."""
    network = network_of(name)
    return accuracy_and_loss(network.model, channels_last_batches(first(network.test, count)))[0]


def published(options: Options, network: Network, ratio: float, method: str) -> tuple[qc.Plan, Record]:
    """The published QUBO with a method as its solver, around the gamma of the exact one."""
    setting, solver = best_setting(options, ratio), method.partition(", ")[2]
    exact, seconds = sorted_plan(network.name, ratio, str(setting.quantization), setting.beta)
    sized = exact
    if solver != "sorting":
        start = clock()
        sampling = SAMPLERS.get(solver)
        given = solver if sampling is None else lambda bqm: sampling(bqm, 0)
        budget = qc.Budget(ratio=ratio)
        sized = plan_of_size(network.model, budget, given, setting, start=exact.gamma, steps=5, time_limit=3.0)
        seconds = clock() - start
    return sized.plan, figures_of(sized, setting, seconds)


def figures_of(sized: SizedPlan, setting: Formulation, seconds: float) -> Record:
    """What a search over gamma found."""
    least = sized.plans.objective.energy(minimum(sized.plans.objective))
    return {
        "gamma": sized.gamma, "energy": sized.energy, "lost": sized.loss, "form": setting.quantization,
        "beta": setting.beta, "gap": (sized.energy - least) / abs(least), "seconds": seconds,
        "solves": len(sized.gammas),
    }  # fmt: skip


def exact_under_budget(options: Options, network: Network, ratio: float, method: str) -> tuple[qc.Plan, Record]:
    """The least L_p + beta L_q within the budget, proven."""
    setting = best_setting(options, ratio)
    sized, _ = sorted_plan(network.name, ratio, str(setting.quantization), setting.beta)
    start = clock()
    found = qc.solve(sized.plans.with_gamma(0.0).sorted_problem(sized.limit), "exact", time_limit=60.0)
    bits = sized.plans.sorted_bits(found.assignment)
    said = {"lost": found.energy, "status": found.status, "form": setting.quantization, "beta": setting.beta}
    return sized.plans(bits), said | {"seconds": clock() - start}


@lru_cache(maxsize=2)
def measured(name: str, groups: str, images: int) -> tuple[qc.SensitivityTable, float]:
    """Our table of a network, and its CPU seconds."""
    network, start = network_of(name), clock()
    menu = qc.Menu(list(FILTER_MENU)) if groups == "filter" else None
    found = qc.measure(
        network.model, pictures(network, images), menu=menu, metric="products", groups=groups, max_examples=images,
        progress=False,
    )  # fmt: skip
    return found, clock() - start


def tabled(options: Options, network: Network, ratio: float, method: str) -> tuple[qc.Plan, Record]:
    """The best plan of our table, by its predictions alone: nothing is checked on held-out images."""
    groups, solver = ("filter", "annealer") if method == "filter table" else ("layer", "auto")
    found, seconds = measured(network.name, groups, options.images)
    start = clock()
    problem = found.problem(qc.Budget(ratio=ratio))
    solution = qc.solve(problem, "uniform" if method == "uniform" else solver, time_limit=10.0)
    said = {"seconds": seconds + clock() - start, "status": solution.status, "energy": solution.energy}
    return found.plan(solution), said | {"bound": solution.bound, "choices": problem.num_choices}


PLANS: dict[str, Callable[..., tuple[qc.Plan, Record]]] = {
    "published": published, "exact": exact_under_budget, "layer table": tabled, "filter table": tabled,
    "uniform": tabled,
}  # fmt: skip


def yes(value: bool) -> str:
    """Text of a truth value."""
    return "yes" if value else "no"


@STUDY.table
def tables(options: Options) -> str:
    """All tables, with what their columns mean."""
    chips: dict[str, Any] = {
        f"clique fits {chip} ({most})": lambda r, chip=chip: yes(r["fits"][chip]) for chip, most in CHIPS.items()
    }
    parts = [
        "# The published QUBO of filters and bits\n\n`python -m benchmarks.studies.published`; docs/published.md says "
        "what these tables show.\n\n## The model\n\n",
        table(
            STUDY.records("sizes"),
            {"network": "{network}", "layers": "{layers}", "weights": "{weights:,}", "bits": "{bits:,}",
             "couplings": "{couplings:,}", "largest clique": "{clique}", **chips, "CPU s to build": "{seconds:.2f}"},
        ),
        "\n## Settings\n\nExact plans after a short recovery (250 images, one epoch), 500 validation images; the least "
        "loss of a ratio is used below.\n\n",
        table(
            STUDY.records("settings"),
            {"ratio": "{ratio:g}x", "L_q": "{form}", "beta": "{beta:g}", "filters pruned": "{pruned}",
             "validation loss": "{validation_loss:.3f}", "accuracy": "{validation_accuracy:.1f} %"},
        ),
        f"\n## Who minimises H\n\nThe same H for all, about {options.seconds:g} s each; the last column says how much "
        "of it was CPU on this shared machine. Building is included, compiling is not.\n\n",
        table(
            newest(STUDY.records("energies"), "network", "ratio", "method"),
            {"network": "{network}", "ratio": "{ratio:g}x", "method": "{method}", "H": "{energy:.6g}",
             "gap to the exact minimum": lambda r: f"{max(0.0, 100 * r['gap']):.4f} %",
             "CPU s to its best value": "{seconds:.3f}", "CPU s in all": "{total:.1f}"},
        ),
        "\n## Networks at equal stored bytes\n\nOur tables and recovery use the same training images; "
        f"{options.epochs} epochs, seed 0. Before recovery {BEFORE:,} test images. The gap is that of the plan's H at "
        "its own gamma.\n\n",
        table(
            sorted(newest(STUDY.records("plans"), "network", "ratio", "method", "images"),
                   key=lambda r: (r["network"], r["ratio"], r["images"], -r["accuracy"])),
            {"network": "{network}", "budget": "{ratio:g}x = {limit:,} bytes", "images": "{images:,}",
             "method": "{method}",
             "bytes": "{bytes:,}", "filters pruned": "{pruned}", "accuracy": "{accuracy_before:.2f} %",
             "recovered": "{accuracy:.2f} %", "original": "{original_accuracy:.2f} %", "test images": "{test:,}",
             "L_p + beta L_q": "{lost:.5g}", "gap": lambda r: f"{max(0.0, 100 * r['gap']):.4f} %" if "gap" in r else "",
             "CPU s for the plan": "{seconds:.1f}", "plan": "{plan}"},
        ),
    ]  # fmt: skip
    return "".join(parts)


if __name__ == "__main__":
    torch.set_num_threads(1)
    STUDY.main()
