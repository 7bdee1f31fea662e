"""One exact search: which method is tried when, and what each one leaves to the next."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np

from qubo_compress.problem.choice_problem import ChoiceProblem, IntArray
from qubo_compress.problem.energy_scale import OPTIMAL_GAP, energy_scale
from qubo_compress.problem.subproblems import Subproblem, restrict
from qubo_compress.solvers.exact.annealed_answer import annealed
from qubo_compress.solvers.exact.band_programming import coupled_groups, find_band, solve_band
from qubo_compress.solvers.exact.bounds import LARGEST_EIGENPROBLEM, lower_bound
from qubo_compress.solvers.exact.branch_and_bound import PRUNE, Tree, choices_left
from qubo_compress.solvers.exact.certificates import CertificateRecord
from qubo_compress.solvers.exact.convex_relaxation import LARGEST_GRAM, convex_form
from qubo_compress.solvers.exact.cost_network import MOST_NETWORK_ENTRIES, network_entries
from qubo_compress.solvers.exact.dynamic_programming import TableAnswer, solve_table
from qubo_compress.solvers.exact.first_answer import first_answers
from qubo_compress.solvers.exact.infeasibility import nothing_fits
from qubo_compress.solvers.exact.integer_programming import MOST_TABLE_ENTRIES, solve_milp, table_entries
from qubo_compress.solvers.exact.message_passing import fits_in_blocks, message_bound
from qubo_compress.solvers.exact.message_tree import LARGEST_TREE_BLOCKS, MessageTree
from qubo_compress.solvers.exact.relaxation_kernels import ConvexForm
from qubo_compress.solvers.exact.strengthening import LARGEST_STRENGTHENED, strengthen
from qubo_compress.solvers.exact.toulbar2 import prove_by_network, toulbar2_is_installed
from qubo_compress.solvers.local_search.descent import LocalSearch
from qubo_compress.solvers.solver import Search

PLAIN_NODES = 20_000
"""A small tree's root is bounded again after this many nodes; most networks' tables are proven earlier."""

_SMALL_CHOICES = 400
"""Trees with up to this many choices are small."""
_LEAST_PLAIN_NODES = 200
"""For large trees, whose nodes take longer, at least this many."""

STRENGTHENING_ITERATIONS = 600
_STRENGTHENING_SHARE = 0.4
"""Largest share of the remaining time for strengthening."""
_WORTH_RESTARTING = 0.95
"""A new tree is worthwhile if at most this share of the choices is left."""

_PLAIN_TREE_NODES = 500
"""Nodes of a tree without interactions before HiGHS: random problems are proven by then, packing problems are not."""
_PROGRAMME_SHARE = 0.5
"""Share of the remaining time for HiGHS where branch and bound can do the rest."""

_FEW_COMBINATIONS = 100_000
"""Up to this many combinations, branch and bound needs no help from the sparse methods."""
_LEAST_MILP_SECONDS = 3.0
"""Below this time limit, starting a process for HiGHS does not pay."""
_MESSAGE_SHARE = 0.1
"""Share of the remaining time for message passing before HiGHS."""
_FIRST_TREE_NODES = 500
"""Nodes of branch and bound on messages before toulbar2: dense pairs of up to 16 x 10 are proven by then."""
_MOST_PARTNERS = 8.0
"""Coupled groups per group, on average, above which branch and bound is preferred to linearisation."""
_MANY_PARTNERS = 3.0
"""From this on, toulbar2 is tried first: soft local consistency, unlike a linear program, stays cheap."""
_NETWORK_SHARE = 0.6
"""Share of the remaining time for toulbar2."""


@dataclass(frozen=True)
class ProofOptions:
    """The options of :class:`~qubo_compress.solvers.exact.exact.Exact`, which explains them."""

    first: tuple[int, ...] | None = None
    threads: int | None = None
    certificate: bool = False
    cfn: bool = True


@dataclass
class Proof:
    """One search; every attribute is valid at any moment, so that an interruption leaves an answer."""

    search: Search
    options: ProofOptions
    best: IntArray | None = None
    bound: float = -np.inf
    tree: Tree | None = None
    reduction: Subproblem | None = None
    record: CertificateRecord | None = None
    pool: list[IntArray] = field(default_factory=list)
    messages: MessageTree | None = None

    @property
    def problem(self) -> ChoiceProblem:
        """The search's problem."""
        return self.search.problem

    @property
    def deadline(self) -> float:
        """The end of the search's time limit, on ``time.perf_counter``."""
        return self.search.deadline

    def solve(self) -> None:
        """Find a first answer, then solve the problem by the method that suits it."""
        problem = self.problem
        local = LocalSearch(problem, self.search.rng)
        for better in first_answers(self.search, local, self.options.first):
            self.best = better
        if self.best is None and nothing_fits(self.search):
            return
        # A single budget that is reachable, which was checked before, can always be repaired to.
        if problem.structure == "separable" and problem.num_budgets <= 1 and self.best is not None:
            self._say("dynamic programming")
            self._take_table(solve_table(problem, self.best, self.deadline, self.search.limits.work))
            return
        if problem.structure == "pairs" and self._solve_pairs():
            return
        if problem.structure == "factor" and self._anneal():
            return
        most = LARGEST_EIGENPROBLEM if problem.structure == "pairs" else LARGEST_GRAM
        if problem.num_choices > most:
            self._say("bound only")
            self.search.notes.append(
                f"{problem.num_choices} choices are more than the {most} that exact can branch on: bound only"
            )
            self.bound = max(self.bound, lower_bound(problem, self.search.seconds_left) or -np.inf)
            return
        self._say("branch and bound")
        self._branch(local)

    def _anneal(self) -> bool:
        """Take the annealer's answer and bound, unless there is an answer to start from; whether nothing fits."""
        search = self.search
        if self.options.first is not None or self.options.certificate:
            return False
        part = annealed(search, self.options.threads)
        if part is None:
            return False
        search.infeasible = search.infeasible or part.infeasible
        self.bound = max(self.bound, -np.inf if part.bound is None else part.bound)
        self._offer(part.best)
        if part.interrupted:
            raise KeyboardInterrupt
        return search.infeasible

    def _programme_may_prove(self) -> bool:
        """Whether HiGHS may be asked: it cannot be stopped after an amount of work, so its answers would not repeat."""
        limits = self.search.limits
        return limits.work is None and limits.seconds >= _LEAST_MILP_SECONDS

    def _programme_proves(self) -> bool:
        """Whether HiGHS proves the best answer, without interactions and under several budgets."""
        if self.best is None:
            return False
        self._solve_programme(time.perf_counter() + _PROGRAMME_SHARE * self.search.seconds_left)
        energy = self.problem.energy(self.best)
        return energy - self.bound <= energy_scale(self.problem).tolerance(energy, OPTIMAL_GAP)

    def _say(self, method: str) -> None:
        self.search.details["method"] = method
        if method != "bound only":
            self.search.notes.append(f"method: {method}")

    def _take_table(self, answer: TableAnswer) -> None:
        self.best, self.bound, self.search.work = answer.assignment, answer.bound, answer.states

    def _solve_pairs(self) -> bool:
        """Try the methods for pairs: band programming, message passing, toulbar2, HiGHS; False if none suits."""
        problem, limits = self.problem, self.search.limits
        few = np.log(problem.group_sizes).sum() <= np.log(_FEW_COMBINATIONS)
        band = None if few or self.best is None else find_band(problem)
        if band is not None and self.best is not None:
            self._say(f"dynamic programming over a band of width {band.width}")
            self._take_table(solve_band(problem, band, self.best, self.deadline, limits.work))
            return True
        linear = self._programme_may_prove() and not few and self.best is not None and _is_sparse(problem)
        if self.options.certificate and not linear:
            return False  # only the tree can be checked
        if (
            self._anneal()
            or self._messages_prove()
            or self._tree_proves(_FIRST_TREE_NODES)
            or (not few and self._network_proves())
        ):
            return True
        if linear:
            self._solve_programme(self.deadline)
        return linear or self._tree_proves(None)

    def _tree_proves(self, nodes: int | None) -> bool:
        """Whether branch and bound on messages settles the problem within some nodes, or half of what is left."""
        problem, search = self.problem, self.search
        if network_entries(problem) > LARGEST_TREE_BLOCKS:
            return False
        if self.messages is None:
            self.messages = MessageTree(problem, self.best)
        elif self.best is not None:
            self.messages.offer(self.best)
        tree, deadline = self.messages, self.deadline
        begin, left = tree.nodes, None if search.limits.work is None else search.most_work(search.limits.work)
        if nodes is None:
            deadline = time.perf_counter() + 0.5 * search.seconds_left
        elif left is not None:
            left = min(left, nodes)
        try:
            tree.run(deadline, nodes if left is None else begin + left)
        finally:
            search.work += tree.nodes - begin
            self.bound = max(self.bound, tree.bound)
            self.pool = [*tree.pool, *self.pool]
            self._offer(tree.best)
        if tree.finished:
            search.infeasible = tree.bound == np.inf
            self._say("branch and bound on messages")
        elif time.perf_counter() >= deadline:
            search.details["repeats"] = False  # the recorded work does not tell when the clock stopped it
        return tree.finished

    def _solve_programme(self, deadline: float) -> None:
        self._say("mixed-integer programming")
        answer = solve_milp(self.problem, deadline)
        self.bound, self.search.work = max(self.bound, answer.bound), self.search.work + answer.nodes
        if answer.ended:
            self.search.notes.append("HiGHS overran its time limit and was ended")
        self._offer(answer.assignment)

    def _offer(self, found: IntArray | None) -> None:
        """Take an assignment from elsewhere if it fits and is better."""
        problem = self.problem
        if found is None or not problem.is_feasible(found):
            return
        if self.best is None or problem.energy(found) < problem.energy(self.best):
            self.best = found
            self.search.trace.append((self.search.elapsed, problem.energy(found), None))

    def _network_proves(self) -> bool:
        """Whether toulbar2 proves the best answer or a better one; in any case its answer and bound count."""
        problem, search = self.problem, self.search
        if not self.options.cfn or _partners(problem) < _MANY_PARTNERS:
            return False
        if network_entries(problem) > MOST_NETWORK_ENTRIES:
            return False
        if not toulbar2_is_installed():
            search.notes.append("toulbar2, which proves many problems of this kind, is in qubo_compress[cfn]")
            return False
        work = None if search.limits.work is None else search.most_work(search.limits.work)
        if work == 0:
            return False
        soon = time.perf_counter() + _NETWORK_SHARE * search.seconds_left
        proof = prove_by_network(problem, self.best, soon, work)
        self._offer(proof.assignment)
        self.bound, search.work = max(self.bound, proof.bound), search.work + proof.answer.work
        search.infeasible = search.infeasible or proof.bound == np.inf
        if proof.answer.late or proof.answer.ended:
            search.details["repeats"] = False  # the recorded work does not tell when the clock stopped it
        if proof.answer.interrupted:
            raise KeyboardInterrupt
        if proof.answer.complete:
            self._say("cost function network")
        return proof.answer.complete

    def _branch(self, local: LocalSearch) -> None:
        """Grow a tree; until it is done, remove choices as answer and root improve, and replant it on the rest."""
        problem, work = self.problem, self.search.limits.work
        record = self.record = CertificateRecord() if self.options.certificate else None
        threads = self.options.threads
        tree = Tree(
            problem, convex_form(problem), local, self.best, start=self.search.start, threads=threads, record=record,
            root_bound=self.bound,
        )  # fmt: skip
        self.tree = tree
        quota = _plain_nodes(problem)
        if problem.structure == "separable" and record is None and self._programme_may_prove():
            tree.run(self.deadline, _PLAIN_TREE_NODES)
            self._offer(tree.incumbent)
            if tree.finished or self._programme_proves():
                return
        while record is None:
            left = min(quota, self.search.most_work(quota + tree.nodes) - tree.nodes)
            wanted = tree.nodes + left
            tree.run(self.deadline, wanted)
            if tree.finished or tree.nodes < wanted or left < quota:
                return
            quota *= 2
            reduction = None if tree.incumbent is None else self._narrowed(tree, tree.incumbent)
            if reduction is not None:
                tree = self._replanted(tree, reduction)
        tree.run(self.deadline, work)

    def _messages_prove(self) -> bool:
        """Whether message passing, far better than the relaxation for dense pairs, settles the problem."""
        problem = self.problem
        if not fits_in_blocks(problem):
            return False
        self.bound = max(self.bound, message_bound(problem, _MESSAGE_SHARE * self.search.seconds_left))
        self.search.infeasible = self.bound == np.inf
        if self.search.infeasible or self.best is None:
            return self.search.infeasible
        energy = problem.energy(self.best)
        proven = energy - self.bound <= energy_scale(problem).tolerance(energy, PRUNE)
        if proven:
            self._say("message passing")
        return proven

    def _replanted(self, tree: Tree, reduction: Subproblem) -> Tree:
        """A new tree on fewer choices with the old one's answers and bounds."""
        small = reduction.problem
        answers = self._lifted(tree)
        again = Tree(
            small, convex_form(small), LocalSearch(small, self.search.rng), reduction.lower(answers[0]),
            start=self.search.start, threads=self.options.threads, root_bound=tree.bound, closed=tree.cutoff,
        )  # fmt: skip
        self.pool = [*answers, *self.pool]
        self.search.trace += tree.trace
        self.search.work += tree.nodes
        self.tree, self.reduction = again, reduction
        self.search.details["choices left"] = small.num_choices
        return again

    def _lifted(self, tree: Tree) -> list[IntArray]:
        """The answers of a tree as assignments of the whole problem, best first."""
        reduction = self.reduction
        return tree.pool if reduction is None else [reduction.lift(answer) for answer in tree.pool]

    def _narrowed(self, tree: Tree, incumbent: IntArray) -> Subproblem | None:
        """The problem without the choices that the root excludes, if worthwhile; raises the tree's bound.

        Once few enough choices are left, strengthening the root excludes more.
        """
        before = np.arange(self.problem.num_choices) if self.reduction is None else self.reduction.kept
        left = choices_left(tree.form, tree.problem.selected(incumbent), tree.cutoff)
        if left.size <= LARGEST_STRENGTHENED and "strengthening iterations" not in self.search.details:
            part = restrict(tree.problem, left)
            vertex = part.problem.selected(part.lower(incumbent))
            left = left[self._strengthen(tree, convex_form(part.problem), vertex)]
        kept = before[left]
        return restrict(self.problem, kept) if kept.size <= _WORTH_RESTARTING * before.size else None

    def _strengthen(self, tree: Tree, form: ConvexForm, vertex: IntArray) -> IntArray:
        """The choices of a form that its strengthened root cannot exclude; raises the tree's bound."""
        search, now = self.search, time.perf_counter()
        most = search.most_work(STRENGTHENING_ITERATIONS + tree.nodes) - tree.nodes
        result = strengthen(form, vertex, now + _STRENGTHENING_SHARE * search.seconds_left, most)
        search.work += result.iterations
        bound = result.bound if search.standard is None else search.standard.energy(result.bound)
        search.details |= {"strengthening iterations": result.iterations, "strengthened root bound": bound}
        # Choices excluded before are no better than the cutoff.
        tree.root_bound = max(tree.root_bound, min(result.bound, tree.cutoff))
        return choices_left(result.form, vertex, tree.cutoff)

    def tell(self) -> None:
        """Report the results to the search, with a tree's proof."""
        search, pool, tree = self.search, self.pool, self.tree
        if tree is not None:
            self.bound = max(self.bound, tree.bound)
            search.work += tree.nodes
            search.trace += tree.trace
            distinct = {answer.tobytes(): answer for answer in [*self._lifted(tree), *pool]}
            pool = list(distinct.values())
            search.infeasible = tree.finished and not pool
            if self.record is not None:
                unit = 1.0 if search.standard is None else search.standard.unit
                nodes = self.record.certificate()
                search.details["certificate"] = {n: replace(node, price=unit * node.price) for n, node in nodes.items()}
        if self.best is not None and not any((self.best == answer).all() for answer in pool):
            pool = [*pool, self.best]
        search.bound = self.bound if np.isfinite(self.bound) else None
        search.pool.size = max(1, len(pool))
        for answer in sorted(pool, key=self.problem.energy):
            search.keep(answer)


def _plain_nodes(problem: ChoiceProblem) -> int:
    """Nodes before the root is bounded again: fewer if nodes take longer."""
    share = min(1.0, (_SMALL_CHOICES / problem.num_choices) ** 1.5)
    return max(min(_LEAST_PLAIN_NODES, PLAIN_NODES), int(PLAIN_NODES * share))


def _partners(problem: ChoiceProblem) -> float:
    """Coupled groups per group, on average."""
    return float(coupled_groups(problem).nnz / problem.num_groups)


def _is_sparse(problem: ChoiceProblem) -> bool:
    return _partners(problem) <= _MOST_PARTNERS and table_entries(problem) <= MOST_TABLE_ENTRIES
