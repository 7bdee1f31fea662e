"""The published formulation on networks: energies, plans and their bytes, the search over gamma, services, refusals."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import dimod
import numpy as np
import pytest
import torch
from torch import nn

import qubo_compress as qc
from qubo_compress.encodings.published import minimum
from qubo_compress.errors import (
    InfeasibleBudget,
    InvalidAssignment,
    InvalidBudget,
    InvalidModel,
    InvalidOption,
    InvalidProblem,
    UnknownName,
    UnknownOption,
    UnsupportedProblem,
)
from qubo_compress.menu.quantize import Quantize
from qubo_compress.published import Formulation, filters_and_bits, plan_of_size
from qubo_compress.testing.loopback_leap import Chip, LoopbackLeap
from tests import zoo

IMAGES = torch.randn(12, 2, 6, 6, generator=torch.Generator().manual_seed(3))
TOKENS = torch.randint(7, (12, 5), generator=torch.Generator().manual_seed(3))
NETWORKS = {
    "grouped and depthwise": (zoo.Grouped, IMAGES),
    "transformer": (lambda: zoo.Encoder(True), TOKENS),
    "tied embedding": (zoo.TiedLanguage, TOKENS),
    "recurrent": (zoo.Recurrent, None),
    "transposed": (zoo.Upsampling, None),
    "three dimensions": (zoo.Volume, None),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name][0]().eval()


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(24, 3)).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_pattern_is_a_plan_of_exactly_its_bytes(name: str, tmp_path: Path) -> None:
    net, inputs = made(name), NETWORKS[name][1]
    bqm, decode = filters_and_bits(net, gamma=0.3)
    rng = np.random.default_rng(0)
    for share in (0.0, 0.4, 1.0):
        bits = (rng.random(bqm.num_variables) < share).astype(int)
        plan = decode(bits)
        small = plan.apply(net)
        assert qc.save(small, tmp_path / "net") == plan.bytes == decode.bytes(bits)
        assert (tmp_path / "net").stat().st_size == plan.bytes
        again = qc.load(tmp_path / "net", net)
        plan.save(tmp_path / "plan")
        assert qc.Plan.load(tmp_path / "plan").choices == plan.choices
        values = zip(small.state_dict().values(), again.state_dict().values(), strict=True)
        assert all(torch.equal(one, other) for one, other in values)
        if inputs is not None:
            assert torch.isfinite(small(inputs)).all()
    assert decode.smallest_bytes == plan.bytes
    pruned = {name for name, choice in plan.choices.items() if choice == "zero"}
    assert len(pruned) == decode.objective.starts[-1] and all("[" in name for name in pruned)


def test_energies_are_those_of_the_weights(net: nn.Module) -> None:
    """H computed here from the network alone, for random bits."""
    bqm, decode = filters_and_bits(net, 0.7, Formulation(beta=2.0))
    weights = {name: value.flatten(1) for name, value in net.state_dict().items() if value.ndim > 1}
    assert [layer.name for layer in decode.layers] == list(weights)
    total = sum(weight.numel() for weight in weights.values())
    rng = np.random.default_rng(1)
    for _ in range(5):
        bits = rng.integers(2, size=bqm.num_variables)
        gone, codes = np.split(bits, [8 + 6 + 3])
        pruning = coarse = left = 0.0
        start = 0
        for layer, weight in enumerate(weights.values()):
            pruned = torch.from_numpy(gone[start : start + len(weight)]).bool()
            start += len(weight)
            removed = int(codes[3 * layer : 3 * layer + 3] @ [1, 2, 4])
            pruning += float(weight.abs().mean(1)[pruned].sum()) ** 2
            member = decode.layers[layer].groups[0].members[0]
            group = qc.menu.Group("w", "weight", (qc.menu.Member("w", tuple(weight.shape), member.dtype),), "Linear")
            error = (Quantize(2).encode(group, [weight]).tensors()[0] - weight).abs().mean(1).sum()
            coarse += (float(error) * removed / 7) ** 2
            left += (9 - removed) * float((~pruned).sum()) * weight.shape[1]
        expected = pruning + 2.0 * coarse - 0.7 * (1 - left / (9 * total))
        assert bqm.energy(bits) == pytest.approx(expected, rel=1e-5)
        assert decode.objective.energy(bits) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("form", ["error", "fitted", "magnitude"])
def test_the_loss_of_coarse_weights_grows_with_removed_bits(net: nn.Module, form: str) -> None:
    """At beta = 1 all forms are near the measured errors at the smallest width."""
    _, decode = filters_and_bits(net, 0.0, Formulation(quantization=form))
    losses = []
    for code in itertools.product((0, 1), repeat=3):
        bits = np.zeros(decode.objective.num_bits, dtype=int)
        bits[decode.objective.starts[-1] :] = np.tile(code[::-1], 3)
        losses.append(decode.objective.terms(bits).quantization)
    assert losses[0] == 0 and losses[-1] == max(losses)
    if form != "fitted":
        assert all(b >= a for a, b in itertools.pairwise(losses))


def test_sensitivities_are_taken_by_name(net: nn.Module) -> None:
    given = {"0.weight": 0.1, "3.weight": np.float32(0.2), "6.weight": 0}
    _, decode = filters_and_bits(net, 0.0, Formulation(quantization=given, code_bits=2))
    assert decode.layers[1].numbers.bit_losses == pytest.approx(0.2**2 * np.array([[1, 2], [2, 4]]))


def sampling(bqm: dimod.BinaryQuadraticModel) -> dimod.SampleSet:
    from dwave.samplers import SimulatedAnnealingSampler

    return SimulatedAnnealingSampler().sample(bqm, num_reads=4, num_sweeps=200, seed=5)


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        ("sorting", {}),
        ("annealer", {"work_limit": 30}),
        ("simulated-annealing", {"work_limit": 200}),
        (sampling, {}),
    ],
)
def test_sizes_are_met_with_real_bytes(net: nn.Module, solver: object, options: dict) -> None:
    budget = qc.Budget(ratio=4)
    found = plan_of_size(net, budget, solver, steps=6, **options)
    again = plan_of_size(net, budget, solver, steps=6, **options)
    assert found.plan.choices == again.plan.choices and found.gammas == again.gammas
    assert found.limit == budget.limits(found.plan.original_bytes, found.plan.parameters)["bytes"]
    assert found.plan.bytes <= found.limit and found.filled == found.plan.bytes / found.limit
    objective = found.plans.objective
    assert objective.gamma == found.gamma and objective.energy(found.bits) == pytest.approx(found.energy)
    if solver == "sorting":
        sizes = [size for _, size in sorted(found.gammas)]
        assert all(b <= a for a, b in itertools.pairwise(sizes))
        assert np.array_equal(found.bits, minimum(objective))
        exact = qc.solve(found.plans.with_gamma(0.0).sorted_problem(found.limit), "exact")
        best = found.plans.sorted_bits(exact.assignment)
        assert found.plans.bytes(best) <= found.limit and objective.loss(best) <= found.loss + 1e-9
        assert exact.energy == pytest.approx(objective.loss(best))
    else:
        assert found.energy >= objective.energy(minimum(objective)) - 1e-9


def test_a_budget_of_everything_prunes_nothing(net: nn.Module) -> None:
    found = plan_of_size(net, qc.Budget(ratio=1))
    assert found.gamma == 0 and found.loss == 0 and "zero" not in found.plan.choices.values()
    assert found.plan.choices["1.weight"] == "fold(bits=16)" and found.plan.choices["0.bias"] == "cast(bits=16)"


def test_plans_are_recovered_and_audited(net: nn.Module) -> None:
    batches = [(IMAGES, torch.arange(12) % 3)]
    found = plan_of_size(net, qc.Budget(ratio=5), formulation=Formulation(beta=3.0))
    small = qc.recover(found.plan.apply(net), batches, net, epochs=1, progress=False)
    pruned = [name for name, choice in found.plan.choices.items() if choice == "zero"]
    assert pruned
    for name in pruned:
        weight, _, row = name[:-1].partition("[")
        assert not small.get_parameter(weight)[int(row)].any()
    assert qc.audit(net, small, batches).examples == 12


def test_layers_can_be_left_out(net: nn.Module) -> None:
    _, decode = filters_and_bits(net, 0.1, Formulation(layers="^3", vector_bits=None))
    assert [layer.name for layer in decode.layers] == ["3.weight"]
    assert set(decode.others.values()) == {"keep"}
    plan = decode(np.ones(decode.objective.num_bits, dtype=int))
    assert plan.choices["0.weight[0]"] == "keep" and plan.choices["3.weight[0]"] == "zero"


def test_feeds_count_weights_that_read_pruned_filters() -> None:
    net = made("grouped and depthwise")
    pairs = (
        ("stem.weight", "grouped.weight"),
        ("grouped.weight", "depthwise.weight"),
        ("depthwise.weight", "head.weight"),
    )
    bqm, decode = filters_and_bits(net, 1.0, Formulation(feeds=pairs))
    objective = decode.objective
    grouped, depthwise, head = (feed.weights for feed in objective.feeds)
    assert grouped.tolist() == [[9, 9, 0, 0]] * 3 + [[0, 0, 9, 9]] * 3
    assert depthwise.tolist() == (9 * np.eye(6, dtype=int)).tolist()
    assert head.tolist() == [[4] * 6] * 3
    bits = np.random.default_rng(0).integers(2, size=bqm.num_variables)
    assert bqm.energy(bits) == pytest.approx(objective.energy(bits))
    assert not objective.separable
    with pytest.raises(UnsupportedProblem, match="sorting is not exact"):
        plan_of_size(net, qc.Budget(ratio=3), formulation=Formulation(feeds=pairs))
    found = plan_of_size(net, qc.Budget(ratio=3), "annealer", Formulation(feeds=pairs), steps=3, work_limit=20)
    assert found.plan.bytes <= found.limit


@pytest.fixture(scope="module")
def service() -> Iterator[LoopbackLeap]:
    with LoopbackLeap(chips=[Chip("zephyr", 4)], eager=True) as running, running.environment():
        yield running


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3)).eval()


def test_the_model_is_sampled_by_leap_and_by_a_chip(service: LoopbackLeap) -> None:
    """The model itself, without our solvers: 11 filters and two codes, two cliques of 9 and 8 bits."""
    from dwave.system import DWaveCliqueSampler, LeapHybridSampler

    bqm, decode = filters_and_bits(tiny(), gamma=0.05)
    best = bqm.energy(minimum(decode.objective))
    assert decode.objective.largest_clique == 9 and bqm.num_variables == 17
    with LeapHybridSampler() as hybrid:
        found = hybrid.sample(bqm, time_limit=1)
    assert found.first.energy == pytest.approx(best)
    with DWaveCliqueSampler() as chip:
        read = chip.sample(bqm, num_reads=50)
    assert read.first.energy <= bqm.energy(np.zeros(17)) and decode(read).bytes > 0


@pytest.mark.parametrize("solver", ["leap-bqm", "qpu"])
def test_our_paths_to_the_services_take_it(service: LoopbackLeap, solver: str) -> None:
    from qubo_compress.encodings.published import bits_of_assignment, to_problem

    _, decode = filters_and_bits(tiny(), gamma=0.05, formulation=Formulation(code_bits=2, most_bits=6))
    options = {"cache": None, "submissions": 1} if solver == "qpu" else {}
    solution = qc.solve(to_problem(decode.objective), solver, time_limit=20.0, **options)
    bits = bits_of_assignment(decode.objective, solution.assignment)
    assert solution.energy == pytest.approx(decode.objective.energy(bits))
    assert decode(bits).apply(tiny())(torch.zeros(1, 1, 6, 6)).shape == (1, 5, 2, 2)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"beta": -1.0}, InvalidOption, "beta must be"),
        ({"beta": float("nan")}, InvalidOption, "beta must be"),
        ({"most_bits": 8}, InvalidOption, "offer 1 to 8 bits; files store 2 to 16"),
        ({"most_bits": 17}, InvalidOption, "files store 2 to 16"),
        ({"most_bits": 9.0}, InvalidOption, "most_bits must be a whole number"),
        ({"code_bits": 0}, InvalidOption, "code_bits must be a whole number"),
        ({"code_bits": 4, "most_bits": 16}, InvalidOption, "offer 1 to 16 bits"),
        ({"quantization": "fit"}, UnknownName, "did you mean 'fitted'"),
        ({"quantization": 3}, InvalidOption, "quantization must be one of"),
        ({"quantization": {"0.weight": -1.0}}, InvalidOption, "must be a number that is not negative"),
        ({"layers": "("}, InvalidOption, "regular expression"),
        ({"feeds": ("0.weight",)}, InvalidOption, "pairs of weights' names"),
        ({"vector_bits": 4}, InvalidOption, "vector_bits must be"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Formulation(**settings)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"layers": "conv"}, InvalidOption, "matches no weight; there are 0.weight"),
        ({"quantization": {"0.weight": 1.0}}, InvalidOption, "lacks a sensitivity for '3.weight'"),
        ({"quantization": {"0.weight": 1, "3.weight": 1, "6.weight": 1, "7.weight": 1}}, UnknownName, "'6.weight'"),
        ({"feeds": (("0.weight", "4.weight"),)}, UnknownName, "layer '4.weight'"),
        ({"feeds": (("0.weight", "6.weight"),), "layers": "^[03]"}, UnknownName, "layer '6.weight'"),
        ({"feeds": (("3.weight", "0.weight"),)}, InvalidOption, "does not read the 6 filters"),
    ],
)
def test_names_that_do_not_fit_the_network_are_refused(
    net: nn.Module, settings: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        filters_and_bits(net, 0.1, Formulation(**settings))


def test_what_cannot_be_done_is_refused(net: nn.Module) -> None:
    with pytest.raises(InvalidProblem, match="gamma must be"):
        filters_and_bits(net, -1.0)
    with pytest.raises(InvalidModel, match="no weight"):
        filters_and_bits(nn.Sequential(nn.BatchNorm2d(3)), 1.0)
    spoilt = nn.Linear(2, 2)
    spoilt.weight.data[0, 0] = float("nan")
    with pytest.raises(InvalidModel, match="not finite"):
        filters_and_bits(spoilt, 1.0)
    with pytest.raises(InfeasibleBudget, match=r"the smallest plan .* takes"):
        plan_of_size(net, qc.Budget(bytes=300))
    with pytest.raises(InvalidBudget, match="knows bytes only; got limits on bytes, macs"):
        plan_of_size(net, qc.Budget(ratio=4, macs=100))
    with pytest.raises(InvalidBudget, match="a budget is a qc.Budget"):
        plan_of_size(net, 4)
    for solver, message in ((7, "solver must be"), ("sorted", "sorted")):
        with pytest.raises((InvalidOption, UnknownName), match=message):
            plan_of_size(net, qc.Budget(ratio=4), solver)
    for options in ({"steps": 0}, {"start": -1.0}, {"start": float("inf")}):
        with pytest.raises(InvalidOption, match="must be a"):
            plan_of_size(net, qc.Budget(ratio=4), **options)
    with pytest.raises(UnknownOption, match="did you mean 'seed'"):
        plan_of_size(net, qc.Budget(ratio=4), "greedy", sed=1)
    _, decode = filters_and_bits(net, 1.0)
    with pytest.raises(InvalidAssignment, match="has 26 bits"):
        decode([0, 1])
    with pytest.raises(InvalidAssignment, match="empty"):
        decode(dimod.SampleSet.from_samples([], "BINARY", energy=[]))
