"""The peers: what is installed, what is run, with which settings, and where their authors advise them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.environments import TORCH

RESNET, EFFICIENT, GPT, VIT = "cifar10-resnet20", "imagenet-efficientnet-lite0", "text-gpt", "fashion-mnist-vit"
NETWORKS = (RESNET, EFFICIENT, GPT, VIT)
Settings = Mapping[str, Any]


def examples_of(network: str, asked: int) -> int:
    """How many calibration examples a network gets: there are 500 images for EfficientNet-Lite0, 300 of them tests."""
    return min(asked, 200) if network == EFFICIENT else asked


@dataclass(frozen=True)
class Peer:
    """One compressor.

    Attributes:
        name: in records and tables.
        packages: what pip installs; none: it runs in our own environment.
        script: in ``benchmarks/peers/tools``.
        settings: all that are tried, the largest file first.
        source: where its authors publish the method and advise settings.
        calibrates: it uses calibration examples.
        bisected: files shrink along ``settings``, of which only those nearest to the wanted ratios are run.
        networks: those that it is run on.
        own_file: the tool writes a file of its own, which holds everything after the repair too.
        seconds: of the processor that one run may take.
        note: for the tables.
    """

    name: str
    packages: tuple[str, ...]
    script: str
    settings: tuple[Settings, ...]
    source: str
    calibrates: bool = False
    bisected: bool = False
    networks: tuple[str, ...] = NETWORKS
    own_file: bool = False
    seconds: float = 3600.0
    note: str = ""


def _each(**values: Any) -> tuple[Settings, ...]:
    """Every combination of some settings."""
    return tuple(dict(zip(values, found, strict=True)) for found in itertools.product(*values.values()))


STEPS = tuple(0.01 * 2 ** (number / 8) for number in range(-16, 64))
"""From a step of 0.0025 to 2.3."""

PEERS = (
    Peer(
        "nncodec", (TORCH, "nncodec", "safetensors"), "by_nncodec.py", _each(qp=range(-50, 5)),
        "Becking et al., NNCodec, ICML 2023 workshop; README of d-becking/nncodec2: use_dq, nonweight_qp=-75",
        bisected=True, own_file=True, note="one step for the network, dependent quantization, DeepCABAC",
    ),
    Peer(
        "rounding, one step", (), "by_rounding.py", _each(step=STEPS),
        "Gish & Pierce 1968: one step for all", bisected=True, note="nearest codes",
    ),
    Peer(
        "rounding by rows", (), "by_rounding.py", _each(bits=(6, 5, 4, 3, 2)), "absolute maximum of each row",
        note="nearest codes, symmetric",
    ),
    Peer(
        "Deep Compression", ("numpy", "scikit-learn", "bitarray", "safetensors"), "by_deep_compression.py",
        (*_each(bits=(5, 4, 3, 2), sparsity=(0.0, 0.5)), *_each(bits=(4, 3, 2), sparsity=(0.3, 0.7))),
        "Han, Mao & Dally, ICLR 2016, without retraining",
        note="magnitudes, k-means from even values, Huffman codes",
    ),
    Peer(
        "MCT", (TORCH, "model-compression-toolkit", "torchvision", "safetensors"), "by_mct.py",
        _each(ratio=(6, 8, 10, 12, 14, 15.5)),
        "README and tutorials of sony/model_optimization: mixed precision of 2, 4, 8 bits by a budget of weights",
        calibrates=True, networks=(RESNET,),
    ),
    Peer(
        "AIMET AdaRound", (TORCH, "aimet-torch", "safetensors"), "by_aimet.py",
        _each(bits=(4, 3, 2), iterations=(15_000,)),
        "Nagel et al., ICML 2020; AIMET's guide: 15,000 iterations below 8 bits, 2,000 images", calibrates=True,
        networks=(RESNET,), seconds=7200,
    ),
    Peer(
        "Brevitas GPTQ", (TORCH, "brevitas", "safetensors"), "by_brevitas.py", _each(bits=(5, 4, 3, 2)),
        "Frantar et al., ICLR 2023; imagenet_classification/ptq of Xilinx/brevitas: gptq_mode, act_order",
        calibrates=True, networks=(RESNET, GPT),
    ),
    Peer(
        "NNCF", (TORCH, "nncf", "numpy", "safetensors"), "by_nncf.py",
        (*_each(mode=("int8_sym",)), *_each(mode=("int4_sym",), group=(64, -1))),
        "nncf.compress_weights: groups of 64 or whole rows, scale_estimation; its GPTQ is for OpenVINO models",
        calibrates=True, networks=(RESNET, GPT, VIT), note="convolutions always have 8 bits",
    ),
    Peer(
        "torchao", (TORCH, "torchao", "numpy", "safetensors"), "by_torchao.py",
        _each(bits=(5, 4, 3, 2), group=(32, -1)),
        "IntxWeightOnlyConfig, groups of 32 columns or whole rows, HQQ scales",
        networks=(GPT,), note="Linear and Embedding layers; the attention of torch's own encoder layers is not reached",
    ),
)  # fmt: skip


def named(name: str) -> Peer:
    """The peer of that name.

    Raises:
        LookupError: when there is none.
    """
    for peer in PEERS:
        if peer.name == name:
            return peer
    raise LookupError(f"there is no peer {name!r}; allowed: {', '.join(peer.name for peer in PEERS)}")
