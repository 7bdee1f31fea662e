"""Packed PyTorch modules: the same outputs, in a process without the rest of the library."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import qubo_compress as qc
from qubo_compress import layers
from qubo_compress.errors import CorruptArtifact, WrongModel
from qubo_compress.menu import choice_name
from qubo_compress.menu.keep import Keep
from qubo_compress.menu.low_rank.svd import Svd
from qubo_compress.menu.operator import Operator
from qubo_compress.menu.quantize import Quantize
from qubo_compress.testing import registered_samples
from tests.exports.networks import (
    WIDTH,
    Attentions,
    Convolutions,
    Side,
    Slices,
    Tables,
    Tied,
    pictures,
    rows,
    texts,
    unusual,
)
from tests.exports.plans import compressed

SAMPLES = registered_samples()
CASES = {
    "convolutions": (lambda: Side([nn.Conv2d(6, 6, 3, groups=n % 3 + 1) for n in range(60)]), pictures(2, channels=6)),
    "volumes": (lambda: Side([nn.Conv3d(6, 6, 3) for n in range(60)]), pictures(3, size=4, channels=6)),
    "linear": (lambda: Slices([(24 + n, 10 + n) for n in range(60)]), rows(5, 99)),
    "tables": (lambda: Tables([(10 + n, 20 + n) for n in range(60)]), texts()),
    "attention": (lambda: Attentions(30), rows(30, WIDTH).reshape(5, 6, WIDTH)),
    "normalised": (lambda: Convolutions(8), pictures(2)),
    "tied": (Tied, texts()),
    "one layer": (lambda: nn.Linear(20, 30), rows(3, 20)),
}


@pytest.mark.parametrize("case", CASES)
def test_every_operator_computes_the_same(case: str, tmp_path: Path) -> None:
    build, inputs = CASES[case]
    turn = iter(range(10**6))
    small, _ = compressed(unusual(build()), lambda group: SAMPLES[next(turn) % len(SAMPLES)])
    found = qc.export(small, tmp_path / "net.safetensors", inputs, format="torch")
    assert found.largest_difference < 1e-5 and found.nbytes == (tmp_path / "net.safetensors").stat().st_size
    assert found.nbytes == found.graph_bytes + sum(one.nbytes for one in found.tensors)
    again = layers.load(tmp_path / "net.safetensors", build())
    with torch.no_grad():
        pairs = zip(flat(again(inputs)), flat(small(inputs)), strict=True)
        assert all(torch.allclose(one, other, rtol=1e-5, atol=1e-6) for one, other in pairs)


def flat(outputs: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 16), st.data())
def test_bits_round_trip(bits: int, data: st.DataObject) -> None:
    codes = torch.tensor(data.draw(st.lists(st.integers(0, (1 << bits) - 1), max_size=40)), dtype=torch.int64)
    packed = layers.pack_bits(codes, bits)
    assert packed.numel() == -(-codes.numel() * bits // 8)
    assert layers.unpack_bits(packed, codes.numel(), bits).tolist() == codes.tolist()


def test_odd_widths_take_their_own_bits(tmp_path: Path) -> None:
    small, _ = compressed(unusual(nn.Linear(64, 64)), Quantize(3))
    found = qc.export(small, tmp_path / "net.safetensors", rows(4, 64), format="torch")
    assert [(one.form, one.nbytes) for one in found.tensors][0] == ("3 bits", 64 * 64 * 3 // 8 + 2 * 64)


def test_files_run_without_the_rest_of_the_library(tmp_path: Path) -> None:
    small, _ = compressed(unusual(nn.Sequential(nn.Linear(8, 6))), Quantize(4))
    qc.export(small, tmp_path / "net.safetensors", rows(2, 8), format="torch")
    code = (
        "import sys\n"
        "for name in ('numba', 'scipy', 'dimod', 'networkx', 'matplotlib'): sys.modules[name] = None\n"
        "import torch\nfrom qubo_compress import layers\n"
        f"net = layers.load({str(tmp_path / 'net.safetensors')!r}, torch.nn.Sequential(torch.nn.Linear(8, 6)))\n"
        "print(net(torch.ones(1, 8)).tolist())\n"
        "rooms = {name.split('.')[1] for name in sys.modules if name.startswith('qubo_compress.')}\n"
        "assert rooms <= {'_internal', 'errors', 'layers'}, rooms\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert torch.allclose(torch.tensor(json.loads(done.stdout)), small(torch.ones(1, 8)), atol=1e-6)


@pytest.mark.parametrize("operator", [Quantize(4), Svd(2), Keep()], ids=choice_name)
def test_another_architecture_is_refused(operator: Operator, tmp_path: Path) -> None:
    small, _ = compressed(unusual(nn.Sequential(nn.Linear(8, 6))), operator)
    qc.export(small, tmp_path / "net.safetensors", rows(2, 8), format="torch")
    for other in (nn.Sequential(nn.Linear(8, 7)), nn.Linear(8, 6), nn.Sequential(nn.LayerNorm(6)), nn.Sequential()):
        with pytest.raises(WrongModel, match="another architecture"):
            layers.load(tmp_path / "net.safetensors", other)


@pytest.mark.parametrize("operator", [Quantize(4), Keep()], ids=choice_name)
@pytest.mark.parametrize("build", [lambda: Convolutions(4), Tied], ids=["buffers", "tied"])
def test_architectures_without_memory(build: Callable[[], nn.Module], operator: Operator, tmp_path: Path) -> None:
    inputs = texts() if build is Tied else pictures(2)
    small, _ = compressed(unusual(build()), operator)
    qc.export(small, tmp_path / "net.safetensors", inputs, format="torch")
    with torch.device("meta"):
        blank = build()
    with torch.no_grad():
        assert torch.equal(layers.load(tmp_path / "net.safetensors", blank)(inputs), small(inputs))
    blank.register_buffer("more", torch.zeros(2, device="meta"), persistent=False)
    with pytest.raises(WrongModel, match="more has no data"):
        layers.load(tmp_path / "net.safetensors", blank)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_damaged_files_are_refused(data: st.DataObject) -> None:
    position, value = data.draw(st.integers(0, len(DAMAGED[0]) - 1)), data.draw(st.integers(0, 255))
    path = DAMAGED[1]
    path.write_bytes(DAMAGED[0][:position] + bytes([value]) + DAMAGED[0][position + 1 :])
    try:
        layers.load(path, nn.Linear(4, 4))
    except (CorruptArtifact, WrongModel):
        return  # a change of a code or of a step is another network


@pytest.mark.parametrize(
    "arguments", [{"in_features": 10**10}, {"in_features": 20_000, "out_features": 10**6}, {"device": "cpu"}]
)
def test_factors_get_memory_only_for_what_the_file_has(arguments: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    small, _ = compressed(unusual(nn.Linear(12, 12)), Svd(2))
    qc.export(small, path, rows(2, 12), format="torch")
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    described = json.loads(header["__metadata__"]["layers"])
    described["factors"][""][0]["arguments"] |= arguments
    header["__metadata__"]["layers"] = json.dumps(described)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises((CorruptArtifact, WrongModel)):
        layers.load(path, nn.Linear(12, 12))


DAMAGED: tuple[bytes, Path] = (b"", Path())


@pytest.fixture(autouse=True, scope="module")
def _damaged(tmp_path_factory: pytest.TempPathFactory) -> None:
    global DAMAGED
    path = tmp_path_factory.mktemp("damaged") / "net.safetensors"
    small, _ = compressed(unusual(nn.Linear(4, 4)), Quantize(3))
    qc.export(small, path, rows(2, 4), format="torch")
    DAMAGED = (path.read_bytes(), path)


def test_names_of_choices_are_in_the_table(tmp_path: Path) -> None:
    small, _ = compressed(unusual(nn.Linear(9, 5)), Quantize(5))
    found = qc.export(small, tmp_path / "net.safetensors", rows(2, 9), format="torch")
    assert choice_name(Quantize(5)) in str(found) and "nowhere" in str(found)
