"""What can be refused is refused before the network runs; numbers of numpy are numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress import errors, pruning

BUDGET = qc.Budget(ratio=2)


class Watched(nn.Sequential):
    """Fails when it runs."""

    def forward(self, inputs: Tensor) -> Tensor:
        pytest.fail("the network ran")


def network(kind: type[nn.Sequential] = Watched) -> nn.Sequential:
    torch.manual_seed(0)
    return kind(nn.Linear(20, 60), nn.ReLU(), nn.Linear(60, 3)).eval()


def data() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(16, 20), torch.arange(16) % 3)]


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"budget": 4}, errors.InvalidBudget, r"a budget is a qc\.Budget, such as qc\.Budget\(ratio=4\); got 4"),
        ({"budget": "8x"}, errors.InvalidBudget, r"such as qc\.Budget\(ratio=8\); got '8x'"),
        ({"menu": ["quantize"]}, errors.InvalidMenu, r"a menu is a qc\.Menu"),
        ({"seed": -1}, errors.InvalidOption, "seed must be a whole number of at least 0; got -1"),
        ({"seed": 1.5}, errors.InvalidOption, "got 1.5"),
        ({"epochs": 1.5}, errors.InvalidOption, "epochs"),
        ({"epochs": True}, errors.InvalidOption, "epochs"),
        ({"rounds": -2}, errors.InvalidOption, "rounds"),
        ({"time_limit": "10"}, errors.InvalidSolverOption, "got '10'"),
        ({"time_limit": -1}, errors.InvalidSolverOption, "positive number of seconds"),
        ({"solver": "aneal"}, errors.UnknownName, "did you mean 'annealer'"),
        ({"metric": "product"}, errors.UnknownName, "did you mean 'products'"),
        ({"groups": "filters"}, errors.InvalidMenu, "did you mean 'filter'"),
    ],
)
def test_wrong_arguments_of_compress(arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        qc.compress(network(), data(), **{"budget": BUDGET, "progress": False, **arguments})


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: qc.measure(network(), data(), seed=-1, progress=False), errors.InvalidOption, "seed"),
        (lambda: qc.measure(network(), data(), menu="quantize", progress=False), errors.InvalidMenu, "a menu is"),
        (lambda: qc.estimate(network(), data(), menu=["quantize"]), errors.InvalidMenu, "a menu is"),
        (lambda: qc.Budget(bytes=2**63), errors.InvalidBudget, r"at most 2\*\*53"),
        (lambda: qc.Budget(macs=2**54, ratio=2), errors.InvalidBudget, "macs must be at most"),
    ],
)
def test_wrong_arguments_elsewhere(call: Callable[[], Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call()


def test_wrong_arguments_of_what_takes_a_table() -> None:
    table = qc.measure(network(nn.Sequential), data(), progress=False, metric="magnitude")
    with pytest.raises(errors.InvalidBudget, match=r"qc\.Budget\(ratio=4\)"):
        table.problem(4)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidBudget, match="ratios are a list"):
        qc.pareto(table, 4)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidOption, match="seed"):
        qc.solve(table.problem(BUDGET), "greedy", seed=-1)


def test_the_teacher_is_the_network_that_was_compressed() -> None:
    net = network(nn.Sequential)
    small = (
        qc.measure(net, data(), progress=False, metric="magnitude").plan({"0.weight": "quantize(bits=4)"}).apply(net)
    )
    with pytest.raises(errors.WrongModel, match=r"another network.*differ in 0\.weight \(60 x 20 and 50 x 20\)"):
        qc.recover(small, data(), nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 3)), progress=False)


def test_tensors_without_values_are_named() -> None:
    net = network()
    net.register_buffer("table", torch.empty(3, device="meta"))
    with pytest.raises(errors.InvalidModel, match="on the meta device: table"):
        qc.measure(net, data(), progress=False)


def test_numbers_of_numpy_are_numbers() -> None:
    menu = qc.Menu(bits=np.array([2, 4]), sparsity=np.array([0.0, 0.5]), vector_bits=np.array([8]))
    assert menu.names == qc.Menu(bits=(2, 4), sparsity=(0.0, 0.5), vector_bits=(8,)).names
    result = qc.compress(
        network(nn.Sequential), data(), qc.Budget(bytes=np.int64(3000)), menu=menu, seed=np.int64(3),
        rounds=np.int64(0), epochs=np.int32(0), max_examples=np.int64(12), time_limit=np.float32(1.0), progress=False,
    )  # fmt: skip
    assert result.plan.bytes <= 3000
    assert qc.solve(result.table.problem(BUDGET), "greedy", seed=np.uint8(1), work_limit=np.int64(5)).status


def test_a_traced_graph_is_compressed_shown_and_saved(tmp_path: Any) -> None:
    net = torch.fx.symbolic_trace(network(nn.Sequential))
    result = qc.compress(net, data(), BUDGET, progress=False, time_limit=1.0)
    result.show()
    result.report(tmp_path / "report.html")
    assert result.save(tmp_path / "net.safetensors") == result.plan.bytes
    again = qc.load(tmp_path / "net.safetensors", net)
    assert torch.equal(again(data()[0][0]).isfinite(), torch.ones(16, 3, dtype=torch.bool))


class Stored(nn.Linear):
    """A layer that computes in float32, whatever its weight is stored in."""

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.linear(inputs, self.weight.float(), self.bias)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_of_eight_bits_are_named(dtype: torch.dtype) -> None:
    net = nn.Sequential(Stored(20, 40), nn.ReLU(), nn.Linear(40, 3)).eval()
    net[0].weight = nn.Parameter(net[0].weight.detach().to(dtype), requires_grad=False)
    for call in (qc.measure, qc.estimate):
        with pytest.raises(errors.InvalidModel, match=r"0\.weight is stored as float8.*model\.to\(torch\.bfloat16\)"):
            call(net, data())
    with pytest.raises(errors.InvalidModel, match=r"0\.weight is stored as float8"):
        qc.compress(net, data(), BUDGET, progress=False)
    kept = qc.measure(net, data(), groups=lambda name, _: None if name == "0.weight" else name, progress=False)
    assert "0.weight" not in kept.group_names


def test_estimate_refuses_what_measure_refuses() -> None:
    net = network()
    net.register_buffer("table", torch.empty(3, device="meta"))
    with pytest.raises(errors.InvalidModel, match="on the meta device: table"):
        qc.estimate(net, data())
    with pytest.raises(errors.InvalidModel, match="nothing to compress"):
        qc.estimate(nn.Sequential(nn.ReLU()), data())


@pytest.mark.parametrize(
    ("call", "near"),
    [
        (lambda: qc.Menu(["quantise(bits=4)"]), "quantize"),
        (lambda: qc.Menu.of("quantise"), "quantize"),
        (lambda: qc.measure(network(), data(), metric="produtcs", progress=False), "products"),
        (lambda: qc.measure(network(), data(), loss="cross_entropy", progress=False), "cross-entropy"),
        (lambda: qc.measure(network(), data(), groups="filters", progress=False), "filter"),
        (lambda: qc.measure(network(), data(), example_weights="tails", progress=False), "tail"),
        (lambda: qc.compress(network(), data(), BUDGET, objective="distilation", progress=False), "distillation"),
        (lambda: qc.solve(problem(), "anealer"), "annealer"),
        (lambda: qc.solve(problem(), "annealer", restart=2), "restarts"),
        (lambda: qc.solve(problem(), "simulated-annealing", encoding="one_hot"), "one-hot"),
        (lambda: qc.ChoiceProblem.random(kind="seperable", groups=2, choices=2, seed=0), "separable"),
        (lambda: qc.audit(network(), network(), data(), correction="holms"), "holm"),
    ],
)
def test_the_nearest_name_is_offered(call: Callable[[], Any], near: str) -> None:
    with pytest.raises(errors.QuboCompressError, match=f"did you mean '{near}'"):
        call()


def problem() -> qc.ChoiceProblem:
    return qc.ChoiceProblem.random(kind="separable", groups=5, choices=4, seed=1)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda net: qc.audit(net, net, data(), clas_axis=1),
            "audit has no argument 'clas_axis'; did you mean 'class_axis'",
        ),
        (lambda net: qc.recover(net, data(), net, epoch=1), "recover has no argument 'epoch'; did you mean 'epochs'"),
        (
            lambda net: qc.estimate(net, data(), max_exmples=3),
            "estimate has no argument .* did you mean 'max_examples'",
        ),
        (lambda net: qc.StitchedLoss(net, None, data(), clas_axis=1), "StitchedLoss has no argument 'clas_axis'"),
        (
            lambda net: pruning.prune(net, data(), 0.5, layer="0"),
            "prune has no argument 'layer'; did you mean 'layers'",
        ),
        (lambda net: pruning.prune_gradually(net, data(), 0.5, step=2), "prune_gradually has no argument 'step'"),
        (lambda net: qc.ChoiceProblem.random(rnk=2), "random has no argument 'rnk'; did you mean 'rank'"),
    ],
)
def test_misspelt_keywords_are_refused_under_the_name_of_the_call(call: Callable[..., Any], says: str) -> None:
    with pytest.raises(errors.UnknownOption, match=says):
        call(network())


def test_names_that_are_not_close_are_not_suggested_and_long_lists_are_cut() -> None:
    assert "did you mean" not in str(errors.unknown_name("solver", "gurobi", ["surrogate", "greedy"]))
    assert "did you mean" not in str(errors.unknown_name("choice", "quantize(bits=5)", ["quantize(bits=8)", "keep"]))
    said = str(errors.unknown_name("group", "nothing", [f"layer.{number}.weight" for number in range(36)]))
    assert said.endswith("and 26 more") and said.count(".weight") == 10
