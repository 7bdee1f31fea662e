"""The expected loss of random errors: exact where it can be worked out, and right on a trained network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import qubo_compress as qc
from benchmarks.networks import load
from qubo_compress.calibration.evaluation import outputs_of, score, score_examples
from qubo_compress.calibration.examples import read_examples
from qubo_compress.calibration.statistics import Calibration
from qubo_compress.calibration.statistics.curvature import Curvature
from qubo_compress.menu.operator import parse
from qubo_compress.menu.unreliable.analog import Analog
from qubo_compress.network.discovery import discover
from qubo_compress.network.losses.classification import make_loss, rows_of
from qubo_compress.sensitivity.noise import priced_in_cells

NAMES = (
    "analog",
    "analog(cells=2.5,redundancy='curvature')",
    "digital(bits=6,copies=(0, 0, 1, 1, 1, 1))",
    "quantize(bits=6)",
)
IMAGES = 200


def _calibration(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> Calibration:
    examples = read_examples([(inputs, targets)], len(inputs))
    return Calibration(model, examples, make_loss("cross-entropy"), lambda x: rows_of(model(x)), 0)


METHODS = ((Curvature(method="signs", chunk=2, draws=300), 0.05), (Curvature(), 1e-3))


@pytest.mark.parametrize(("statistic", "tolerance"), METHODS)
def test_the_curvature_of_a_linear_network_is_the_closed_form(statistic: Curvature, tolerance: float) -> None:
    torch.manual_seed(0)
    model, inputs = nn.Linear(5, 3).eval(), torch.randn(40, 5)
    calibration = _calibration(model, inputs, torch.randint(3, (40,)))
    group = discover(model).groups[0]
    share = model(inputs).softmax(-1).detach()
    exact = torch.einsum("nc,ni->ci", share * (1 - share), inputs**2) / 40
    found = statistic.collect(calibration, group)[0]
    assert float((found - exact).norm() / exact.norm()) < tolerance


def test_tied_weights_and_filters_have_the_curvature_of_all_their_uses() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.Tanh(), layer).eval()
    inputs = torch.randn(30, 4)
    calibration = _calibration(model, inputs, torch.randint(4, (30,)))
    whole = Curvature().collect(calibration, discover(model).groups[0])[0]
    rows = [Curvature().collect(calibration, g)[0] for g in discover(model, "filter").groups if g.kind == "weight"]
    assert torch.equal(torch.cat(rows), whole) and bool((whole > 0).any())
    jacobian = torch.func.vmap(
        torch.func.jacrev(lambda w, x: torch.tanh(x @ w.T + layer.bias) @ w.T + layer.bias), in_dims=(None, 0)
    )(layer.weight.detach(), inputs)
    share = model(inputs).softmax(-1).detach()
    jacobian = jacobian.detach()
    hessian = torch.diag_embed(share) - share[:, :, None] * share[:, None, :]
    exact = torch.einsum("ncij,ncd,ndij->ij", jacobian, hessian, jacobian) / 30
    assert float((whole - exact).norm() / exact.norm()) < 1e-3
    found = Curvature(method="signs", draws=300).collect(calibration, discover(model).groups[0])[0]
    assert float((found - exact).norm() / exact.norm()) < 0.08


def test_the_curvature_counts_examples_by_their_weights_and_only_those_asked_for() -> None:
    torch.manual_seed(0)
    model, inputs, targets = nn.Linear(5, 3).eval(), torch.randn(30, 5), torch.randint(3, (30,))
    weights = torch.rand(30)
    batches = [(inputs[:11], targets[:11], weights[:11]), (inputs[11:], targets[11:], weights[11:])]
    examples = read_examples(batches, 30, batch_size=7)
    calibration = Calibration(model, examples, make_loss("cross-entropy"), lambda x: rows_of(model(x)), 0)
    share, group = model(inputs).softmax(-1).detach(), discover(model).groups[0]
    for count in (30, 17):
        used = weights[:count] / weights[:count].sum()
        exact = torch.einsum("n,nc,ni->ci", used, (share * (1 - share))[:count], inputs[:count] ** 2)
        found = Curvature(examples=count).collect(calibration, group)[0]
        assert float((found - exact).norm() / exact.norm()) < 2e-3


def test_many_outputs_or_rows_take_signs_and_an_unknown_method_is_refused() -> None:
    torch.manual_seed(0)
    for model, inputs in ((nn.Linear(5, 20), torch.randn(8, 5)), (nn.Conv2d(2, 3, 1), torch.randn(8, 2, 3, 3))):
        rows = rows_of(model(inputs)).shape[0]
        calibration = _calibration(
            model.eval(), inputs, torch.zeros(8, 3, 3).long() if rows > 8 else torch.zeros(8).long()
        )
        group = discover(model).groups[0]
        found = [Curvature(method=m).collect(calibration, group)[0] for m in ("auto", "signs", "exact")]
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[0], found[2])
        assert 0.5 < float(found[0].sum() / found[2].sum()) < 2
    with pytest.raises(qc.errors.InvalidMenu, match="auto, exact, signs"):
        Curvature(method="guess")


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, list, qc.SensitivityTable]:
    """A network that is not sure of itself: where every output is saturated, no second order predicts anything."""
    network = load("digits")
    with torch.no_grad():
        list(network.model.parameters())[-2].mul_(0.2)
        list(network.model.parameters())[-1].mul_(0.2)
    batches = [tuple(torch.cat(tensors)[:IMAGES] for tensors in zip(*network.calibration, strict=True))]
    menu = qc.Menu([parse(name) for name in NAMES])
    return network.model, batches, qc.measure(network.model, batches, menu=menu, loss="kl", progress=False)


def _everywhere(table: qc.SensitivityTable, name: str) -> qc.Plan:
    return table.plan({g: name for g, choices in zip(table.group_names, table.choices, strict=True) if name in choices})


@pytest.mark.parametrize("name", NAMES[:3])
def test_predicted_and_monte_carlo_loss_agree(digits: tuple, name: str) -> None:
    model, batches, table = digits
    plan = _everywhere(table, name)
    small = plan.apply(model)
    examples = read_examples(batches, IMAGES)
    reference = outputs_of(model, examples)
    nets = (qc.read_unreliably(small, seed) for seed in range(60))
    losses = np.array([score_examples(net, examples, "kl", reference).loss for net in nets])
    error = losses.std() / len(losses) ** 0.5
    assert error < 0.15 * losses.mean()
    assert abs(plan.predicted_loss - losses.mean()) < 0.1 * losses.mean() + 3 * error, (
        plan.predicted_loss,
        losses.mean(),
    )


def test_noise_adds_to_what_the_mean_costs(digits: tuple) -> None:
    model, batches, table = digits
    quiet = qc.measure(model, batches, qc.Menu([Analog(noise=1e-4, bits=12)]), loss="kl", progress=False)
    for number, (group, names) in enumerate(zip(table.group_names, table.choices, strict=True)):
        if "analog" in names:
            loud = table.linear[table.offsets[number] + names.index("analog")]
            assert loud > quiet.linear[quiet.offsets[number] + 1], group


def test_under_the_magnitude_metric_noise_adds_its_squared_norm(digits: tuple) -> None:
    model, batches, _ = digits
    table = qc.measure(model, batches, qc.Menu([Analog()]), "magnitude", progress=False)
    group = table.layout.groups[0]
    weight = model.get_parameter(group.name).detach()
    packed = Analog().encode(group, [weight])
    wanted = float(packed.variances()[0].sum() + ((packed.tensors()[0] - weight) ** 2).sum())
    assert np.isclose(table.linear[1], wanted, rtol=1e-4)


def test_reliable_choices_are_priced_in_cells_of_the_same_memory(digits: tuple) -> None:
    _, _, table = digits
    channel = qc.channels.analog_channel("pcm")
    priced = priced_in_cells(table, channel)
    names = [name for group in table.choices for name in group]
    for name, before, after, size in zip(
        names, table.costs["cells"], priced.costs["cells"], table.costs["bytes"], strict=True
    ):
        noisy = name.startswith(("analog", "digital"))
        assert after == (before if noisy else np.ceil(8 * size * channel.cells_per_reliable_bit)), name
    limit = int(0.8 * (priced.costs["cells"][priced.offsets[:-1]].sum() + priced.fixed_costs["cells"]))
    solution = qc.solve(priced.problem(qc.Budget(ratio=0.1, cells=limit)), "greedy")
    chosen = priced.offsets[:-1] + priced.assignment(priced.plan(solution).choices)
    assert priced.fixed_costs["cells"] + priced.costs["cells"][chosen].sum() <= limit


def test_a_noisy_read_is_a_new_network_and_a_file_holds_the_mean(digits: tuple, tmp_path: Path) -> None:
    model, _, table = digits
    plan = _everywhere(table, NAMES[1])
    small = plan.apply(model)
    assert qc.save(small, tmp_path / "net.safetensors") == plan.bytes
    loaded = qc.load(tmp_path / "net.safetensors", model)
    for (key, mean), stored in zip(small.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(mean, stored), key
    first, again, other = (qc.read_unreliably(loaded, seed).state_dict() for seed in (0, 0, 1))
    changed = [key for key, value in small.state_dict().items() if not torch.equal(value, first[key])]
    assert (
        changed
        and all(torch.equal(first[k], again[k]) for k in first)
        and not torch.equal(first[changed[0]], other[changed[0]])
    )
    with pytest.raises(qc.errors.WrongModel):
        qc.save(qc.read_unreliably(small), tmp_path / "noisy.safetensors")


def test_noise_aware_fine_tuning_keeps_the_plan_and_helps_under_heavy_noise() -> None:
    network = load("digits")
    operator = Analog(noise=5.0)  # at lighter noise the gain is within that of the order of the examples
    table = qc.measure(network.model, network.calibration, qc.Menu([operator]), "magnitude", progress=False)
    name = qc.menu.choice_name(operator)
    small = _everywhere(table, name).apply(network.model)
    loss = {}
    for noise in (False, True):
        tuned = qc.recover(small, network.train, network.model, 8, noise=noise, progress=False)
        loss[noise] = np.mean([score(qc.read_unreliably(tuned, read), network.validation).loss for read in range(24)])
    assert loss[True] < loss[False]
    with pytest.raises(qc.errors.InvalidBudget, match="epochs"):
        qc.recover(small, network.calibration, network.model, noise=True)


def test_choices_differ_by_noise_in_their_names() -> None:
    assert qc.menu.choice_name(replace(Analog(), noise=2.0)) == "analog(noise=2.0)"
