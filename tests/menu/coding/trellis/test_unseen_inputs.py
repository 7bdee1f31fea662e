"""Weights whose inputs nobody sees, such as those of an LSTM: the codes of a trellis take all inputs as alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qubo_compress as qc


class Reader(nn.Module):
    """Words, most of the weights, and a recurrent layer."""

    def __init__(self, kind: type[nn.RNNBase], words: int) -> None:
        super().__init__()
        self.words, self.recurrent = nn.Embedding(words, 24), kind(24, 32, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(self.words(x))[0].mean(1))


class Signal(nn.Module):
    """Convolutions whose channels may leave, and a recurrent layer behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(3, 8, 3), nn.Conv1d(8, 8, 3)
        self.recurrent, self.head = nn.GRU(8, 12, batch_first=True), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.second(torch.relu(self.first(x))).relu()
        return self.head(self.recurrent(hidden.transpose(1, 2))[0].mean(1))


@pytest.mark.parametrize(("kind", "words"), [(nn.LSTM, 40), (nn.GRU, 600)])
def test_recurrent_networks_reach_an_eighth(kind: type[nn.RNNBase], words: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Reader(kind, words).eval()
    x = torch.randint(0, words, (60, 7))
    labels = net(x).argmax(1)
    found = qc.compress(net, [(x, labels)], qc.Budget(ratio=8), menu=qc.Menu.preset("smallest"), progress=False)
    assert found.plan.original_bytes >= 8 * found.plan.bytes
    chosen = {choice for name, choice in found.plan.choices.items() if name.startswith(("words", "recurrent.weight"))}
    assert chosen and all(choice.startswith("coded(of='trellis") for choice in chosen)
    assert qc.save(found.compressed_model, tmp_path / "net") == found.plan.bytes
    again = qc.load(tmp_path / "net", net)
    assert torch.equal(again(x), found.compressed_model(x))
    assert float((again(x).argmax(1) == labels).float().mean()) > 0.8


def test_other_choices_that_watch_inputs_are_not_offered_to_them() -> None:
    net, x = Reader(nn.LSTM, 40).eval(), torch.randint(0, 40, (8, 5))
    menu = qc.Menu(["trellis(step=1.0)", "coded(of='lattice(step=1.0)')"])
    table = qc.measure(net, [x], menu, "magnitude", progress=False)
    offered = dict(zip(table.group_names, table.choices, strict=True))
    assert offered["recurrent.weight_hh_l0"] == ("keep", "trellis(step=1.0)")
    assert offered["head.weight"] == ("keep", *menu.names[1:])


def test_layers_behind_removed_channels_are_stored_too() -> None:
    torch.manual_seed(0)
    net, batch = Signal().eval(), (torch.randn(20, 3, 9), torch.randint(0, 4, (20,)))
    choice = "coded(of='trellis(step=1.0)')"
    table = qc.measure(net, [batch], qc.Menu([choice]), groups="channel", progress=False)
    wanted = {
        name: "remove" if name == "first.weight[1]" else choice if choice in names else "keep"
        for name, names in zip(table.group_names, table.choices, strict=True)
    }
    small = table.plan(wanted).apply(net)
    assert small.first.weight.shape == (7, 3, 3) and small.second.weight.shape == (8, 7, 3)
    for now, before in zip(small.recurrent.parameters(), net.recurrent.parameters(), strict=True):
        assert torch.equal(now, before) == (now.ndim == 1)
