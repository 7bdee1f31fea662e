"""Networks whose layers note what they see: nothing of it reaches the caller's network."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import qubo_compress as qc
from qubo_compress.testing import same_snapshot, snapshot


@pytest.mark.filterwarnings("ignore")
def test_observers_of_quantization_aware_training_stay_as_they_were() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
        torch.ao.quantization.prepare_qat(net.train(), inplace=True)
    data = [(torch.randn(16, 2, 8, 8), torch.arange(16) % 3)] * 2
    net(data[0][0])
    net.eval()
    before = snapshot(net)
    menu = qc.Menu(bits=(2, 4), sparsity=(0.0,), vector_bits=())
    table = qc.measure(net, data, menu, progress=False)
    assert table.group_names == ("0.weight", "0.bias", "3.weight", "3.bias")
    assert same_snapshot(before, snapshot(net))
