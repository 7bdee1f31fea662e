"""Decomposition: repeatedly solves the most promising block of groups, with the rest held.

Problems too large for a chip, or for a sampler of binary models, are solved in parts that fit. Blocks consist of
whole groups, chosen by the energy that their joint changes can gain, and only improvements are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qubo_compress.errors import InvalidSolverOption, ProblemTooLarge, QuboCompressError
from qubo_compress.problem.choice_problem import ChoiceProblem, IntArray
from qubo_compress.problem.subproblems import condition
from qubo_compress.solvers.decomposition.blocks import BlockPicker
from qubo_compress.solvers.local_search.descent import LocalSearch, warm_up
from qubo_compress.solvers.local_search.local_model import least_linear
from qubo_compress.solvers.solver import Search, SearchLimits, Solver, make_solver, solvers

_LOCAL_BITS = 128
"""About the capacity of today's chips, so that local samplers are compared on the same blocks."""
_LOCAL_WORK = 4000
_REMOTE_WORK = 4
_REMOTE_SECONDS = 5.0
_REMOTE_SHARE = 0.1
_RESERVE = 0.02
"""Share of the time reserved for processing the last block's result."""
_LIFTED_PER_BLOCK = 8
"""Answers of a block that are tried in the whole problem."""


@solvers.register
@dataclass(frozen=True)
class Decomposition(Solver):
    """Improve an assignment block by block with another solver.

    Each block is a separate problem (:func:`~qubo_compress.problem.subproblems.condition`) with the remaining budgets,
    so any solver can take it: a sampler, a chip, a cloud service.

    Args:
        inner: the solver of the blocks, by name or as an object.
        block_groups: most groups in a block; None for as many as ``block_bits`` allow.
        block_bits: most bits of a block in the inner solver's encoding; None for the inner solver's capacity
            (the largest clique of a chip's graph), or 128.
        block_work: most work per block, in the inner solver's unit; None for 4000, and 4 for a remote solver,
            whose unit is a submission.
        block_seconds: most seconds per block; None for all remaining time, and for a remote solver the larger of
            5 and a tenth of the time limit.
        blocks: most blocks; None for as many as time and work allow.

    Raises:
        InvalidSolverOption: for a number out of range.
        UnknownName: when the inner solver is not registered.

    Example:
        >>> from qubo_compress import ChoiceProblem, solve
        >>> problem = ChoiceProblem.random(kind="dense", groups=12, choices=4, seed=0)
        >>> solution = solve(problem, Decomposition(block_groups=5, blocks=4), time_limit=30.0)
        >>> problem.is_feasible(solution.assignment), solution.details["blocks"]
        (True, 4)
    """

    name: ClassVar[str] = "decomposition"
    accepts_pair_costs: ClassVar[bool] = True
    inner: str | Solver = "simulated-annealing"
    block_groups: int | None = None
    block_bits: int | None = None
    block_work: int | None = None
    block_seconds: float | None = None
    blocks: int | None = None

    def __post_init__(self) -> None:
        for option in ("block_groups", "block_bits", "block_work", "blocks"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise InvalidSolverOption(f"{option} must be at least 1 or None; got {value}")
        if self.block_seconds is not None and not 0 < self.block_seconds < np.inf:
            raise InvalidSolverOption(f"block_seconds must be a positive number or None; got {self.block_seconds}")
        if isinstance(make_solver(self.inner), Decomposition):
            raise InvalidSolverOption("the inner solver is a decomposition itself; name the solver of its blocks")

    def refuse(self, problem: ChoiceProblem) -> None:
        """Raise :class:`~qubo_compress.errors.UnsupportedProblem` for a problem that the inner solver cannot take."""
        make_solver(self.inner).refuse(problem)

    def run(self, search: Search) -> None:
        """Solve blocks until time, work or blocks are used up; the work is the inner solver's total."""
        with search.compiling():
            warm_up()
        blocks = _Blocks(search, self)
        try:
            blocks.begin()
            with make_solver(self.inner).opened(search.limits.seconds) as inner:
                blocks.improve(inner)
        finally:
            blocks.tell()


@solvers.register
@dataclass(frozen=True)
class QpuDecomposition(Decomposition):
    """Decomposition whose blocks go to a quantum annealer, each as large as the chip's largest clique.

    Example:
        >>> from dwave.system.testing import MockDWaveSampler
        >>> from qubo_compress import ChoiceProblem, solve
        >>> from qubo_compress.solvers.dwave.qpu import Qpu
        >>> chip = MockDWaveSampler(topology_type="zephyr", topology_shape=[2, 4])
        >>> problem = ChoiceProblem.random(kind="dense", groups=12, choices=5, seed=0)
        >>> solver = QpuDecomposition(inner=Qpu(sampler=chip, cache=None), blocks=3, block_work=2)
        >>> solution = solve(problem, solver, time_limit=30.0)
        >>> solution.details["blocks"], solution.details["simulated"]
        (3, True)
    """

    name: ClassVar[str] = "qpu-decomposition"
    repeats: ClassVar[bool] = False
    remote: ClassVar[bool] = True
    inner: str | Solver = "qpu"


_ADDED = ("submissions", "samples", "samples_valid", "samples_within_budget", "qpu_access_seconds", "evaluations")
"""Details of the inner solver that are summed over blocks; the others are the last block's."""


class _Blocks:
    """The results of the blocks so far, and the state for the next one."""

    def __init__(self, search: Search, options: Decomposition) -> None:
        self.search, self.options, self.problem = search, options, search.problem
        self.solved = self.improvements = 0
        self.energy_before = np.nan
        self.last_notes: list[str] = []
        self.failure: QuboCompressError | None = None

    def begin(self) -> None:
        """Start from the choices of least linear energy, repaired and improved: a feasible answer, if one is found."""
        self.local = LocalSearch(self.problem, self.search.rng)
        self.local.place(least_linear(self.problem))
        if self.local.repair():
            self._polish_and_keep()
            self.energy_before = self.search.energy

    def improve(self, inner: Solver) -> None:
        """Solve one block after another."""
        if self.search.best is None or not (self.problem.group_sizes > 1).any():
            return
        picker = self._picker(inner)
        while not self._over():
            block, before = picker.pick(self.search.best), self.search.energy
            if not self._solve(inner, block):
                return
            picker.record(block, self.search.energy < before)

    def tell(self) -> None:
        """A note on the work done."""
        name, notes = make_solver(self.options.inner).name, self.search.notes
        notes.append(f"{self.solved} blocks solved by {name}, {self.improvements} of them improved the assignment")
        if self.failure is not None:
            notes.append(f"stopped early, after {self.solved} blocks: {type(self.failure).__name__}: {self.failure}")
        notes += [f"last block: {note}" for note in self.last_notes]
        self.search.details |= {
            "inner": name,
            "blocks": self.solved,
            "blocks_that_improved": self.improvements,
            "energy_before_blocks": self.energy_before,
        }

    def _picker(self, inner: Solver) -> BlockPicker:
        """A picker of blocks within the options or the inner solver's capacity."""
        options, problem = self.options, self.problem
        if options.block_groups is not None and options.block_bits is None:
            return BlockPicker(problem, np.ones(problem.num_groups, np.int64), options.block_groups, self.search.rng)
        most = inner.largest_bits
        bits = options.block_bits or most or _LOCAL_BITS
        if most is not None:
            bits = min(bits, most)
        sizes = problem.group_sizes - (inner.encoding == "domain-wall")
        if sizes.max() > bits:
            large = int(np.argmax(sizes))
            raise ProblemTooLarge(
                f"group {problem.group_names[large]!r} alone takes {sizes[large]} bits and a block may have {bits}; "
                "offer fewer choices, or raise block_bits if the inner solver can take more"
            )
        if options.block_groups is not None:  # both limits hold: every group takes at least its share of the bits
            sizes = np.maximum(sizes, -(-bits // options.block_groups))
        return BlockPicker(problem, sizes, bits, self.search.rng)

    def _solve(self, inner: Solver, groups: IntArray) -> bool:
        """Solve one block and keep improvements; False if the search must end."""
        search = self.search
        assert search.best is not None  # noqa: S101 - called with a start
        block = condition(self.problem, search.best, groups)
        part = search.part(block.problem, self._block_limits(inner.remote))
        try:
            part.run(inner)
        except QuboCompressError as failure:
            if self.solved == 0:
                raise
            self.failure = failure
            return False
        if not inner.remote and not part.interrupted and part.elapsed >= part.limits.seconds:
            return False  # ended early by the clock: keeping it would make the answer depend on the clock
        before = search.energy
        search.work += max(1, part.work)
        for _, assignment in part.pool.ranked()[:_LIFTED_PER_BLOCK]:
            self._keep(block.lift(assignment))
        if search.energy < before:
            self.local.place(search.best)
            self._polish_and_keep()
        self._count(part, search.energy < before)
        return True

    def _count(self, part: Search, improved: bool) -> None:
        """Add a block's figures to the totals.

        Raises:
            KeyboardInterrupt: if Ctrl-C ended the block.
        """
        self.solved += 1
        self.improvements += improved
        self.last_notes = part.notes
        for stage, seconds in part.timing.items():
            if stage != "compile":
                self.search.spend(stage, seconds)
        told = self.search.details
        sums = {key: told.get(key, 0) + part.details[key] for key in _ADDED if key in part.details}
        self.search.details = {**part.details, **sums}
        if part.interrupted:
            raise KeyboardInterrupt

    def _block_limits(self, remote: bool) -> SearchLimits:
        options, seconds = self.options, self.search.limits.seconds
        left = (1.0 - _RESERVE) * seconds - self.search.elapsed
        most = options.block_seconds
        if most is None and remote:
            most = max(_REMOTE_SECONDS, _REMOTE_SHARE * seconds)
        work = options.block_work or (_REMOTE_WORK if remote else _LOCAL_WORK)
        return self.search.left(left if most is None else min(left, most), work)

    def _polish_and_keep(self) -> None:
        """Make single changes anywhere, which may spend the room that the block left."""
        self.local.descend(self.search.deadline, pairs=False)
        self._keep(self.local.assignment)

    def _keep(self, assignment: IntArray) -> None:
        if self.problem.is_feasible(assignment):
            self.search.keep(assignment)

    def _over(self) -> bool:
        out_of_blocks = self.options.blocks is not None and self.solved >= self.options.blocks
        return out_of_blocks or self.search.over(_RESERVE * self.search.limits.seconds)
