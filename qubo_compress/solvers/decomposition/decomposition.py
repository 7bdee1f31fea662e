"""Decomposition: solve the block of groups that promises most, with the rest held, again and again.

What is too large for a chip, or for a sampler of binary models, is solved in parts that fit. Blocks are made of
whole groups, chosen by the energy that their joint changes can gain, and only improvements are kept.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from qubo_compress.errors import InvalidSolverOption, ProblemTooLarge, QuboCompressError
from qubo_compress.problem.choice_problem import ChoiceProblem, IntArray
from qubo_compress.problem.conditioning import condition
from qubo_compress.solvers.decomposition.blocks import BlockPicker
from qubo_compress.solvers.local_search.descent import LocalSearch, warm_up
from qubo_compress.solvers.local_search.local_model import least_linear
from qubo_compress.solvers.solver import RawSolution, SearchLimits, Solver, make_solver, solvers

_LOCAL_BITS = 128
"""About what today's chips take, so that a local sampler is compared on the same blocks."""
_LOCAL_WORK = 4000
_REMOTE_WORK = 4
_REMOTE_SECONDS = 5.0
_REMOTE_SHARE = 0.1
_RESERVE = 0.02
"""Share of the time that no block gets, for taking in what the last one found."""
_POOL = 64
_LIFTED_PER_BLOCK = 8


@solvers.register
@dataclass(frozen=True)
class Decomposition:
    """Improve an assignment block by block with another solver.

    Each block is a problem of its own (:func:`~qubo_compress.problem.conditioning.condition`), with what is left of the
    budgets, so any solver can take it: a sampler, a chip, a service in the cloud.

    Args:
        inner: the solver of the blocks, by name or as an object.
        block_groups: most groups in a block; None for as many as ``block_bits`` allow.
        block_bits: most bits of a block in the inner solver's encoding; None for what the inner solver can
            take (the largest clique of a chip's graph), or 128.
        block_work: most work per block, in the inner solver's unit; None for 4000, and 4 for a remote solver,
            whose unit is a submission.
        block_seconds: most seconds per block; None for all that is left, and for a remote solver the larger of
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

    def search(self, problem: ChoiceProblem, limits: SearchLimits, rng: np.random.Generator) -> RawSolution:
        """Solve blocks until time, work or blocks are used up; the work is the sum of the inner solver's."""
        return _Loop(self, problem, limits, rng).run()


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


@contextmanager
def opened(solver: Solver, seconds: float) -> Iterator[Solver]:
    """The solver, with its connection held open where it has a method ``opened`` that does so.

    Args:
        solver: any.
        seconds: most seconds that it is needed.
    """
    with ExitStack() as stack:
        opener = getattr(solver, "opened", None)
        yield solver if opener is None else stack.enter_context(opener(seconds))


@dataclass
class _Tally:
    """What the blocks reported, added up."""

    blocks: int = 0
    improvements: int = 0
    work: int = 0
    timing: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def add(self, raw: RawSolution, improved: bool) -> None:
        """One block more."""
        self.blocks += 1
        self.improvements += improved
        self.notes = raw.notes
        for stage, seconds in raw.timing.items():
            self.timing[stage] = self.timing.get(stage, 0.0) + seconds
        sums = {key: self.details.get(key, 0) + raw.details[key] for key in _ADDED if key in raw.details}
        self.details = {**raw.details, **sums}


_ADDED = ("submissions", "samples", "samples_valid", "samples_within_budget", "qpu_access_seconds", "evaluations")
"""Details of the inner solver that are sums over blocks; of the others the last block's are given."""


class _Loop:
    """One search: the present assignment, and everything needed to improve it."""

    def __init__(
        self, options: Decomposition, problem: ChoiceProblem, limits: SearchLimits, rng: np.random.Generator
    ) -> None:
        self.compile_seconds = warm_up()
        self.start = time.perf_counter()
        self.options, self.problem, self.limits, self.rng = options, problem, limits, rng
        self.tally = _Tally()
        self.found: dict[bytes, tuple[float, IntArray]] = {}
        self.trace: list[tuple[float, float, float | None]] = []
        self.best: tuple[float, IntArray] | None = None
        self.interrupted = False
        self.failure: QuboCompressError | None = None

    def run(self) -> RawSolution:
        """Search; on Ctrl-C, give back the best so far."""
        began = np.nan
        try:
            self.local = LocalSearch(self.problem, self.rng)
            self._begin()
            began = np.nan if self.best is None else self.best[0]
            with opened(make_solver(self.options.inner), self.limits.seconds) as inner:
                self._improve(inner)
        except KeyboardInterrupt:
            self.interrupted = True
        ranked = sorted(self.found.values(), key=lambda pair: pair[0])[:_POOL]
        tally = self.tally
        timing = {**tally.timing, "compile": self.compile_seconds + tally.timing.get("compile", 0.0)}
        timing["solve"] = time.perf_counter() - self.start - tally.timing.get("compile", 0.0)
        return RawSolution(
            assignments=tuple(assignment for _, assignment in ranked),
            timing=timing,
            trace=tuple(self.trace),
            work=tally.work,
            interrupted=self.interrupted,
            notes=self._notes(),
            details={
                **tally.details,
                "inner": make_solver(self.options.inner).name,
                "blocks": tally.blocks,
                "blocks_that_improved": tally.improvements,
                "energy_before_blocks": began,
            },
        )

    def _notes(self) -> tuple[str, ...]:
        tally = self.tally
        counted = f"{tally.blocks} blocks solved by {make_solver(self.options.inner).name}"
        notes = [f"{counted}, {tally.improvements} of them improved the assignment"]
        if self.failure is not None:
            notes.append(f"stopped early, after {tally.blocks} blocks: {type(self.failure).__name__}: {self.failure}")
        return (*notes, *(f"last block: {note}" for note in tally.notes))

    def _begin(self) -> None:
        """The choices of least linear energy, repaired and filled up: a feasible answer, or nothing to improve."""
        self.local.place(least_linear(self.problem))
        if self.local.repair():
            self._polish_and_keep()

    def _improve(self, inner: Solver) -> None:
        if self.best is None or not (self.problem.group_sizes > 1).any():
            return
        picker = self._picker(inner)
        while not self._over():
            assert self.best is not None  # noqa: S101 - a start was found above
            block = picker.pick(self.best[1])
            before = self.best[0]
            if not self._solve(inner, block):
                return
            picker.record(block, self.best[0] < before)

    def _picker(self, inner: Solver) -> BlockPicker:
        """Blocks by what the inner solver can take, or by the options."""
        options, problem = self.options, self.problem
        if options.block_groups is not None and options.block_bits is None:
            return BlockPicker(problem, np.ones(problem.num_groups, np.int64), options.block_groups, self.rng)
        most = getattr(inner, "largest_bits", None)
        bits = options.block_bits or most or _LOCAL_BITS
        if most is not None:
            bits = min(bits, most)
        sizes = problem.group_sizes - (getattr(inner, "encoding", "domain-wall") == "domain-wall")
        if sizes.max() > bits:
            large = int(np.argmax(sizes))
            raise ProblemTooLarge(
                f"group {problem.group_names[large]!r} alone takes {sizes[large]} bits and a block may have {bits}; "
                "offer fewer choices, or raise block_bits if the inner solver can take more"
            )
        if options.block_groups is not None:  # both limits hold: every group takes at least its share of the bits
            sizes = np.maximum(sizes, -(-bits // options.block_groups))
        return BlockPicker(problem, sizes, bits, self.rng)

    def _solve(self, inner: Solver, groups: IntArray) -> bool:
        """Solve one block and keep what is better; False when the search must end."""
        assert self.best is not None  # noqa: S101 - called with a start
        block = condition(self.problem, self.best[1], groups)
        remote = bool(getattr(inner, "remote", False))
        limits = self._block_limits(remote)
        begin = time.perf_counter()
        try:
            raw = inner.search(block.problem, limits, self.rng.spawn(1)[0])
        except QuboCompressError as failure:
            if self.tally.blocks == 0:
                raise
            self.failure = failure
            return False
        spent = time.perf_counter() - begin - raw.timing.get("compile", 0.0)
        self.interrupted = raw.interrupted
        if not remote and not raw.interrupted and spent >= limits.seconds:
            return False  # cut off by the clock halfway: keeping it would make the answer depend on the clock
        before = self.best[0]
        self.tally.work += max(1, raw.work)
        for assignment in raw.assignments[:_LIFTED_PER_BLOCK]:
            self._keep(block.lift(assignment))
        if self.best[0] < before:
            self.local.place(self.best[1])
            self._polish_and_keep()
        self.tally.add(raw, self.best[0] < before)
        return True

    def _block_limits(self, remote: bool) -> SearchLimits:
        options = self.options
        seconds = (1.0 - _RESERVE) * self.limits.seconds - self._elapsed()
        most = options.block_seconds
        if most is None and remote:
            most = max(_REMOTE_SECONDS, _REMOTE_SHARE * self.limits.seconds)
        work = options.block_work or (_REMOTE_WORK if remote else _LOCAL_WORK)
        if self.limits.work is not None:
            work = min(work, self.limits.work - self.tally.work)
        return SearchLimits(max(1e-3, seconds if most is None else min(seconds, most)), work)

    def _polish_and_keep(self) -> None:
        """Single changes across the borders of blocks, which may spend what the block left over."""
        self.local.descend(self.start + self.limits.seconds, pairs=False)
        self._keep(self.local.assignment)

    def _keep(self, assignment: IntArray) -> None:
        if not self.problem.is_feasible(assignment):
            return
        energy = self.problem.energy(assignment)
        self.found.setdefault(assignment.tobytes(), (energy, assignment))
        if self.best is None or energy < self.best[0]:
            self.best = energy, assignment
            self.trace.append((self._elapsed(), energy, None))
        if len(self.found) > 8 * _POOL:
            ranked = sorted(self.found.items(), key=lambda item: item[1][0])
            self.found = dict(ranked[:_POOL])

    def _over(self) -> bool:
        limits, tally = self.limits, self.tally
        out_of_work = limits.work is not None and tally.work >= limits.work
        out_of_blocks = self.options.blocks is not None and tally.blocks >= self.options.blocks
        late = self._elapsed() >= (1.0 - _RESERVE) * limits.seconds
        return self.interrupted or out_of_work or out_of_blocks or late

    def _elapsed(self) -> float:
        return time.perf_counter() - self.start
