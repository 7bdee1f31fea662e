"""Damping and optimism that one half of the examples gives for choices made with the other half."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.calibration.examples import read_examples
from qubo_compress.calibration.statistics import damping
from qubo_compress.calibration.statistics.damping import LEAST_DAMPING, least_costly, validated
from qubo_compress.calibration.statistics.input_moments import InputMoments, Moments, alternate, parted
from qubo_compress.menu.operator import parse
from tests.calibration.statistics.test_input_moments import calibration

SIZE = 24


def drawn(count: int, seed: int) -> Tensor:
    """(count, SIZE) inputs that go together, as those of a layer do."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64) / SIZE**0.5
    mixing += torch.randn(SIZE, 1, generator=generator, dtype=torch.float64)
    return torch.randn(count, SIZE, generator=generator, dtype=torch.float64) @ mixing.T


def halved(inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Moments of every second input, and of all."""
    return [inputs[::2].T @ inputs[::2]], [inputs.T @ inputs]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_few_inputs_call_for_more_damping_and_more_doubt(seed: int) -> None:
    few, many = (validated(*halved(drawn(count, seed)), LEAST_DAMPING) for count in (SIZE // 2, 200 * SIZE))
    assert few.damping >= many.damping >= LEAST_DAMPING  # of 1,000 seeds, 28 find them equal
    assert few.optimism > many.optimism >= 1.0 and many.optimism < 1.1


def test_errors_cost_as_much_more_on_other_inputs_as_the_optimism_says() -> None:
    """Choices made with half of the inputs, judged on thousands of others."""
    weights = torch.randn(40, SIZE, generator=torch.Generator().manual_seed(1)).double()
    inputs, truth = drawn(2_000, 3), drawn(40_000, 3)[20_000:]
    few = inputs[:32]
    found = validated(*halved(few), LEAST_DAMPING)
    group = qc.measure(nn.Linear(SIZE, 40), [truth[:4].float()], metric="magnitude", progress=False).layout.groups[0]
    shares = []
    for half in (few[::2], few[1::2]):
        moments = Moments((half.T @ half / len(half),), 0, 40)
        operator = parse(f"trellis(step=0.5,rate=0.0,damping={2 * found.damping})")
        stored = operator.encode_with(group, [weights.float()], {InputMoments(): (moments,)}).tensors()[0].double()
        apart = stored - weights
        seen, unseen = ((apart @ of.T).square().mean() for of in (half, truth))
        shares.append(float(unseen / seen))
    assert sum(shares) / 2 == pytest.approx(found.optimism, rel=0.5)
    assert found.optimism > 1.3


@pytest.mark.parametrize("name", ["trellis(step=1.0)", "lattice(step=1.0)", "compensate(bits=3)"])
def test_more_damping_than_the_least_costs_less_on_other_inputs(name: str) -> None:
    group = qc.measure(nn.Linear(SIZE, 40), [torch.ones(4, SIZE)], metric="magnitude", progress=False).layout.groups[0]
    shares = []
    for seed in range(4):
        weights = torch.randn(40, SIZE, generator=torch.Generator().manual_seed(seed)).double()
        few, truth = drawn(2_000, seed)[:12], drawn(40_000, seed)[20_000:]
        errors = []
        for halves in ((), (few[::2].T @ few[::2] / len(few),)):
            moments = Moments((few.T @ few / len(few),), 0, 40, halves=halves)
            stored = parse(name).encode_with(group, [weights.float()], {InputMoments(): (moments,)})
            errors.append(float(((stored.tensors()[0].double() - weights) @ truth.T).square().mean()))
        shares.append(errors[1] / errors[0])
    assert sum(shares) / len(shares) < 0.95


def test_inputs_that_cannot_be_told_apart_change_nothing() -> None:
    whole = drawn(50, 0)
    moments = whole.T @ whole
    for halves in ([], [torch.zeros_like(moments)], [moments], [torch.full_like(moments, torch.nan)]):
        blocks = [moments] if not halves or torch.isfinite(halves[0]).all() else [halves[0]]
        found = validated(halves, blocks, 0.02)
        assert (found.damping, found.optimism) == (0.02, 1.0)


def test_dead_blocks_are_left_out() -> None:
    """Of depthwise layers: a channel without inputs does not hide what the others say."""
    half, whole = halved(drawn(8, 2))
    nothing = torch.zeros_like(half[0])
    assert validated([*half, nothing], [*whole, nothing], LEAST_DAMPING) == validated(half, whole, LEAST_DAMPING)


def test_halves_are_those_of_every_second_example() -> None:
    torch.manual_seed(0)
    net, inputs = (
        nn.Sequential(nn.Conv2d(3, 4, 3, groups=1), nn.Flatten(), nn.Linear(4 * 4, 2)),
        torch.randn(10, 3, 4, 4),
    )
    data = calibration(net, inputs)
    group = next(found for found in qc.measure(net, [inputs], metric="magnitude", progress=False).layout.groups
                 if found.name == "2.weight")  # fmt: skip
    (found,) = InputMoments().collect(data, group)
    rows = net[:2](inputs).detach().double()
    assert torch.allclose(found.blocks[0], rows.T @ rows / 10) and len(found.halves) == 1
    assert torch.allclose(found.halves[0], rows[::2].T @ rows[::2] / 10)
    assert [odd.tolist() for odd, _ in alternate(data.examples)] == [
        [number % 2 == 1 for number in range(first, last)] for first, last in ((0, 4), (4, 8), (8, 10))
    ]


def test_rows_without_an_example_count_as_one_half() -> None:
    odd = torch.tensor([False, True])
    assert [part.tolist() for part in parted(odd, 4)] == [[True, True, False, False], [False, False, True, True]]
    assert [part.tolist() for part in parted(odd, 3)] == [[True] * 3, [False] * 3]


def test_the_search_ends_where_the_cost_rises() -> None:
    tried: list[float] = []
    assert least_costly(lambda damping: tried.append(damping) or abs(damping - 0.1), 0.02) == 0.1
    assert tried == [0.02, 0.03, 0.1, 0.3]


def test_the_search_goes_on_past_dampings_that_are_too_little_to_factor() -> None:
    assert least_costly(lambda damping: float("inf") if damping < 0.1 else abs(damping - 0.3), 1e-9) == 0.3
    assert least_costly(lambda _: float("inf"), 1e-9) == 1e-9


def test_some_rows_tell_as_much_as_all(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = torch.randn(32, 400, generator=torch.Generator().manual_seed(4), dtype=torch.float64).relu()
    every = validated(*halved(inputs), LEAST_DAMPING)
    monkeypatch.setattr(damping, "ROWS", 256)
    some = validated(*halved(inputs), LEAST_DAMPING)
    assert some.damping == every.damping and some != every
    assert some.optimism == pytest.approx(every.optimism, rel=0.1)


def test_examples_without_weight_leave_no_half_empty() -> None:
    weights = torch.tensor([1.0, 0.0] * 5)
    given = read_examples([(torch.ones(5, 3), None, part) for part in weights.split(5)])
    odd = torch.cat([odd for odd, _ in alternate(given)])
    assert odd[::2].tolist() == [False, True, False, True, False]
