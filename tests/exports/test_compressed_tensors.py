"""Folders of the package compressed-tensors, read back by the package itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors import ModelCompressor, pack_to_int32
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

import qubo_compress as qc
from qubo_compress.errors import ExportRefused, StorageError
from qubo_compress.exports.compressed_tensors import in_words, out_of_words, signed_bits
from qubo_compress.menu.quantize import Quantize
from qubo_compress.menu.storage.portable import ScaledCodes
from qubo_compress.testing import registered_samples
from tests.exports.networks import Convolutions, Slices, Tied, pictures, rows, texts, unusual
from tests.exports.plans import compressed

SAMPLES = [one for one in registered_samples() if not one.activation_bits]


def read_back(folder: Path, net: nn.Module) -> nn.Module:
    """A network as the package fills it."""
    config = QuantizationConfig(**json.loads((folder / "config.json").read_text())["quantization_config"])
    apply_quantization_config(net, config)
    compressor = ModelCompressor(quantization_config=config)
    compressor.compress_model(net)
    net.load_state_dict(load_file(folder / "model.safetensors"))
    compressor.decompress_model(net)
    return net.eval()


def test_the_package_reads_what_every_operator_stores(tmp_path: Path) -> None:
    shapes = [(24 + n, 10 + n) for n in range(2 * len(SAMPLES))]
    turn = iter(range(10**6))
    small, _ = compressed(unusual(Slices(shapes)), lambda group: SAMPLES[next(turn) % len(SAMPLES)])
    inputs = rows(3, 200)
    found = qc.export(small, tmp_path / "net", inputs, format="compressed-tensors")
    assert found.largest_difference < 1e-6
    assert found.nbytes == sum(path.stat().st_size for path in (tmp_path / "net").iterdir())
    with torch.no_grad():
        pairs = zip(read_back(tmp_path / "net", Slices(shapes))(inputs), small(inputs), strict=True)
        assert all(torch.allclose(one, other, rtol=1e-5, atol=1e-6) for one, other in pairs)


def test_tied_embeddings(tmp_path: Path) -> None:
    small, _ = compressed(unusual(Tied()), Quantize(4))
    qc.export(small, tmp_path / "net", texts(), format="compressed-tensors")
    with torch.no_grad():
        assert torch.allclose(read_back(tmp_path / "net", Tied())(texts()), small(texts()), atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 70), st.integers(0, 99))
def test_words_are_those_of_the_package(bits: int, count: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    half = 1 << (bits - 1)
    codes = torch.randint(-half, half, (count, columns), generator=generator).to(torch.int8)
    words = in_words(ScaledCodes(codes, torch.ones(1)), bits)
    assert torch.equal(words, pack_to_int32(codes, bits))
    assert torch.equal(out_of_words(words, columns, bits), codes.int())
    assert signed_bits(ScaledCodes(codes, torch.ones(1))) <= bits


def test_other_layers_are_refused_by_name(tmp_path: Path) -> None:
    small, _ = compressed(unusual(Convolutions(8)), Quantize(4))
    with pytest.raises(ExportRefused, match=r"first\.weight belongs to a Conv2d"):
        qc.export(small, tmp_path / "net", pictures(2), format="compressed-tensors")
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    small, _ = compressed(nn.Linear(4, 4).eval(), Quantize(4))
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(StorageError, match="is there already"):
        qc.export(small, tmp_path, rows(2, 4), format="compressed-tensors")
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_transformers_loads_a_network_of_its_own(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=37, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=8, num_labels=3,
    )  # fmt: skip
    net = transformers.BertForSequenceClassification(config).eval()
    small, _ = compressed(net, lambda group: Quantize(4 if "attention" in group.name else 6))
    inputs = {"input_ids": texts(), "attention_mask": torch.ones(5, 6, dtype=torch.int64)}
    found = qc.export(small, tmp_path / "net", inputs, format="compressed-tensors")
    forms = {one.name: one.form for one in found.tensors}
    assert forms["bert.embeddings.word_embeddings.weight"] == "float32"
    assert forms["bert.encoder.layer.0.attention.self.query.weight"] == "4 bits"
    read = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "net").eval()
    with torch.no_grad():
        assert torch.allclose(read(**inputs).logits, small(**inputs).logits, rtol=1e-5, atol=1e-7)
