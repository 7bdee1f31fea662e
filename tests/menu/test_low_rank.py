"""Low-rank choices: exactly low-rank weights come back, ranks follow the effective rank, more numbers are refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.groups import Group, Member
from qubo_compress.menu.low_rank import LowRank, effective_rank, rank_grid
from qubo_compress.menu.operator import choice_name, parse
from qubo_compress.menu.svd import Svd
from qubo_compress.menu.tucker import Tucker


def _group(weight: torch.Tensor, rows: tuple[int, int] | None = None) -> Group:
    return Group("w", "weight", (Member("w", tuple(weight.shape), weight.dtype, rows),), "Conv2d")


def _error(operator: LowRank, weight: torch.Tensor) -> float:
    stored = operator.encode(_group(weight), [weight]).tensors()[0]
    return float((stored - weight).norm() / weight.norm())


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 1000))
def test_at_full_rank_nothing_is_displaced(rows: int, columns: int, seed: int) -> None:
    assert _error(Svd(rank=min(rows, columns), bits=None), _random(rows, columns, seed=seed)) < 1e-5
    assert _error(Tucker(ranks=(rows, columns), bits=None), _random(rows, columns, 3, seed=seed)) < 1e-5


def test_svd_is_the_best_of_its_rank() -> None:
    weight = _random(12, 30)
    values = torch.linalg.svdvals(weight.double())
    best = float((values[4:] ** 2).sum().sqrt() / values.norm())
    assert _error(Svd(rank=4, bits=None), weight) == pytest.approx(best, rel=1e-5)
    assert best <= _error(Svd(rank=4, bits=8), weight) < 1.01 * best


def test_tucker_finds_weights_of_its_ranks() -> None:
    weight = torch.einsum("oa,abxy,bi->oixy", _random(10, 3), _random(3, 2, 3, 3, seed=1), _random(2, 8, seed=2))
    assert _error(Tucker(ranks=(3, 2), bits=None), weight) < 1e-5
    assert _error(Tucker(ranks=(3, 2), bits=8), weight) < 0.02


def test_shares_follow_the_effective_rank() -> None:
    full, narrow = torch.eye(16), torch.outer(torch.arange(1.0, 17.0), torch.ones(16))
    assert effective_rank(full) == pytest.approx(16) and effective_rank(narrow) == pytest.approx(1)
    assert Svd(share=0.5).ranks_of(full) == (8,) and Svd(share=0.5).ranks_of(narrow) == (1,)
    grid = rank_grid(_random(32, 64))
    assert list(grid) == sorted(set(grid)) and grid[0] >= 1 and grid[-1] <= 32


def test_what_makes_no_sense_is_refused_with_a_reason() -> None:
    weight, depthwise = _random(8, 8, 3, 3), _random(8, 1, 3, 3)
    assert "numbers" in str(Svd(rank=8).refusal(_group(weight), [weight]))
    assert "full rank" in str(Svd(rank=9).refusal(_group(weight), [weight]))
    assert "filters" in str(Svd(rank=1).refusal(_group(weight, (2, 3)), [weight[2:3]]))
    assert "one input channel" in str(Tucker(ranks=(2, 1)).refusal(_group(depthwise), [depthwise]))
    assert "no kernel" in str(Tucker(ranks=(2, 2)).refusal(_group(weight[..., :1, :1]), [weight[..., :1, :1]]))


@pytest.mark.parametrize("wrong", [{}, {"rank": 2, "share": 0.5}, {"rank": 0}, {"share": -1.0}, {"rank": 2, "bits": 1}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidMenu):
        Svd(**wrong)  # type: ignore[arg-type]


def test_training_moves_the_factors() -> None:
    weight = _random(8, 20)
    packed = Svd(rank=3).encode(_group(weight), [weight])
    numbers = [n.requires_grad_() for n in packed.parameters()]
    packed.assemble(numbers)[0].sum().backward()
    assert all(n.grad is not None and bool((n.grad != 0).any()) for n in numbers)


@pytest.mark.parametrize("operator", [Svd(rank=3), Tucker(ranks=(4, 3))], ids=choice_name)
def test_projection_comes_nearer_to_other_values(operator: LowRank) -> None:
    weight = _random(8, 6, 3, 3)
    packed = operator.encode(_group(weight), [weight])
    other = weight + 0.3 * _random(8, 6, 3, 3, seed=5)
    before, after = packed.tensors()[0], packed.project([other], refit=True).tensors()[0]
    assert float((after - other).norm()) < float((before - other).norm())


def test_names_read_back() -> None:
    for operator in (Svd(share=0.4), Tucker(ranks=(4, 3), bits=None)):
        assert parse(choice_name(operator)) == operator
