"""Plans that remove channels: measured, solved, applied, saved, loaded, repaired and trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import qubo_compress as qc
from benchmarks.networks.architectures import ResNet20
from benchmarks.networks.attention import ByteGPT, VisionTransformer
from qubo_compress import errors
from qubo_compress.menu.unreliable.analog import Analog
from qubo_compress.network.channels import find_channels
from qubo_compress.network.channels.removal_file import removals_from, text_of
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.sensitivity import forecast
from qubo_compress.sensitivity.coupled.statistics import channel_moments
from qubo_compress.sensitivity.table import SensitivityTable
from tests.network.channels.test_channels import Separable, lively

EXAMPLES = 24


def network(name: str) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(3)
    net, inputs = {
        "residual": lambda: (ResNet20(blocks=1), torch.randn(EXAMPLES, 3, 8, 8)),
        "depthwise": lambda: (Separable(), torch.randn(EXAMPLES, 2, 6, 6)),
        "vit": lambda: (VisionTransformer(16, 1, 4, 14), torch.randn(EXAMPLES, 1, 28, 28)),
        "gpt": lambda: (ByteGPT(16, 1, 4, 8), torch.randint(0, 256, (EXAMPLES, 8))),
    }[name]()
    targets = inputs.roll(-1, 1) if name == "gpt" else torch.arange(EXAMPLES) % 3
    return lively(net), [(inputs, targets)]


NAMES = ("residual", "depthwise", "vit", "gpt")


def table_of(name: str) -> tuple[nn.Module, list[tuple[Tensor, Tensor]], SensitivityTable]:
    net, data = network(name)
    return net, data, qc.measure(net, data, groups="channel", progress=False)


@pytest.fixture(scope="module", params=NAMES)
def measured(request: pytest.FixtureRequest) -> tuple[nn.Module, list[tuple[Tensor, Tensor]], SensitivityTable]:
    return table_of(request.param)


def solved(table: SensitivityTable, share: float) -> qc.Solution:
    budget = qc.Budget(ratio=0.5, macs=int(share * table.provenance.multiplications))
    return qc.solve(table.problem(budget), "greedy", time_limit=2.0)


def test_from_measurement_to_file_and_back(measured, tmp_path: Path) -> None:
    net, data, table = measured
    solution = solved(table, 0.7)
    plan = table.plan(solution)
    assert "remove" in plan.choices.values()
    small = plan.apply(net)
    assert list(small.state_dict()) == list(net.state_dict())
    size = qc.save(small, tmp_path / "small.safetensors")
    assert size == plan.bytes == (tmp_path / "small.safetensors").stat().st_size
    total = dict(zip(("bytes", "macs"), table.problem(qc.Budget(ratio=0.5, macs=10**12)).totals(solution.assignment)))
    assert plan.bytes <= total["bytes"] <= plan.bytes + 600 + 40 * len(net.state_dict())
    again = qc.load(tmp_path / "small.safetensors", net)
    plan.save(tmp_path / "plan.json")
    twin = qc.Plan.load(tmp_path / "plan.json").apply(net)
    with torch.no_grad():
        outputs = small(data[0][0])
        assert torch.equal(again(data[0][0]), outputs) and torch.equal(twin(data[0][0]), outputs)
    recovered = qc.recover(small, data, teacher=net, epochs=1, progress=False)
    assert [p.shape for p in recovered.parameters()] == [p.shape for p in small.parameters()]
    assert qc.save(recovered, tmp_path / "recovered.safetensors") == size
    # The smaller network is compressed like any other, and its file says what it lacks.
    menu = qc.Menu(bits=(4,), sparsity=(0.0,), vector_bits=())
    both = qc.measure(recovered, data, menu=menu, progress=False).plan({})
    quantized = both.apply(recovered)
    assert qc.save(quantized, tmp_path / "both.safetensors") == both.bytes
    with torch.no_grad():
        loaded = qc.load(tmp_path / "both.safetensors", net)(data[0][0])
        torch.testing.assert_close(loaded, quantized(data[0][0]))


def test_prices_are_those_of_the_smaller_network(measured) -> None:
    net, data, table = measured
    choices, rng = table.removals, np.random.default_rng(0)
    assert choices is not None
    tensors = NetworkTensors(net)
    price = {name: tensor.element_size() for name, tensor in tensors.items()}
    found = choices.counts.priced(price)
    open_ = np.array([len(group) == 2 for group in table.choices])
    for _ in range(4):
        kept = ~open_ | (rng.random(len(open_)) < 0.6)
        gone = [number for number, block in enumerate(choices.blocks) if not kept[number] for number in block]
        small = choices.without(gone).model
        assert found.total(kept) == sum(t.numel() * t.element_size() for t in NetworkTensors(small).values())
    everything = found.total(np.ones(len(open_), dtype=bool))
    assert everything == table.layout.original_bytes


def test_multiplications_are_counted_as_on_the_smaller_network(measured) -> None:
    net, data, table = measured
    solution = solved(table, 0.8)
    small = table.plan(solution).apply(net)
    spent = table.problem(qc.Budget(ratio=0.5, macs=10**12)).totals(solution.assignment)[1]
    again = qc.measure(small, data, menu=qc.Menu([]), progress=False)
    assert spent == sum(again.costs["macs"]) + again.fixed_costs.get("macs", 0)
    assert spent <= 0.8 * table.provenance.multiplications


def test_rows_are_products_of_gradients_and_displacements() -> None:
    """One layer, by hand: removing an input leaves its mean in the bias, and the rows are J d exactly."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    inputs = torch.randn(40, 4)
    table = qc.measure(net, [inputs], loss="kl", groups="channel", progress=False, metric="products", interactions=1.0)
    with torch.no_grad():
        hidden, logits = net[:2](inputs), net(inputs)
    probabilities = logits.softmax(1)
    hessian = torch.diag_embed(probabilities) - probabilities[:, :, None] * probabilities[:, None, :]
    centred = hidden - hidden.mean(0)
    change = -centred[:, :, None] * net[2].weight.T[None]  # (N, 6, 3)
    wanted = torch.einsum("nac,ncd,nbd->ab", change, hessian, change).detach() / len(inputs)
    names, first = list(table.group_names), [k for k, g in enumerate(table.choices) if len(g) == 2]
    rows = table.factor[table.offsets[first] + 1]
    assert names == [f"0.weight[{k}]" for k in range(6)]
    exact = wanted[first][:, first].numpy()
    # Random signs: 13 probes of 40 examples leave some noise.
    np.testing.assert_allclose(rows @ rows.T, exact, atol=0.25 * exact.max())
    np.testing.assert_allclose(2 * table.linear[table.offsets[first] + 1], np.diag(exact), rtol=0.3)


def test_twins_stand_in_for_each_other() -> None:
    """A channel that another repeats leaves without a trace, even with another scale; a constant one, too."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.Flatten(), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        net[0].weight[3], net[0].bias[3] = 2 * net[0].weight[1], 2 * net[0].bias[1]
        net[0].weight[4] = 0.0
        net[0].bias[4] = 1.5
    data = [(torch.randn(50, 2, 6, 6), torch.arange(50) % 3)]
    table = qc.measure(net, data, groups="channel", progress=False)
    small = table.plan({"0.weight[1]": "remove", "0.weight[4]": "remove"}).apply(net)
    with torch.no_grad():
        wanted, found = net(data[0][0]), small(data[0][0])
    # Damping costs a little.
    assert float((found - wanted).abs().max()) < 0.05 * float(wanted.abs().max())
    assert small[0].out_channels == 3


def test_moments_are_those_of_the_inputs() -> None:
    net, data = network("depthwise")
    channels = find_channels(net, data[0][0])
    examples = qc.calibration.examples.read_examples(data)
    found = channel_moments(NetworkTensors(net), examples, channels.readings)
    kept = []
    handle = net.head.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    with torch.no_grad():
        net(data[0][0])
    handle.remove()
    rows = torch.cat([kept[0], torch.ones(EXAMPLES, 1)], dim=1).double()
    torch.testing.assert_close(found["head.weight"].matrix, rows.T @ rows / EXAMPLES, rtol=1e-4, atol=1e-5)


def test_compress_chooses_channels(tmp_path: Path) -> None:
    net, data = network("residual")
    macs = int(0.7 * qc.measure(net, data, menu=qc.Menu([]), progress=False).costs["macs"].sum())
    result = qc.compress(
        net, data, qc.Budget(ratio=1, macs=macs), groups="channel", time_limit=1.0, progress=False, solver="greedy"
    )
    assert result.plan.removal is not None and sum(p.numel() for p in result.model.parameters()) < 60_000
    assert {candidate.name for candidate in result.taken.candidates} >= {"solver"}
    page = result.report(tmp_path / "report.html").read_text()
    assert "physically smaller" in page and "one of these channels has to stay" not in page
    assert "the network returns them" in page
    with pytest.raises(errors.InvalidOption, match="rounds=1"):
        qc.compress(net, data, qc.Budget(ratio=1), groups="channel", rounds=1, progress=False)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    net, data, table = table_of("residual")
    with pytest.raises(errors.InvalidMenu, match="stored reliably"):
        qc.measure(net, data, groups="channel", menu=qc.Menu([Analog(bits=4)]), progress=False)
    with pytest.raises(errors.InvalidOption, match="around"):
        table.problem(qc.Budget(ratio=2), around={})
    with pytest.raises(errors.InvalidMenu, match="'products'"):
        qc.measure(net, data, groups="channel", metric="magnitude", progress=False)
    with pytest.raises(errors.InvalidModel, match="no channels of this network can be removed"):
        qc.measure(nn.Linear(4, 3), [(torch.randn(9, 4), torch.arange(9) % 3)], groups="channel", progress=False)
    with pytest.raises(errors.TablesDiffer, match="channels"):
        SensitivityTable.merge([table, table])
    plan = table.plan(solved(table, 0.8))
    other = ResNet20(blocks=1).eval()
    with pytest.raises(errors.WrongModel, match="other weights"):
        plan.apply(other)
    small = plan.apply(net)
    qc.save(small, tmp_path / "small.safetensors")
    with pytest.raises(errors.WrongModel, match="another architecture"):
        qc.load(tmp_path / "small.safetensors", Separable())
    assert not torch.equal(qc.load(tmp_path / "small.safetensors", other).conv1.weight, other.conv1.weight)
    with pytest.raises(errors.WrongModel, match="channels are to be removed"):
        qc.recover(small, data, teacher=Separable(), progress=False)


def test_texts_from_elsewhere_are_checked() -> None:
    net, _, table = table_of("residual")
    removal = table.plan(solved(table, 0.8)).removal
    assert removal is not None and removal.hooked and removals_from(text_of([removal])) == (removal,)
    for said in (
        {"kept": [], "hooked": [], "numbers": [["layer1", "training", 0]]},  # counts no heads
        {"kept": [["conv1.weight", 0, 16, "00ff00"]], "hooked": [], "numbers": []},
        {"kept": [["conv1.weight", 0, 16, "0000"]], "hooked": [], "numbers": []},
        {"kept": [["conv1.weight", 0, 2**40, ""]], "hooked": [], "numbers": []},
        {"kept": [["conv1.weight", -1, 16, "ffff"]], "hooked": [], "numbers": []},
        {"kept": [["conv1.weight", 0, 16, "00ff"]] * 2, "hooked": [], "numbers": []},
        {"kept": [["conv1.weight", 0, 2**23, "ff" * 2**20]], "hooked": [], "numbers": []},
        {"kept": [], "hooked": []}, 7,
    ):  # fmt: skip
        with pytest.raises(ValueError):
            removals_from(_packed([said]))


def _packed(said: object) -> str:
    import base64
    import zlib

    return base64.b64encode(zlib.compress(json.dumps(said).encode())).decode()


def test_repair_without_training_brings_the_outputs_closer() -> None:
    net, data, table = table_of("residual")
    small = table.plan(solved(table, 0.6)).apply(net)
    repaired = qc.recover(small, data, teacher=net, progress=False)
    with torch.no_grad():
        goal = net(data[0][0]).log_softmax(1)
        apart = [
            functional.kl_div(m(data[0][0]).log_softmax(1), goal, log_target=True, reduction="sum")
            for m in (small, repaired)
        ]
    assert apart[1] < 0.9 * apart[0]


def test_channels_leave_in_blocks() -> None:
    net, data = network("residual")
    table = qc.measure(net, data, groups="channel:8", progress=False)
    assert table.removals is not None and {len(block) for block in table.removals.blocks} == {8}
    small = table.plan(solved(table, 0.7)).apply(net)
    widths = {module.out_channels for module in small.modules() if isinstance(module, nn.Conv2d)}
    assert all(width % 8 == 0 for width in widths) and len(widths) > 2
    with pytest.raises(errors.InvalidMenu, match="channel:0"):
        qc.measure(net, data, groups="channel:0", progress=False)


def test_very_many_sets_are_decided_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qubo_compress.sensitivity.coupled.choices.MOST_DECISIONS", 40)
    net, data, table = table_of("residual")
    assert table.removals is not None
    sets, blocks = table.removals.channels.sets, table.removals.blocks
    assert len(blocks) <= 48 and sorted(number for block in blocks for number in block) == list(range(len(sets)))
    assert all(len({sets[number].family for number in block}) == 1 for block in blocks)
    assert [y for _, y in zip(blocks, table.group_names)] == [sets[block[0]].name for block in blocks]


def test_seconds_take_examples_away(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    net, data = network("residual")
    monkeypatch.setattr(forecast, "_seconds_per_example", lambda subject, together: 1.0)
    every, few = (qc.measure(net, data, groups="channel", seconds=seconds) for seconds in (1e6, 1.0))
    assert every.provenance.examples == EXAMPLES > few.provenance.examples == forecast.FEWEST_EXAMPLES
    assert f"on {forecast.FEWEST_EXAMPLES} of {EXAMPLES} examples, to stay within 1 s" in capsys.readouterr().out
