"""The caller's batch is the unit of every run: of fixed size, of examples that influence each other, or of memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress import errors
from qubo_compress.calibration import passes
from qubo_compress.calibration.evaluation import score, settle
from qubo_compress.calibration.examples import read_examples, set_aside
from qubo_compress.sensitivity.metrics.products import Products

MENU = qc.Menu(bits=(2, 4), sparsity=(0.0,), vector_bits=())
BUDGET = qc.Budget(ratio=3)


class Sizes(list[int]):
    """A list of which copies are the list itself."""

    def __deepcopy__(self, _: Any) -> Sizes:
        return self


class Seen(nn.Module):
    """Notes how many examples each run is given."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.sizes = body, Sizes()

    def forward(self, inputs: Tensor) -> Tensor:
        self.sizes.append(len(inputs))
        return self.body(inputs)


class Fixed(Seen):
    """Accepts batches of one size only, as exported networks do."""

    def __init__(self, body: nn.Module, size: int = 6) -> None:
        super().__init__(body)
        self.size = size

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.view(self.size, 3, 8, 8))


class Mixing(Seen):
    """Normalises by the batch."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward((inputs - inputs.mean(0)) / (inputs.std(0) + 0.1))


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 3))


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU6(), nn.Conv2d(6, 6, 3, groups=6), nn.Flatten(), nn.Linear(216, 3)
    )


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    return nn.Sequential(nn.Flatten(2), nn.Linear(64, 8), layer, nn.Flatten(), nn.Linear(24, 3))


KINDS = {"convolutional": convolutional, "depthwise": depthwise, "transformer": transformer}


def batches(size: int = 6, count: int = 5) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(size, 3, 8, 8, generator=generator), torch.arange(size) % 3) for _ in range(count)]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_one_batch_size_is_compressed_and_tuned(kind: str) -> None:
    net = Fixed(KINDS[kind]()).eval()
    result = qc.compress(net, batches(), BUDGET, menu=MENU, epochs=1, progress=False, time_limit=1.0)
    assert result.plan.bytes <= result.plan.original_bytes / 3
    assert result.table.provenance.metric == "gauss-newton"
    assert set(net.sizes) == {6}
    assert qc.audit(net, result.model, batches()).examples == 30
    assert score(result.model, batches()).examples == 30


def test_what_a_fixed_network_gives_is_what_the_network_inside_gives() -> None:
    body = convolutional().eval()
    fixed = qc.measure(Fixed(body).eval(), batches(), MENU, "gauss-newton", progress=False)
    free = qc.measure(Seen(body).eval(), batches(), MENU, "gauss-newton", progress=False)
    assert torch.allclose(torch.from_numpy(fixed.linear), torch.from_numpy(free.linear), rtol=1e-3, atol=1e-6)


def test_a_part_batch_is_named() -> None:
    net = Fixed(convolutional()).eval()
    data = [*batches(), *batches(4, 1)]
    with pytest.raises(errors.InvalidBatches, match=r"batch 5 has 4 examples.*batches of 6.*drop_last=True"):
        qc.measure(net, data, MENU, progress=False)
    assert qc.measure(net, data, MENU, progress=False, max_examples=30).provenance.examples == 30


def test_reading_stops_before_a_batch_that_would_be_cut() -> None:
    table = qc.measure(Fixed(convolutional()).eval(), batches(), MENU, progress=False, max_examples=20)
    assert table.provenance.examples == 18


def test_one_batch_cannot_be_held_out_from() -> None:
    net = Fixed(convolutional()).eval()
    with pytest.raises(errors.InvalidBatches, match="give at least two batches, or validation batches"):
        qc.compress(net, batches(count=1), BUDGET, menu=MENU, progress=False)
    result = qc.compress(net, batches(count=1), BUDGET, batches(count=1), menu=MENU, progress=False, time_limit=1.0)
    assert result.plan.bytes


@pytest.mark.parametrize("metric", ["products", "jacobian", "fisher"])
def test_what_needs_single_examples_says_so(metric: str) -> None:
    with pytest.raises(errors.InvalidModel, match="with 2 of the 6 examples of a batch it failed"):
        qc.measure(Fixed(convolutional()).eval(), batches(), MENU, metric, progress=False)
    with pytest.raises(errors.InvalidModel, match="takes its batches of 6 as they are"):
        menu = qc.Menu(["woodfisher(sparsity=0.5)"])
        qc.measure(Fixed(convolutional()).eval(), batches(), menu, "gauss-newton", progress=False)


def test_batch_size_is_what_a_network_is_given() -> None:
    net = Fixed(convolutional(), size=5).eval()
    result = qc.compress(net, batches(10, 4), BUDGET, menu=MENU, batch_size=5, epochs=1, progress=False, time_limit=1.0)
    assert result.plan.bytes and set(net.sizes) == {5}
    free = Seen(convolutional()).eval()
    qc.measure(free, batches(), MENU, progress=False, batch_size=4)
    assert max(free.sizes) <= 4
    with pytest.raises(errors.InvalidOption, match="batch_size"):
        qc.measure(free, batches(), MENU, progress=False, batch_size=0)


def test_examples_that_influence_each_other_stay_with_their_batch() -> None:
    net = Mixing(convolutional()).eval()
    examples, _ = settle(net, read_examples(batches()))
    assert "depends on the other examples" in (examples.whole or "")
    with torch.no_grad():
        right = [net(inputs) for inputs, _ in batches()]
    found = qc.calibration.evaluation.outputs_of(net, examples)
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(right, found, strict=True))
    assert [part.count for part in set_aside(examples)] == [12, 18]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", ["gauss-newton", "products"])
def test_large_networks_run_on_the_batches_as_they_came(
    kind: str, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(passes.JOINED_BYTES, "cpu", 1)
    monkeypatch.setattr("qubo_compress.sensitivity.metrics.products.JOINED_BYTES", 1)
    monkeypatch.setattr("qubo_compress.recovery.statistics.REMEMBERED_BYTES", 1)
    net = Seen(KINDS[kind]()).eval()
    data = batches(4, 12)
    result = qc.compress(
        net, data, BUDGET, menu=MENU, metric=metric, epochs=1, progress=False, time_limit=1.0, recover=True
    )
    assert max(size for size in net.sizes if size != 16) <= 4  # 16: the repair of statistics needs more than a batch
    assert result.plan.bytes


def test_small_batches_of_small_networks_are_joined() -> None:
    net = Seen(convolutional()).eval()
    examples, _ = settle(net, read_examples(batches(4, 12)))
    assert [len(part) for part in examples.slices] == [48] and examples.shown == 2 + 48
    large, _ = settle(net, read_examples(batches(300, 1)))
    assert [len(part) for part in large.slices] == [250, 50]


def test_a_network_that_takes_no_more_than_its_batches_keeps_them() -> None:
    class Remembering(Seen):
        def __init__(self, body: nn.Module) -> None:
            super().__init__(body)
            self.register_buffer("state", torch.zeros(6, 3, 8, 8))

        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs + self.state[: len(inputs)])

    net = Remembering(convolutional()).eval()
    examples, _ = settle(net, read_examples(batches()))
    assert (examples.whole or "").startswith("with examples of several batches at once it failed")
    assert qc.measure(net, batches(), MENU, progress=False).provenance.examples == 30


def test_parts_of_a_step_give_the_gradient_of_the_whole() -> None:
    net = convolutional().eval()
    small = qc.measure(net, batches(30, 1), MENU, "magnitude", progress=False).plan({"0.weight": "quantize(bits=4)"})
    tuned = [qc.recover(small.apply(net), batches(30, 1), net, 2, progress=False, batch_size=size) for size in (30, 7)]
    for one, other in zip(*(model.parameters() for model in tuned), strict=True):
        assert torch.allclose(one, other, atol=2e-4)


def test_products_take_one_batch_at_a_time_where_examples_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = qc.measure(convolutional().eval(), batches(4, 6), MENU, Products(), progress=False)
    torch.manual_seed(0)
    monkeypatch.setattr("qubo_compress.sensitivity.metrics.products.JOINED_BYTES", 1)
    parts = qc.measure(convolutional().eval(), batches(4, 6), MENU, Products(), progress=False)
    assert torch.allclose(torch.from_numpy(whole.linear), torch.from_numpy(parts.linear), rtol=1e-4, atol=1e-8)
