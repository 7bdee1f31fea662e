"""Measuring and compressing work on private copies: the caller's network is never touched, not even for a moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.errors import InvalidModel
from qubo_compress.network.every_layer import every_layer_runs
from qubo_compress.network.private import CARRIED, PRIVATE, independent_copy, private_copy
from qubo_compress.testing import same_snapshot, snapshot

MENU = qc.Menu(bits=(2, 4), sparsity=(0.0, 0.5), vector_bits=())
ROUNDS = 6


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.Flatten(), nn.Linear(96, 3)
    ).eval()


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 2, 8, 8, generator=generator), torch.arange(16) % 3)]


def together(*tasks: Callable[[], Any]) -> list[Any]:
    """What the tasks return, each run in a thread of its own; the first exception is raised."""
    found: list[Any] = [None] * len(tasks)
    start = threading.Barrier(len(tasks))

    def run(number: int) -> None:
        start.wait()
        try:
            found[number] = tasks[number]()
        except BaseException as cause:  # noqa: BLE001 - raised below, in the thread of the test
            found[number] = cause

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answer in found:
        if isinstance(answer, BaseException):
            raise answer
    return found


@pytest.mark.parametrize("metric", ["gauss-newton", "products"])
def test_two_threads_measure_one_network(metric: str) -> None:
    net, data = network(), batches()
    before = snapshot(net)

    def measured() -> qc.SensitivityTable:
        return qc.measure(net, data, menu=MENU, metric=metric, progress=False)

    alone = measured()
    for _ in range(ROUNDS):
        for table in together(measured, measured):
            assert (table.linear == alone.linear).all()
            assert (table.factor == alone.factor).all()
    assert same_snapshot(before, snapshot(net))


def test_progress_is_shown_in_two_threads_at_once() -> None:
    net, data = network(), batches()
    tables = together(*[lambda: qc.measure(net, data, menu=MENU)] * 2)
    assert (tables[0].linear == tables[1].linear).all()


def test_a_network_answers_as_ever_while_it_is_compressed() -> None:
    net, data = network(), batches()
    before = snapshot(net)
    with torch.no_grad():
        right = net(data[0][0])
    done, wrong, asked = threading.Event(), [], []

    def answering() -> None:
        while not done.is_set() or not asked:
            with torch.no_grad():
                asked.append(1)
                if not torch.equal(net(data[0][0]), right):
                    wrong.append(1)

    def compressing() -> None:
        try:
            qc.compress(net, data, qc.Budget(ratio=3), menu=MENU, progress=False, epochs=1, time_limit=1.0)
        finally:
            done.set()

    together(answering, compressing)
    assert asked and not wrong
    assert same_snapshot(before, snapshot(net))


class Counting(nn.Module):
    """Counts its calls in a buffer and an attribute; the outputs do not depend on either unless told."""

    def __init__(self, drifts: bool = False) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.body = network()
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("hidden", torch.zeros(1), persistent=False)
        self.seen, self.drifts = 0, drifts

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        self.hidden.add_(2)
        self.seen += 1
        return self.body(inputs) + (0.1 * self.calls if self.drifts else 0.0)


def test_what_a_forward_writes_stays_in_the_copy() -> None:
    net = Counting().eval()
    before = snapshot(net)
    result = qc.compress(net, batches(), qc.Budget(ratio=3), menu=MENU, progress=False, time_limit=1.0)
    assert (float(net.calls), float(net.hidden), net.seen) == (0.0, 0.0, 0)
    assert same_snapshot(before, snapshot(net))
    assert result.original is net
    assert PRIVATE not in vars(result.model)


def test_outputs_that_follow_from_what_forward_writes_are_refused_with_its_name() -> None:
    net = Counting(drifts=True).eval()
    before = snapshot(net)
    for attempt in (qc.measure, qc.estimate):
        with pytest.raises(InvalidModel, match=r"two runs of this Counting .* it writes to calls, hidden"):
            attempt(net, batches(), menu=MENU)
    assert same_snapshot(before, snapshot(net))


def test_outputs_that_are_drawn_are_refused() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, inputs: Tensor) -> Tensor:
            return self.body(nn.functional.dropout(inputs, 0.5, training=True))

    with pytest.raises(InvalidModel, match="draws random numbers"):
        qc.measure(Noisy().eval(), batches(), menu=MENU, progress=False)


def test_an_embedding_that_normalises_itself_is_refused_and_left_alone() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(12, 4, max_norm=0.5), nn.Flatten(), nn.Linear(12, 3)).eval()
    before = snapshot(net)
    data = [(torch.randint(12, (16, 3)), torch.arange(16) % 3)]
    with pytest.raises(InvalidModel, match=r"writes to its parameter 0\.weight.*max_norm=None"):
        qc.measure(net, data, menu=MENU, progress=False)
    assert same_snapshot(before, snapshot(net))


@pytest.mark.parametrize("kind", ["option", "module", "buffer"])
def test_attributes_of_any_name_stay_the_users(kind: str) -> None:
    net = network()
    if kind == "option":
        net.compression = None
    elif kind == "module":
        net.add_module("compression", nn.Identity())
    else:
        net.register_buffer("compression", torch.ones(2))
    table = qc.measure(net, batches(), menu=MENU, progress=False)
    small = table.plan({"3.weight": "quantize(bits=4)"}).apply(net)
    assert type(small.compression) is type(net.compression)
    assert CARRIED in vars(small) and CARRIED not in vars(net)


def test_a_function_that_has_captured_a_layer_is_refused() -> None:
    net = network()
    net.forward = lambda inputs, old=net.forward: old(inputs)  # type: ignore[method-assign]
    kept = net.forward.__defaults__
    assert kept is not None  # the bound method of the network itself, which a copy shares
    with pytest.raises(InvalidModel, match=r"still uses 0\.weight.*of the network that was copied"):
        qc.measure(net, batches(), menu=MENU, progress=False)


def test_what_cannot_be_copied_is_refused_before_anything_runs() -> None:
    net, runs = network(), []
    net.lock = threading.Lock()
    net.register_forward_hook(lambda *_: runs.append(1))
    with pytest.raises(InvalidModel, match=r"cannot be copied: TypeError.*locks and open files"):
        qc.measure(net, batches(), menu=MENU, progress=False)
    assert not runs


def test_networks_made_in_inference_mode_are_compressed_and_tuned() -> None:
    with torch.inference_mode():
        net = network()
    result = qc.compress(
        net, batches(), qc.Budget(ratio=3), menu=MENU, metric="products", progress=False, epochs=1, time_limit=1.0
    )
    assert result.plan.bytes <= result.plan.original_bytes / 3


@pytest.mark.parametrize("metric", ["gauss-newton", "products"])
def test_everything_works_inside_inference_mode(metric: str) -> None:
    with torch.inference_mode():
        net = network()
        small = qc.compress(
            net, batches(), qc.Budget(ratio=3), menu=MENU, metric=metric, progress=False, epochs=1, time_limit=1.0,
            solver="greedy",
        )  # fmt: skip
        assert small.plan.bytes <= small.plan.original_bytes / 3
        assert qc.recover(small.model, batches(), net, 1, progress=False) is not small.model
        assert qc.estimate(net, batches(), MENU).examples == 8
        assert qc.audit(net, small.model, batches()).examples == 16


def test_copies_share_parameters_and_hold_other_buffers(sample: Callable[[str], Any]) -> None:
    net = sample("grouped-view-inplace").model
    own = private_copy(net)
    assert private_copy(own) is own
    assert all(a is b for a, b in zip(own.parameters(), net.parameters(), strict=True))
    assert all(a is not b and torch.equal(a, b) for a, b in zip(own.buffers(), net.buffers(), strict=True))
    apart = independent_copy(own)
    assert PRIVATE not in vars(apart)
    assert not {id(tensor) for tensor in apart.parameters()} & {id(tensor) for tensor in net.parameters()}


def test_the_fast_path_comes_back_when_the_last_thread_has_left() -> None:
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()
    seen = []

    def first() -> None:
        with every_layer_runs():
            first_in.set()
            second_in.wait()
        seen.append(torch.backends.mha.get_fastpath_enabled())
        first_out.set()

    def second() -> None:
        first_in.wait()
        with every_layer_runs():
            second_in.set()
            first_out.wait()
        seen.append(torch.backends.mha.get_fastpath_enabled())

    together(first, second)
    assert seen == [False, True]


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers_of_copies_are_in_the_mode_that_cudnn_differentiates(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    net = nn.ModuleDict({"recurrent": kind(3, 4, num_layers=2, dropout=0.5, batch_first=True)}).eval()
    own = private_copy(net)
    assert own["recurrent"].training and not net["recurrent"].training and net["recurrent"].dropout == 0.5
    inputs = torch.randn(5, 7, 3)
    wanted = net["recurrent"](inputs)[0]
    assert torch.equal(own["recurrent"](inputs)[0], wanted) and torch.equal(own["recurrent"](inputs)[0], wanted)
