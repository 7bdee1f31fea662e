"""The genetic algorithm of ``pymoo`` on one gene per group, with operators that keep to the budget.

pymoo brings the loop, the tournaments, the crossover, the elitist survival and the elimination of
duplicates; ours are the level-switch mutation and the repair, handed to it as its operators.

The defaults were chosen among some 25 settings (population 50, 100, 200; uniform and two-point crossover at 0.5 and
0.9; 1, 1.5, 2.5 and 3 switches; reach 2, 4 and any; tournaments of 2, 3 and 4; patience 30 to 100; spending never,
sometimes or always; filling up at random, which was worse by far; first populations with and without priced
individuals, which looked better on different instances but were not compared in one run) on random dense 20 x 16
problems of seeds 0 to 3 and layer tables of digits and ResNet-20, at 15,000 evaluations or one second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from qubo_compress._internal.optional import require
from qubo_compress.errors import InvalidSolverOption
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.solvers.opponents import genetic_operators as operators
from qubo_compress.solvers.opponents.genetic_operators import Levels
from qubo_compress.solvers.solver import Search, Solver, solvers

_MATINGS_PER_GENERATION = 10  # attempts at offspring that are no duplicates
_CROSSOVERS = ("uniform", "two-point")


@solvers.register
@dataclass(frozen=True)
class Genetic(Solver):
    """Evolve a population of assignments: tournaments, crossover by groups, level switches, the best survive.

    Needs ``pip install 'qubo_compress[genetic]'``. The work is the number of energies evaluated. The time that
    the first import of pymoo takes counts as compiling.

    Args:
        population: individuals, and offspring per generation.
        crossover: ``"uniform"`` or ``"two-point"``.
        crossover_probability: share of matings that mix two parents; the others only mutate.
        switches: mean number of level switches per offspring, at least 1.
        reach: farthest step of a switch in levels; None for any.
        spend: how often a switch that lowered a level raises another one at random, in [0, 1].
        pressure: size of the tournaments.
        seeded: share of a first population drawn at random prices from the linear energies, the rest uniformly.
        patience: generations without a better individual after which a new population starts; the best is kept.

    Raises:
        InvalidSolverOption: for a number out of range.
        MissingDependency: when pymoo is not installed.

    Example:
        >>> from qubo_compress import ChoiceProblem, solve
        >>> problem = ChoiceProblem.random(kind="dense", groups=6, choices=4, seed=0)
        >>> solution = solve(problem, "genetic", time_limit=30.0, work_limit=2000)
        >>> problem.is_feasible(solution.assignment), solution.work
        (True, 2000)
    """

    name: ClassVar[str] = "genetic"
    requires: ClassVar[tuple[str, ...]] = ("pymoo",)
    population: int = 100
    crossover: str = "uniform"
    crossover_probability: float = 0.9
    switches: float = 1.5
    reach: int | None = None
    spend: float = 0.25
    pressure: int = 2
    seeded: float = 0.5
    patience: int = 100

    def __post_init__(self) -> None:
        if min(self.population, self.pressure) < 2 or self.patience < 1:
            raise InvalidSolverOption(
                "population and pressure must be at least 2 and patience at least 1; "
                f"got {self.population}, {self.pressure} and {self.patience}"
            )
        if self.crossover not in _CROSSOVERS:
            raise InvalidSolverOption(f"crossover must be one of {', '.join(_CROSSOVERS)}; got {self.crossover!r}")
        if not 0.0 <= self.crossover_probability <= 1.0:
            raise InvalidSolverOption(f"crossover_probability must be in [0, 1]; got {self.crossover_probability}")
        if not (math.isfinite(self.switches) and self.switches >= 1.0):
            raise InvalidSolverOption(f"switches must be at least 1; got {self.switches}")
        if self.reach is not None and self.reach < 1:
            raise InvalidSolverOption(f"reach must be at least 1 or None; got {self.reach}")
        if not (0.0 <= self.spend <= 1.0 and 0.0 <= self.seeded <= 1.0):
            raise InvalidSolverOption(f"spend and seeded must be in [0, 1]; got {self.spend} and {self.seeded}")

    def run(self, search: Search) -> None:
        """Evolve until the time or the work, counted in evaluations, is used up."""
        with search.compiling():
            require("pymoo", "genetic")
            levels = operators.make_levels(search.problem)
            parts = _pymoo_parts(self, levels, search.problem)
            operators.warm_up()
        populations = _Populations(search, self, levels, parts)
        try:
            populations.all()
        finally:
            search.details |= populations.figures()


class _PymooParts(NamedTuple):
    """What the loop needs of pymoo."""

    algorithm: Any
    """Makes a new algorithm from a seed, ready to be asked."""
    problem: Any


class _Populations:
    """One population after another."""

    def __init__(self, search: Search, settings: Genetic, levels: Levels, parts: _PymooParts) -> None:
        self.search, self.settings, self.levels, self.parts = search, settings, levels, parts
        self.generations = self.started = 0

    def all(self) -> None:
        """Each until it has not got better for a while."""
        barren = 0
        while barren < 3 and self.search.another_round():
            barren = 0 if self._population() else barren + 1

    def _population(self) -> bool:
        """Evolve one population; False when it could not be mated, as where there is next to nothing to choose."""
        search = self.search
        algorithm = self.parts.algorithm(int(search.rng.integers(2**31)))
        self.started += 1
        least, stale = np.inf, 0
        for _ in search.rounds():
            offspring = algorithm.ask()
            if offspring is None:
                return False
            left = search.most_work(len(offspring))
            algorithm.evaluator.eval(self.parts.problem, offspring[:left])
            search.work += left
            self._keep(offspring[:left])
            if left < len(offspring):
                break
            algorithm.tell(infills=offspring)
            self.generations += 1
            energy = float(algorithm.pop[0].F[0])
            stale = 0 if energy < least else stale + 1
            least = min(least, energy)
            if stale >= self.settings.patience:
                break
        return True

    def _keep(self, individuals: Any) -> None:
        energies, genomes = individuals.get("F")[:, 0], individuals.get("X").astype(np.int64)
        feasible = (self.levels.overspending(genomes) <= 0.0).all(axis=1)
        most = min(int(feasible.sum()), self.search.pool.size)
        ranked = np.argsort(np.where(feasible, energies, np.inf), kind="stable")[:most]
        for energy, assignment in zip(energies[ranked], self.levels.assignments(genomes[ranked]), strict=True):
            self.search.keep(assignment, energy)

    def figures(self) -> dict[str, int]:
        """What was done, for the details."""
        return {"evaluations": self.search.work, "generations": self.generations, "populations": self.started}


def _pymoo_parts(settings: Genetic, levels: Levels, choices: ChoiceProblem) -> _PymooParts:
    """Pymoo's algorithm with our operators; its classes can only be extended once it is imported."""
    from pymoo.algorithms.soo.nonconvex.ga import GA
    from pymoo.core.mating import Mating
    from pymoo.core.mutation import Mutation
    from pymoo.core.problem import Problem
    from pymoo.core.repair import Repair
    from pymoo.core.sampling import Sampling
    from pymoo.core.termination import NoTermination
    from pymoo.operators.crossover.pntx import TwoPointCrossover
    from pymoo.operators.crossover.ux import UniformCrossover
    from pymoo.operators.selection.tournament import TournamentSelection

    reach = settings.reach or int(choices.group_sizes.max())

    class Energies(Problem):  # type: ignore[misc]
        """Energies of a whole population by a few matrix products; budgets as pymoo's constraints."""

        def _evaluate(self, x: IntArray, out: dict[str, FloatArray], *args: Any, **kwargs: Any) -> None:
            out["F"] = choices.energies(levels.assignments(x))[:, None]
            if choices.num_budgets:
                out["G"] = levels.overspending(x)

    class RandomLevels(Sampling):  # type: ignore[misc]
        def _do(self, problem: Any, count: int, *args: Any, random_state: Any = None, **kwargs: Any) -> IntArray:
            priced = round(settings.seeded * count)
            return np.vstack(
                [
                    operators.priced_genomes(levels, choices.linear, priced, random_state),
                    operators.random_genomes(levels, count - priced, random_state),
                ]
            )

    class LevelSwitch(Mutation):  # type: ignore[misc]
        def _do(self, problem: Any, genomes: IntArray, *args: Any, random_state: Any = None, **kwargs: Any) -> IntArray:
            changed = genomes.astype(np.int64)
            words = operators.generator_words(random_state)
            operators.switch_levels(levels, changed, settings.switches, reach, settings.spend, words)
            return changed

    class KeepToBudgets(Repair):  # type: ignore[misc]
        def _do(self, problem: Any, genomes: IntArray, random_state: Any = None, **kwargs: Any) -> IntArray:
            changed = genomes.astype(np.int64)
            operators.repair(levels, changed, operators.generator_words(random_state))
            return changed

    def better_ranked(_: Any, contests: IntArray, **__: Any) -> IntArray:
        # Survival leaves the population sorted, best first.
        return np.asarray(contests.min(axis=1, keepdims=True), dtype=np.int64)

    def algorithm(seed: int) -> Any:
        kind = UniformCrossover if settings.crossover == "uniform" else TwoPointCrossover
        genetic = GA(
            pop_size=settings.population,
            sampling=RandomLevels(),
            repair=KeepToBudgets(),
            eliminate_duplicates=True,
            advance_after_initial_infill=True,
        )
        genetic.mating = Mating(
            TournamentSelection(func_comp=better_ranked, pressure=settings.pressure),
            kind(prob=settings.crossover_probability),
            LevelSwitch(),
            repair=genetic.repair,
            eliminate_duplicates=genetic.eliminate_duplicates,
            n_max_iterations=_MATINGS_PER_GENERATION,
        )
        return genetic.setup(problem, termination=NoTermination(), seed=seed)

    problem = Energies(
        n_var=choices.num_groups,
        n_obj=1,
        n_ieq_constr=choices.num_budgets,
        xl=np.zeros(choices.num_groups),
        xu=choices.group_sizes - 1.0,
        vtype=int,
    )
    return _PymooParts(algorithm, problem)
