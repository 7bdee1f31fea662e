"""Low-rank choices: exactly low-rank weights come back, ranks follow the effective rank, more numbers are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress.calibration.statistics.input_moments import InputMoments, Moments
from qubo_compress.errors import CorruptArtifact, InvalidMenu
from qubo_compress.menu.low_rank.cp import Canonical
from qubo_compress.menu.low_rank.factors import LowRank, effective_rank, rank_grid
from qubo_compress.menu.low_rank.svd import Svd
from qubo_compress.menu.low_rank.tensor_train import TensorTrain
from qubo_compress.menu.low_rank.tucker import Tucker
from qubo_compress.menu.operator import choice_name, parse, stored_as
from qubo_compress.network.groups import Group, Member


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


def test_cp_and_trains_find_weights_of_their_ranks() -> None:
    factors = [_random(2, mode, seed=mode) for mode in (10, 8, 3, 4)]
    assert _error(Canonical(rank=2, bits=None, penalty=1e-8), torch.einsum("ro,ri,rx,ry->oixy", *factors)) < 1e-4
    cores = (_random(3, 8), _random(4, 3, 3, seed=1), _random(3, 4, 5, seed=2), _random(3, 10, seed=3))
    train = torch.einsum("ai,bax,cby,co->oixy", *cores)
    assert _error(TensorTrain(ranks=(3, 4, 3), bits=None), train) < 1e-5
    assert _error(TensorTrain(ranks=(2, 4, 3), bits=None), train) > 0.05


def test_more_ranks_are_no_worse() -> None:
    weight = _random(12, 10, 3, 3)
    for choices in (
        [TensorTrain(share=share, bits=None) for share in (0.2, 0.4, 0.6)],
        [Canonical(rank=rank, bits=None) for rank in (2, 8, 24)],
    ):
        errors = [_error(choice, weight) for choice in choices]
        assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0]


def test_a_penalty_keeps_components_from_cancelling() -> None:
    """Near a tensor that components of rank 2 reach only by growing and cancelling (de Silva and Lim, 2008)."""
    a, b = torch.eye(4)[0], torch.eye(4)[1]
    border = sum(torch.einsum("o,i,x->oix", *triple) for triple in ((b, a, a), (a, b, a), (a, a, b)))
    weight = border + 0.02 * _random(4, 4, 4)

    def sizes_and_error(penalty: float) -> tuple[float, float]:
        choice = Canonical(rank=2, bits=None, penalty=penalty, iterations=300)
        inputs, kernel, outputs = choice.encode(_group(weight), [weight]).parameters()
        components = inputs.norm(dim=1) * kernel.norm(dim=1) * outputs.norm(dim=1)
        return float(components.sum() / weight.norm()), _error(choice, weight)

    free, penalised = sizes_and_error(1e-8), sizes_and_error(1e-3)
    assert penalised[0] < 0.7 * free[0]
    assert free[1] <= penalised[1] < free[1] + 0.02


def _moments(columns: int, blocks: int = 1, rows: int = 12) -> Moments:
    """Inputs of very unequal directions."""
    found = []
    for seed in range(blocks):
        mixing = _random(columns, columns, seed=seed).double() * torch.logspace(0, -2, columns, dtype=torch.float64)
        inputs = _random(6 * columns, columns, seed=seed + 100).double() @ mixing.T
        found.append(inputs.T @ inputs / len(inputs))
    return Moments(tuple(found), 0, rows)


def _output_error(weight: torch.Tensor, stored: torch.Tensor, moments: Moments) -> float:
    """Damped as the operator does it."""
    apart = (stored - weight).double().flatten(1)
    spans = moments.spans(len(weight))
    return sum(float(((e := apart[a:b]) @ moments.damped(block, 0.01) * e).sum()) for block, a, b in spans)


PAIRS = [
    (Svd(rank=4), (12, 20)),
    (Svd(rank=4, bits=None), (12, 20)),
    (Svd(rank=4), (12, 6, 3, 3)),
    (Tucker(ranks=(5, 4)), (12, 8, 3, 3)),
    (Canonical(rank=8), (12, 8, 3, 3)),
    (TensorTrain(ranks=(4, 5, 5)), (12, 8, 3, 3)),
]


@pytest.mark.parametrize(("operator", "shape"), PAIRS, ids=lambda value: str(value))
@pytest.mark.parametrize("blocks", [1, 2])
def test_whitened_factors_lower_the_output_error(operator: LowRank, shape: tuple[int, ...], blocks: int) -> None:
    weight = _random(*shape)
    moments = _moments(weight[0].numel(), blocks)
    plain = operator.encode(_group(weight), [weight])
    whitened = replace(operator, whitened=True)
    with pytest.raises(InvalidMenu, match="calibration data"):
        whitened.encode(_group(weight), [weight])
    fitted = whitened.encode_with(_group(weight), [weight], {InputMoments(): (moments,)})
    assert fitted.nbytes == plain.nbytes
    errors = [_output_error(weight, packed.tensors()[0], moments) for packed in (plain, fitted)]
    assert errors[1] < 0.8 * errors[0]


def test_whitened_svd_is_the_best_of_its_rank() -> None:
    weight, moments = _random(12, 20), _moments(20)
    stored = Svd(rank=4, bits=None, whitened=True).encode_with(_group(weight), [weight], {InputMoments(): (moments,)})
    root = torch.linalg.cholesky(moments.damped(0, 0.01))
    best = float((torch.linalg.svdvals(weight.double() @ root)[4:] ** 2).sum())
    assert _output_error(weight, stored.tensors()[0], moments) == pytest.approx(best, rel=1e-4)


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
    assert "no kernel" in str(Canonical(rank=2).refusal(_group(weight[..., :1, :1]), [weight[..., :1, :1]]))
    assert "tucker" in str(TensorTrain(share=0.4).refusal(_group(weight[..., 0]), [weight[..., 0]]))
    assert "3 ranks" in str(TensorTrain(ranks=(2, 2)).refusal(_group(weight), [weight]))
    assert "unfoldings" in str(TensorTrain(ranks=(2, 7, 2)).refusal(_group(weight), [weight]))
    embedding = Group("w", "weight", _group(weight[..., 0, 0]).members, "Embedding")
    assert "picks rows" in str(Svd(rank=1, whitened=True).refusal(embedding, [weight[..., 0, 0]]))
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


@pytest.mark.parametrize(
    "operator", [Svd(rank=3), Tucker(ranks=(4, 3)), Canonical(rank=6), TensorTrain(ranks=(3, 4, 4))], ids=choice_name
)
def test_projection_comes_nearer_to_other_values(operator: LowRank) -> None:
    weight = _random(8, 6, 3, 3)
    packed = operator.encode(_group(weight), [weight])
    other = weight + 0.3 * _random(8, 6, 3, 3, seed=5)
    before, after = packed.tensors()[0], packed.project([other], refit=True).tensors()[0]
    assert float((after - other).norm()) < float((before - other).norm())


def test_names_read_back() -> None:
    for operator in (Svd(share=0.4), Tucker(ranks=(4, 3), bits=None), Canonical(rank=2), TensorTrain(ranks=(2, 3, 2))):
        assert parse(choice_name(operator)) == operator


@pytest.mark.parametrize("rank", [0, 9, 65535])
@pytest.mark.parametrize("bits", [None, 8])
def test_ranks_that_cannot_have_been_stored_are_refused(rank: int, bits: int | None) -> None:
    weight = _random(12, 10)
    payload = bytearray(Svd(rank=2, bits=bits).encode(_group(weight), [weight]).to_bytes())
    payload[:2] = rank.to_bytes(2, "little")
    with pytest.raises(CorruptArtifact):
        stored_as(choice_name(Svd(rank=2, bits=bits)), _group(weight), [weight], bytes(payload))


def test_effective_ranks_are_remembered_by_what_the_weight_holds() -> None:
    weight = _random(6, 8)
    first = effective_rank(weight)
    weight[:] = torch.ones(6, 8)
    assert effective_rank(weight) == pytest.approx(1.0, abs=1e-6) != first
    assert effective_rank(_random(6, 8)) == first
