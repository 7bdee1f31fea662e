"""The published formulation: energies, separability, the exact minimum, against enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qubo_compress as qc
from qubo_compress.encodings import published
from qubo_compress.encodings.published import Feed, FilterLayer, FiltersAndBits
from qubo_compress.errors import InvalidAssignment, InvalidProblem, UnsupportedProblem

COUNTS = st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=2), st.integers(1, 2), st.integers(0, 10**6))


def drawn(counts: list[int], code_bits: int, seed: int, feeds: bool = False) -> FiltersAndBits:
    """A random objective whose terms are of about one size."""
    rng = np.random.default_rng(seed)
    layers = []
    for number, filters in enumerate(counts):
        losses = rng.normal(size=(code_bits, code_bits))
        scores = rng.choice([0.0, 0.3, 0.5, 1.0], filters) * rng.choice([1.0, rng.random()])
        size = 6 if feeds else int(rng.integers(1, 9))
        layers.append(FilterLayer(f"l{number}", scores, size, losses @ losses.T, 3 if filters == 0 else 0))
    found = ()
    if feeds and len(counts) > 1:
        found = tuple(Feed(n, n + 1, rng.integers(0, 2, (counts[n + 1], counts[n]))) for n in range(len(counts) - 1))
    return FiltersAndBits(tuple(layers), float(rng.gamma(2.0, 2.0)), float(rng.random()), 2**code_bits + 1, found)


def patterns(objective: FiltersAndBits) -> np.ndarray:
    return np.array(list(itertools.product((0, 1), repeat=objective.num_bits)), dtype=np.int8)


def energies(objective: FiltersAndBits) -> np.ndarray:
    """Of all patterns, by the model, whose energies another test compares with the definition."""
    return objective.to_bqm().energies((patterns(objective), range(objective.num_bits)))


@settings(deadline=None, max_examples=40)
@given(COUNTS, st.booleans())
def test_models_have_the_energy_of_the_definition(drawing: tuple[list[int], int, int], feeds: bool) -> None:
    objective = drawn(*drawing, feeds=feeds)
    bqm, problem = objective.to_bqm(), published.to_problem(objective)
    rng = np.random.default_rng(drawing[2])
    for _ in range(8):
        assignment = rng.integers(problem.group_sizes)
        bits = published.bits_of_assignment(objective, assignment)
        energy = objective.energy(bits)
        assert bqm.energy(bits) == pytest.approx(energy, abs=1e-9)
        assert problem.energy(assignment) == pytest.approx(energy, abs=1e-9)
        terms = objective.terms(dict(enumerate(bits.tolist())))
        assert energy == pytest.approx(terms.pruning + objective.beta * terms.quantization
                                       - objective.gamma * terms.reduction)  # fmt: skip
        assert 0 <= terms.reduction <= 1


def test_the_terms_are_those_of_the_paper() -> None:
    """L_p, L_q and R by hand: two layers, the second one pruned to one filter of two bits."""
    layers = (
        FilterLayer("a", [1.0, 2.0], 4, published.squared_losses(0.5, 1)),
        FilterLayer("b", [3.0, 1.0, 2.0], 2, published.squared_losses(2.0, 1)),
    )
    objective = FiltersAndBits(layers, gamma=10.0, beta=3.0, most_bits=3)
    terms = objective.terms([0, 0, 0, 1, 1, 0, 1])
    assert terms == ((1.0 + 2.0) ** 2, (2.0 * 1) ** 2, 1 - (3 * 8 + 2 * 2) / (3 * 14))
    assert objective.widths([0, 0, 0, 1, 1, 0, 1]).tolist() == [3, 2]
    assert [row.tolist() for row in objective.pruned([0, 0, 0, 1, 1, 0, 1])] == [[False] * 2, [False, True, True]]
    assert objective.largest_clique == 4 and objective.num_bits == 7


@settings(deadline=None, max_examples=40)
@given(COUNTS)
def test_without_feeds_it_is_separable_and_sorting_is_exact(drawing: tuple[list[int], int, int]) -> None:
    objective = drawn(*drawing)
    starts, layers = objective.starts, len(objective.layers)
    places = [np.arange(starts[n], starts[n + 1]).tolist() for n in range(layers)]
    codes = starts[-1] + np.arange(layers * objective.code_bits).reshape(layers, -1)
    home = {bit: n for n in range(layers) for bit in (*places[n], *codes[n].tolist())}
    bqm = objective.to_bqm()
    assert all(home[one] == home[other] for one, other in bqm.quadratic), "bits of two layers meet in a product"
    best = energies(objective).min()
    found = published.minimum(objective)
    assert objective.energy(found) == pytest.approx(best, abs=1e-9)
    problem = published.to_sorted_problem(objective)
    solution = qc.solve(problem, "exact")
    assert solution.status == "optimal" and solution.energy == pytest.approx(best, abs=1e-9)


def test_every_coupling_of_a_layer_is_there() -> None:
    """A layer is one clique: all its filters and the bits of its code."""
    layers = (FilterLayer("a", [0.1, 0.2, 0.3], 4, published.squared_losses(0.5, 3)),) * 2
    bqm = FiltersAndBits(layers, gamma=1.0).to_bqm()
    assert bqm.num_variables == 12 and bqm.num_interactions == 2 * (6 * 5 // 2)


def test_with_feeds_it_is_not_separable() -> None:
    """No sum of one function per layer equals H: a second difference across two layers is not zero."""
    layers = tuple(FilterLayer(name, [0.3, 0.4], 4, [[0.01]]) for name in "ab")
    objective = FiltersAndBits(layers, gamma=1.0, most_bits=4, feeds=(Feed(0, 1, np.full((2, 2), 2)),))
    first, second = np.eye(6, dtype=int)[[0, 2]]
    crossed = (
        objective.energy(first + second) - objective.energy(first) - objective.energy(second)
        + objective.energy(0 * first)
    )  # fmt: skip
    assert crossed == pytest.approx(objective.price * objective.smallest_bits * 2) and crossed > 0
    assert not objective.separable
    with pytest.raises(UnsupportedProblem, match="not a sum over layers"):
        published.minimum(objective)


def test_sorting_each_layer_is_not_exact_with_feeds() -> None:
    """The minimum with feeds prunes a filter that is not the one of least score."""
    layers = (FilterLayer("a", [0.30, 0.31], 4, [[9.0]]), FilterLayer("b", [9.0, 9.0], 8, [[9.0]]))
    feed = Feed(0, 1, np.array([[0, 4], [0, 4]]))
    objective = FiltersAndBits(layers, gamma=1.0, most_bits=4, feeds=(feed,))
    best = patterns(objective)[np.argmin(energies(objective))]
    assert best[:2].tolist() == [0, 1]
    alone = published.minimum(FiltersAndBits(layers, gamma=1.0, most_bits=4))
    assert objective.energy(alone) > objective.energy(best) + 1e-3


@settings(deadline=None, max_examples=30)
@given(COUNTS)
def test_the_reduction_never_falls_with_gamma(drawing: tuple[list[int], int, int]) -> None:
    objective = drawn(*drawing)
    found = [published.minimum(objective.with_gamma(gamma)) for gamma in np.geomspace(1e-3, 1e3, 25)]
    reductions = [objective.terms(bits).reduction for bits in found]
    losses = [objective.loss(bits) for bits in found]
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(reductions))
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(losses))


@settings(deadline=None, max_examples=20)
@given(COUNTS)
def test_the_sorted_problem_is_exact_under_a_budget(drawing: tuple[list[int], int, int]) -> None:
    """Under a budget on stored bits, the optimum over all patterns is one of sorted filters."""
    objective = drawn(*drawing)
    size = [layer.filter_size for layer in objective.layers]

    stored = np.zeros(2**objective.num_bits, dtype=np.int64)
    codes = patterns(objective)[:, objective.starts[-1] :].reshape(len(stored), len(size), -1)
    for n, layer in enumerate(objective.layers):
        gone = patterns(objective)[:, objective.starts[n] : objective.starts[n + 1]].sum(axis=1)
        width = objective.most_bits - codes[:, n] @ (1 << np.arange(objective.code_bits))
        stored += width * (layer.weights - layer.filter_size * gone)
    everything = sum(objective.most_bits * layer.weights for layer in objective.layers)
    least = sum(objective.smallest_bits * layer.unprunable for layer in objective.layers)
    limit = (everything + least) // 2
    costs = [
        np.array([[(objective.most_bits - r) * (layer.weights - s * k) for r in range(2**objective.code_bits)]
                  for k in range(layer.filters + 1)])
        for layer, s in zip(objective.layers, size, strict=True)
    ]  # fmt: skip
    best = energies(objective)[stored <= limit].min()
    solution = qc.solve(published.to_sorted_problem(objective, costs, limit), "exact")
    assert solution.status == "optimal" and solution.energy == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": -1.0}, "gamma must be a finite number that is not negative"),
        ({"gamma": float("nan")}, "gamma must be"),
        ({"beta": -0.5}, "beta must be"),
        ({"beta": "1"}, "beta must be"),
        ({"most_bits": 1}, "most_bits must be a whole number"),
        ({"most_bits": 3}, "nothing would be left; give most_bits of at least 4"),
        ({"layers": ()}, "there are no layers"),
        ({"feeds": (Feed(0, 0, np.zeros((2, 2), int)),)}, "two different layers"),
        ({"feeds": (Feed(0, 3, np.zeros((2, 2), int)),)}, "two different layers"),
        ({"feeds": (Feed(0, 1, np.zeros((1, 2), int)),)}, "must have shape"),
        ({"feeds": (Feed(0, 1, np.full((2, 2), 9)),)}, "more weights than a filter"),
        ({"feeds": (Feed(0, 1, np.zeros((2, 2), int)), Feed(2, 1, np.zeros((2, 2), int)))}, "two producers"),
    ],
)
def test_wrong_settings_are_refused(changes: dict, message: str) -> None:
    layers = tuple(FilterLayer(name, [0.1, 0.2], 4, published.squared_losses(0.1, 2)) for name in "abc")
    values = {"layers": layers, "gamma": 1.0, "most_bits": 6, **changes}
    with pytest.raises(InvalidProblem, match=message):
        FiltersAndBits(**values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": [-0.1]}, "must not be negative"),
        ({"scores": [np.inf]}, "finite"),
        ({"scores": 0.1}, "along 1 axes"),
        ({"filter_size": 0}, "filter_size"),
        ({"scores": [], "unprunable": 0}, "no weights"),
        ({"unprunable": -1}, "unprunable"),
        ({"bit_losses": [[1.0, 2.0], [0.0, 1.0]]}, "symmetric"),
        ({"bit_losses": np.zeros((5, 5))}, "1 to 4 bits"),
    ],
)
def test_wrong_layers_are_refused(changes: dict, message: str) -> None:
    values = {"name": "conv", "scores": [0.1], "filter_size": 3, "bit_losses": [[1.0]], **changes}
    with pytest.raises(InvalidProblem, match=message):
        FilterLayer(**values)


def test_other_samples_are_refused() -> None:
    objective = FiltersAndBits((FilterLayer("a", [0.1], 4, [[0.1]]),), gamma=1.0)
    for wrong in ([0], [0, 2], [0, 1, 1], {0: 1}, {0: 1, 7: 0}):
        with pytest.raises(InvalidAssignment, match="has 2 bits"):
            objective.energy(wrong)
    with pytest.raises(InvalidProblem, match="one table per layer"):
        published.to_sorted_problem(objective, [np.zeros((2, 3), int)])
    with pytest.raises(InvalidProblem, match="whole numbers"):
        Feed(0, 1, np.array([[0.5]]))
