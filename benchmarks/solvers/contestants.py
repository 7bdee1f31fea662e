"""Who takes part in ``benchmarks.solvers``, with which settings, and how much each was tuned.

Every contestant gets one core, and those that can use several threads are told to use one. Records of ``auto`` up to
November 2026 were made with two threads on that core.
``tuning`` says how many settings were tried, and on what; published settings count as none. Generated problems used
for tuning are never among the instances that judge (seeds from 100 up). The tables measured on networks are: there is
one of each, and those of ResNet-20 were used while tuning the annealer, exact, relaxation, genetic and all
samplers but simulated annealing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.solvers.instances import LARGEST_QUBO
from qubo_compress import ChoiceProblem
from qubo_compress.solvers import Solver, make_solver, registry
from qubo_compress.solvers.exact.cost_network import MOST_NETWORK_ENTRIES, network_entries


@dataclass(frozen=True)
class Contestant:
    """One solver with its settings.

    Attributes:
        make: builds it.
        kind: ``"ours"``, ``"binary sampler"``, ``"exact"``, ``"learning"`` or ``"simple"``.
        tuning: settings tried and where the settings come from.
        takes: whether it is run on a problem; what it is not run on is said in the tables.
        random: whether another seed gives another run.
    """

    make: Callable[[], Solver]
    kind: str
    tuning: str
    takes: Callable[[ChoiceProblem], bool] = lambda problem: True
    random: bool = True


def _small_enough(problem: ChoiceProblem) -> bool:
    """Binary models are built where pair energies are sparse or the whole matrix is small."""
    return (problem.structure != "factor" and _density(problem) < 0.2) or problem.num_choices <= LARGEST_QUBO


def _sparse(problem: ChoiceProblem) -> bool:
    """Whether SCIP's linearised model stays small."""
    return network_entries(problem) <= 500_000


def _density(problem: ChoiceProblem) -> float:
    stored = 0 if problem.pairs is None else problem.pairs.nnz
    return float(stored / problem.num_choices**2)


def _made(name: str, **options: object) -> Callable[[], Solver]:
    return lambda: make_solver(name, **options)


def _binary(name: str, tuning: str, **options: object) -> Contestant:
    return Contestant(_made(name, **options), "binary sampler", tuning, _small_enough)


CONTESTANTS: dict[str, Contestant] = {
    "annealer": Contestant(_made("annealer", threads=1), "ours", "some 100 settings, see annealer_tuning.py"),
    "auto": Contestant(
        _made("auto", threads=1), "ours", "its parts', and how many groups exact is tried on, raised after seeing it"
    ),
    "exact": Contestant(_made("exact", threads=1), "exact", "a handful, on measured tables", random=False),
    "cfn": Contestant(_made("cfn"), "exact", "none", lambda problem: network_entries(problem) <= MOST_NETWORK_ENTRIES),
    "scip": Contestant(
        _made("scip"), "exact", "none", lambda problem: problem.structure != "pairs" or _sparse(problem)
    ),
    "greedy": Contestant(_made("greedy"), "simple", "none", random=False),
    "random": Contestant(_made("random"), "simple", "none"),
    "simulated-annealing": _binary("simulated-annealing", "13 settings on four dense 20 x 16"),
    "simulated-annealing, one-hot": _binary("simulated-annealing", "8 settings on the same", encoding="one-hot"),
    "tabu": _binary("tabu", "5 settings per encoding on two dense 20 x 16 and two measured tables"),
    "path-integral": _binary("path-integral", "6 settings per encoding on the same four"),
    "steepest-descent": _binary("steepest-descent", "3 settings per encoding on the same four"),
    "openjij": _binary("openjij", "8 settings per encoding on the same four, at a time when its loop was slower"),
    "simulated-bifurcation": _binary("simulated-bifurcation", "5 settings per encoding on the same four"),
    "decomposition": Contestant(_made("decomposition"), "binary sampler", "none"),
    "genetic": Contestant(_made("genetic"), "learning", "some 25 settings on dense 20 x 16 and measured tables"),
    "evopress": Contestant(_made("evopress"), "learning", "published settings"),
    "reinforcement": Contestant(_made("reinforcement"), "learning", "none; DDPG as in HAQ and AMC"),
    "reinforcement, PPO": Contestant(_made("reinforcement", agent="ppo"), "learning", "none; usual settings of PPO"),
    "relaxation": Contestant(_made("relaxation"), "simple", "16 settings on two problems"),
    "spdy": Contestant(_made("spdy"), "simple", "published settings"),
    "clado": Contestant(_made("clado"), "simple", "published method", lambda problem: problem.num_choices <= 2000),
}


def available() -> dict[str, Contestant]:
    """The contestants whose solver is registered here."""
    return {name: contestant for name, contestant in CONTESTANTS.items() if name.partition(",")[0] in registry.names()}
