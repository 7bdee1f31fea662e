"""Choice problems in LP format, which Gurobi, CPLEX, SCIP, HiGHS and Fixstars Amplify read and write."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import dimod
import numpy as np
from scipy import sparse

from qubo_compress._internal.files import refuse_unwritable, write_atomically
from qubo_compress._internal.reader import opened, printable, refused_as
from qubo_compress.encodings.from_cqm import from_cqm
from qubo_compress.encodings.model_samples import ModelSamples
from qubo_compress.encodings.quadratic import pair_energies, refuse_too_many
from qubo_compress.errors import InfeasibleBudget, InvalidProblem, ProblemTooLarge
from qubo_compress.problem.choice_problem import ChoiceProblem

LARGEST_FILE = 2**28
"""Most bytes of a file that is read or written."""

_TERM_BYTES = 40
"""About the longest term of a file in bytes."""

_LINE_TERMS = 8
"""Terms per line: CPLEX reads lines of up to 560 characters."""

_CONSTANT = "constant"
"""The variable fixed at 1 whose coefficient in the objective is the problem's constant."""

_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]")
_COMMENT = re.compile(rb"\\[^\n]*")
_BEGIN = re.compile(rb"\s*(min|max)", re.IGNORECASE)
_END = re.compile(rb"\bend\s*\Z", re.IGNORECASE)
_LEFT_OUT = re.compile(rb"^\s*(sos[12]?|pwlobj|general constraints?|gencons?)\s*$|->", re.IGNORECASE | re.MULTILINE)
_WHAT = "an LP file of a choice problem"


def to_lp(problem: ChoiceProblem, path: str | Path) -> ModelSamples:
    r"""Write a problem as an LP file, atomically.

    Choice v is the binary ``x{v}``; group g is the equality ``group{g}`` and budget b the inequality ``budget{b}``,
    which comments in the file map to the problem's own names. Pair energies are in the quadratic part ``[ ... ] / 2``,
    a factor's multiplied out, and pair costs in the part ``[ ... ]`` of their budget. A constant is the coefficient of
    the integer ``constant``, which is fixed at 1: Gurobi takes a bare number for a variable.

    Args:
        problem: the problem.
        path: of the file.

    Returns:
        An object that translates assignments to values of the file's variables, and back: ``assignment({"x0": 1.0,
        ...})`` of what a solver found.

    Raises:
        ProblemTooLarge: for a file of more than about :data:`LARGEST_FILE` bytes.
        StorageError: when the file cannot be written.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "problem.lp"
        >>> problem = ChoiceProblem(linear=[0.0, 1.5], group_offsets=[0, 2], costs=[[8, 2]], limits=[4])
        >>> samples = to_lp(problem, path)
        >>> print(path.read_text().rstrip())  # doctest: +ELLIPSIS
        \ Written by qubo_compress...
        Minimize
         obj: + 1.5 x1
        Subject To
         group0: + x0 + x1 = 1
         budget0: + 8 x0 + 2 x1 <= 4
        Binary
         x0 x1
        End
        >>> samples.assignment({"x0": 0.0, "x1": 0.999999999}).tolist()
        [1]
    """
    refuse_unwritable(path)
    refuse_too_many(problem)
    pairs = sparse.triu(sparse.coo_array(pair_energies(problem)), k=1).tocoo()
    _refuse_large(problem, pairs.nnz)

    def write(handle: IO[bytes]) -> None:
        for line in _lines(problem, pairs):
            handle.write(line.encode("ascii"))

    write_atomically(path, write)
    return _samples(problem)


def _samples(problem: ChoiceProblem) -> ModelSamples:
    """Translates assignments to values of the file's variables, and back."""
    names = [f"x{v}" for v in range(problem.num_choices)]
    each = sparse.csr_array(sparse.eye_array(problem.num_choices, dtype=np.int64))
    groups = np.repeat(np.arange(problem.num_groups), problem.group_sizes)
    if problem.constant:
        # Every choice of the first group sets it to 1.
        ones = sparse.csr_array((groups == 0).astype(np.int64)[:, None])
        names, groups = [*names, _CONSTANT], np.append(groups, 0)
        each = sparse.csr_array(sparse.hstack([each, ones]))
    return ModelSamples(problem, tuple(names), each, groups)


def from_lp(path: str | Path) -> tuple[ChoiceProblem, ModelSamples]:
    """A choice problem from an LP file, and its inverse: see :func:`qubo_compress.encodings.from_cqm`.

    A maximisation is turned into a minimisation with all signs of the objective turned, as dimod does.

    Raises:
        CorruptArtifact: when the file is not in LP format, or has sections that dimod does not read.
        InvalidProblem: when it is no choice problem, for example because a variable is real.
        InfeasibleBudget: when it is proven that it has no solution.
        ProblemTooLarge: for a file of more than :data:`LARGEST_FILE` bytes.
        StorageError: when it cannot be read.
        FileNotFoundError: when there is no file.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "problem.lp"
        >>> problem = ChoiceProblem.random(kind="sparse", groups=3, choices=2, seed=0)
        >>> _ = to_lp(problem, path)
        >>> again, samples = from_lp(path)
        >>> bool(abs(again.energy([1, 0, 1]) - problem.energy([1, 0, 1])) < 1e-9), samples([1, 0, 1])["x1"]
        (True, 1)
    """
    with opened(path, "an LP file") as handle:
        text = handle.read(LARGEST_FILE + 1)
    if len(text) > LARGEST_FILE:
        raise ProblemTooLarge(f"{path} has more than {LARGEST_FILE:,} bytes; larger LP files are not read")
    with refused_as(path, _WHAT, "write it again"):
        _refuse_other_text(text)
        cqm = dimod.lp.loads(text)
    try:
        return from_cqm(cqm)
    except (InvalidProblem, InfeasibleBudget) as cause:
        raise type(cause)(f"{path}: {cause}") from cause


def _refuse_other_text(text: bytes) -> None:
    """Refuse what dimod's parser hangs on, skips in silence, or takes for an empty model.

    Raises:
        ValueError: saying what is wrong.
    """
    control = _CONTROL.search(text)
    if control:
        raise ValueError(f"it has the control character {control.group()!r} at byte {control.start()}")
    bare = _COMMENT.sub(b"", text)
    if not _BEGIN.match(bare):
        raise ValueError("it does not begin with Minimize or Maximize")
    if not _END.search(bare):
        raise ValueError("it does not end with End; it may be cut short")
    other = _LEFT_OUT.search(bare)
    if other:
        raise ValueError(f"it has {other.group().strip()[:40].decode('latin-1')!r}, which is not read")


def _refuse_large(problem: ChoiceProblem, pairs: int) -> None:
    terms = pairs + 3 * problem.num_choices + int(np.count_nonzero(problem.costs))
    terms += sum(matrix.nnz // 2 for matrix in problem.pair_costs or () if matrix is not None)
    if terms * _TERM_BYTES > LARGEST_FILE:
        raise ProblemTooLarge(
            f"an LP file of this problem would have {terms:,} terms and about {terms * _TERM_BYTES:,} bytes; at most "
            f"{LARGEST_FILE:,} are written. Use save, or a solver that reads the factor itself, such as 'annealer'"
        )


def _lines(problem: ChoiceProblem, pairs: sparse.coo_array) -> Iterator[str]:
    """The pieces of the file."""
    yield from _comments(problem)
    yield "Minimize\n obj:"
    chosen = np.flatnonzero(problem.linear)
    terms = [_term(value, f"x{v}") for v, value in zip(chosen.tolist(), problem.linear[chosen].tolist(), strict=True)]
    if problem.constant:
        terms.append(_term(problem.constant, _CONSTANT))
    yield from _wrapped(terms or ["+ 0 x0"])
    if pairs.nnz:
        yield "\n + ["
        products = zip(pairs.row.tolist(), pairs.col.tolist(), (2.0 * pairs.data).tolist(), strict=True)
        yield from _wrapped(_term(value, f"x{v} * x{w}") for v, w, value in products)
        yield " ] / 2"
    yield "\nSubject To\n"
    for g, (first, last) in enumerate(zip(problem.group_offsets[:-1], problem.group_offsets[1:], strict=True)):
        yield f" group{g}:"
        yield from _wrapped(f"+ x{v}" for v in range(first, last))
        yield " = 1\n"
    for b, costs in enumerate(problem.costs):
        paid = np.flatnonzero(costs)
        yield f" budget{b}:"
        yield from _wrapped([_term(int(costs[v]), f"x{v}") for v in paid.tolist()] or ["+ 0 x0"])
        yield from _pair_costs(problem, b)
        yield f" <= {int(problem.limits[b] - problem.fixed_costs[b])}\n"
    if problem.constant:
        yield f"Bounds\n {_CONSTANT} = 1\nGeneral\n {_CONSTANT}\n"
    yield "Binary\n"
    yield from _wrapped(f"x{v}" for v in range(problem.num_choices))
    yield "\nEnd\n"


def _pair_costs(problem: ChoiceProblem, budget: int) -> Iterator[str]:
    """The quadratic part of a budget; nothing if it has none."""
    matrix = None if problem.pair_costs is None else problem.pair_costs[budget]
    if matrix is not None:
        upper = sparse.triu(matrix, k=1).tocoo()
        yield "\n + ["
        products = zip(upper.row.tolist(), upper.col.tolist(), upper.data.tolist(), strict=True)
        yield from _wrapped(_term(value, f"x{v} * x{w}") for v, w, value in products)
        yield " ]"


def _comments(problem: ChoiceProblem) -> Iterator[str]:
    """Which name stands for what."""
    yield "\\ Written by qubo_compress: one of each group's binaries is 1.\n"
    for g, name in enumerate(problem.group_names):
        first, last = problem.group_offsets[g], problem.group_offsets[g + 1]
        yield f"\\ group{g} is {_plain(name)}, x{first} to x{last - 1}\n"
    for b, name in enumerate(problem.budget_names):
        yield f"\\ budget{b} is {_plain(name)}, in units of which {int(problem.fixed_costs[b])} are fixed\n"


def _plain(name: str) -> str:
    """A name in a comment: ASCII, in one line of bounded length."""
    return printable(name).encode("ascii", "backslashreplace").decode("ascii")


def _term(value: float, name: str) -> str:
    size = abs(value)
    number = "" if size == 1 else f"{size!r} " if isinstance(size, int) else f"{float(size)!r} "
    return f"{'-' if value < 0 else '+'} {number}{name}"


def _wrapped(terms: Iterable[str]) -> Iterator[str]:
    """Terms after a space each, with line breaks."""
    for place, term in enumerate(terms):
        yield f"\n {term}" if place and place % _LINE_TERMS == 0 else f" {term}"
