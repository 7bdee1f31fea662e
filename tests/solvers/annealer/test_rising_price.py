"""The annealer's run with rising prices: many groups whose couplings act together, as filters of a network."""

import numpy as np
import pytest

import qubo_compress as qc
from qubo_compress.solvers.annealer.jobs import prices_rise
from qubo_compress.solvers.annealer.rising_price import FIRST_CHANGING, FIRST_SHARE, RisingPrice
from qubo_compress.solvers.annealer.tables import make_tables

BITS = np.array([2, 3, 4, 6, 8, 32])


def filters(groups=240, rank=48, budgets=1, seed=0):
    """Rounding errors of filters: the more bits, the smaller, along directions that many filters share."""
    rng = np.random.default_rng(seed)
    size = rng.integers(20, 200, groups)
    errors = np.where(BITS < 32, 2.0 ** -BITS.astype(float), 0.0)
    directions = rng.normal(size=(groups, BITS.size, rank)) + 0.3 * rng.normal(size=(groups, 1, rank))
    factor = (errors[None, :, None] * directions * (10.0 / size)[:, None, None]).reshape(-1, rank)
    bytes_of = (size[:, None] * BITS).reshape(1, -1)
    costs = np.concatenate([bytes_of, (bytes_of % 97)])[:budgets]
    limits = [int(0.12 * (size * 32).sum()), int(costs[-1].sum() // 12)][:budgets]
    linear = 0.5 * (factor**2).sum(axis=1)
    offsets = BITS.size * np.arange(groups + 1)
    return qc.ChoiceProblem(linear=linear, group_offsets=offsets, costs=costs, limits=limits, factor=factor)


@pytest.mark.parametrize("budgets", [1, 2])
def test_what_it_finds_is_feasible_and_its_energies_are_true(budgets):
    problem = filters(budgets=budgets)
    tables = make_tables(problem)
    assert prices_rise(tables)
    result = RisingPrice(tables, 50, np.random.default_rng(1)).run(lambda seconds: True, 50)
    assert result.complete
    assert result.found
    for energy, chosen in result.found:
        assignment = chosen - problem.group_offsets[:-1]
        assert problem.is_feasible(assignment)
        assert energy == pytest.approx(problem.energy(assignment), rel=1e-3)


def test_it_repeats_and_stops_where_it_is_told():
    tables = make_tables(filters())
    first, again = (RisingPrice(tables, 40, np.random.default_rng(3)).run(lambda seconds: True, 40) for _ in range(2))
    assert [entry[0] for entry in first.found] == [entry[0] for entry in again.found]
    cut = RisingPrice(tables, 40, np.random.default_rng(3)).run(lambda seconds: True, 7)
    assert (cut.sweeps, cut.complete) == (7, False)
    refused = RisingPrice(tables, 40, np.random.default_rng(3)).run(lambda seconds: False, 40)
    assert refused.sweeps == 0


@pytest.mark.parametrize("seed", [0, 1])
def test_two_hundred_sweeps_beat_greedy(seed):
    problem = filters(seed=seed)
    run = RisingPrice(make_tables(problem), 200, np.random.default_rng(seed), FIRST_SHARE, FIRST_CHANGING)
    found = run.run(lambda seconds: True, 200).found
    assert found[0][0] < qc.solve(problem, "greedy", seed=seed).energy
