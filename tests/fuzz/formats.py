"""The files that the library reads: samples, readers, and files crafted with a right checksum."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from scipy import sparse
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress import errors
from qubo_compress._internal.arrays import array_writer
from qubo_compress._internal.checked_json import checksum_of
from qubo_compress.menu.storage.file_format import file_digest, pack_names
from qubo_compress.sensitivity.cache import UnitCache
from qubo_compress.sensitivity.function_signature import same_function
from tests.fuzz.damage import NUMBERS, damaged, random_edits
from tests.fuzz.form import Format, digest_of, hostile_value, replaced_within
from tests.fuzz.solver_formats import certificates, embeddings, services

CHOICES = (
    "quantize(bits=2)", "quantize(bits=5,sparsity=0.5)", "prune(sparsity=0.6)", "fold(bits=8)", "cast(bits=16)",
    "digital(bits=4)", "analog(cells=2)", "coded(of='quantize(bits=3)')", "coded(of='prune(sparsity=0.5)')",
    "svd(rank=2,bits=4)", "tucker(ranks=(2,2))", "frequency(bands=3,bits=4)", "frequency(sparsity=0.5,bits=4)",
    "trellis(step=0.5)", "coded(of='trellis(step=1.0)')", "coded(of='lattice(step=1.0)')",
)  # fmt: skip

REFUSED_NETWORKS = (errors.CorruptArtifact, errors.WrongModel)
MISMATCH = (errors.CacheMismatch,)


class Network(nn.Module):
    """Convolution, linear layer, normalisation, bias, kept tensors and extra state."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 12)
        self.register_buffer("empty", torch.empty(0))
        self.state: Any = {"steps": 3, "shift": torch.zeros(2)}

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


@cache
def network() -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network().eval()


def _read_network(path: Path) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = qc.load(path, network()).state_dict()
    return digest_of(*(v.numpy() if isinstance(v, Tensor) else v for v in state.values()), list(state))


def _hostile_text(chance: random.Random) -> str:
    deep, bomb = chance.choice((100, 3000, 10**5)), chance.choice((2**12, 2**22))
    return chance.choice(
        (
            "",
            "\0",
            "[" * deep,
            "(" * deep,
            "custom:",
            "custom:" + packed(b"[" * deep),
            "custom:" + packed(b"a" * bomb),
            packed(b"keep\n" * (bomb // 8)),
            packed(b"x" * bomb),
            "filter",
            "layer",
            "(weight)",
            "((a+)+)+",
            r"(\w+\.?)+$x",
            "(.*)*(.*)*z",
            "(.*)(.*)(.*)(.*)z",
            "(t|t|e|.)" * chance.choice((3, 30)) + "#",
            "custom:e30=",
            "custom:" + packed(json.dumps({"conv.weight": chance.choice(["a", 1, None, [], "b" * deep])}).encode()),
            "\ud800",
            "9" * deep,
        )  # fmt: skip
    )


def packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode()


def _crafted_network(chance: random.Random, sample: bytes) -> bytes:
    length = int.from_bytes(sample[:8], "little")
    header = json.loads(sample[8 : 8 + length])
    said, payload = header["__metadata__"], sample[8 + length :]
    change = chance.choice(("payload", "payload", "menu", "text"))
    if change == "payload":
        payload = damaged(payload, random_edits(chance), sample)
    elif change == "menu":
        strange = (
            "fold(bits=16)", "quantize(bits=" + "-" * 900 + "3)", "quantize(bits=((((3", "svd(share=" + "9" * 400 + ")",
            "coded(of='coded(of=1)')", "tensor_train(ranks=(2,2,2))", "lattice(step=1.0)", "digital(bits=10)", "keep",
            "prune(sparsity=[])", "analog(cells=10**9)", "", "cp(rank=65535)", "woodfisher(sparsity=0.7,bits=4)",
            "x" * 10**4, "digital(bits=10,copies=(0,)*10)",
        )  # fmt: skip
        said["menu"] = pack_names([chance.choice((*strange, *CHOICES)) for _ in range(chance.choice((1, 20, 300)))])
    else:
        said[chance.choice(("menu", "groups", "model", "format", "more"))] = _hostile_text(chance)
    entry = {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}
    if chance.random() < 0.2:
        entry[chance.choice(tuple(entry))] = chance.choice(([1] * 65, "F8_E8M0", [], [0, 2**63], [-1], None, "U8", {}))
    said["digest"] = ""
    said["digest"] = file_digest(said, payload)
    text = json.dumps({"__metadata__": said, "payload": entry}).encode()
    return len(text).to_bytes(8, "little") + text + payload


def _plan() -> qc.Plan:
    return qc.Plan(
        choices={"conv.weight": "quantize(bits=2)", "norm.weight": "keep", "head.weight": "compensate(bits=3)"},
        bytes=1234, original_bytes=9876, parameters=2000, predicted_loss=0.3,
        menu_names=("keep", "quantize(bits=2)", "quantize(bits=4)", "compensate(bits=3)"), rule="layer", weights="0123",
        payloads={"head.weight": bytes(range(64))},
    )  # fmt: skip


def _read_plan(path: Path) -> object:
    plan = qc.Plan.load(path)
    return digest_of(
        sorted(plan.choices.items()), replace(plan, choices={}, payloads={}), sorted(plan.payloads.items())
    )


def _crafted_plan(chance: random.Random, sample: bytes) -> bytes:
    values = json.loads(sample)
    values.pop("checksum", None)
    name = chance.choice((*values, "more"))
    inner = values.get(name)
    if isinstance(inner, dict) and inner and chance.random() < 0.5:
        inner[chance.choice((*inner, "other"))] = hostile_value(chance)
    elif isinstance(inner, list) and inner and chance.random() < 0.5:
        inner[chance.randrange(len(inner))] = hostile_value(chance)
    else:
        values[name] = hostile_value(chance)
    if chance.random() < 0.9:
        values["checksum"] = checksum_of(values)
    return json.dumps(values).encode()


def _older_plan(payloads: Mapping[str, bytes] | None = None) -> bytes:
    """As version 0.4 wrote plans; payloads were in a file beside it."""
    plan = _plan()
    said = {name: getattr(plan, name) for name in _OLDER_FIELDS}
    if payloads is not None:
        digest = hashlib.sha256()
        for name, data in sorted(payloads.items()):
            digest.update(f"{name} {len(data)} ".encode() + data)
        said["payload_digest"] = digest.hexdigest()[:32]
    return json.dumps({"format": "qubo_compress plan 1", **said}).encode()


_OLDER_FIELDS = (
    "choices", "bytes", "original_bytes", "parameters", "predicted_loss", "menu_names", "rule", "weights",
)  # fmt: skip


def _older_payloads() -> bytes:
    arrays = {name: np.frombuffer(data, np.uint8) for name, data in _plan().payloads.items()}
    return safetensors.numpy.save(arrays, metadata={"weights": "0123"})


def _read_pair(path: Path) -> object:
    (path.parent / "pair.json").write_bytes(_older_plan(_plan().payloads))
    return _read_plan(path.parent / "pair.json")


def _crafted_tensors(chance: random.Random, sample: bytes) -> bytes:
    length = int.from_bytes(sample[:8], "little")
    header = replaced_within(chance, json.loads(sample[8 : 8 + length]))
    text = json.dumps(header).encode()
    claimed = chance.choice((len(text), len(text), *NUMBERS))
    return (claimed % 2**64).to_bytes(8, "little") + text + sample[8 + length :]


def _problems() -> tuple[qc.ChoiceProblem, ...]:
    dense = np.zeros((12, 12))
    for v, w in ((0, 5), (1, 9), (2, 11), (4, 8), (7, 10)):
        dense[v, w] = dense[w, v] = v + w
    pairs = qc.ChoiceProblem(
        linear=np.arange(12.0), group_offsets=[0, 4, 8, 12], costs=np.ones((2, 12), dtype=int), limits=[9, 8],
        pairs=sparse.csr_array(dense),
    )  # fmt: skip
    return pairs, qc.ChoiceProblem.random("dense", groups=4, choices=3, seed=0)


def _read_problem(path: Path) -> object:
    found = qc.ChoiceProblem.load(path)
    found.energies(np.zeros((6, found.num_groups), dtype=int))  # scipy's own code sees the pairs
    arrays = (found.linear, found.group_offsets, found.costs, found.limits, found.fixed_costs)
    pairs = () if found.pairs is None else (found.pairs.data, found.pairs.indices, found.pairs.indptr)
    names = (found.group_names, found.choice_names, found.budget_names, found.constant, found.factor is None)
    return digest_of(*arrays, *pairs, *names, *([] if found.factor is None else [found.factor]))


def _hostile_array(chance: random.Random, array: np.ndarray) -> np.ndarray:
    change = chance.choice(("value", "type", "shape", "length", "text"))
    if change == "value" and array.size and array.dtype.kind in "if":
        changed = array.astype(np.int64 if array.dtype.kind == "i" else array.dtype).copy()
        number = chance.choice(NUMBERS) % 2**63 * chance.choice((1, -1))
        changed.reshape(-1)[chance.randrange(changed.size)] = number
        return changed
    if change == "type":
        return array.astype("U3" if array.dtype.kind == "U" else chance.choice(("f4", "i1", "u8", "?", "U3")))
    if change == "shape":
        return array.reshape(chance.choice(((1, *array.shape), (*array.shape, 1), (-1,))))
    if change == "length":
        return np.concatenate([array.reshape(-1)] * chance.choice((0, 2, 50)) or [array.reshape(-1)[:0]])
    return np.array(["x" * chance.choice((1, 1000))] * chance.choice((1, 12, 400)))


def _header(chance: random.Random) -> bytes:
    kinds, shapes = (
        ("<f8", "|V0", "|O", "<U0", "<U999999999", "<i8", "{}"),
        ("(99999999999,)", "(-1,)", "()", "(1," * 70, "(0,)"),
    )
    text = f"{{'descr': '{chance.choice(kinds)}', 'fortran_order': False, 'shape': {chance.choice(shapes)}, }}"
    text = chance.choice((text, text, "(" * 4000, "-" * 9000)) + "\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode()


def _crafted_arrays(chance: random.Random, sample: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(sample)) as archive:
        said = json.loads(archive.comment or b"{}")
        members = {name: archive.read(name) for name in archive.namelist()}
    name = chance.choice(tuple(members))
    if chance.random() < 0.6:  # whole and with a right checksum
        arrays = {stem.removesuffix(".npy"): np.load(io.BytesIO(data)) for stem, data in members.items()}
        stem = name.removesuffix(".npy")
        arrays[chance.choice((stem, stem, stem, "more"))] = _hostile_array(chance, arrays[stem])
        file = io.BytesIO()
        said.pop("checksum", None)
        array_writer(arrays, said, packed=chance.random() < 0.5)(file)
        return file.getvalue()
    method = chance.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_LZMA))
    bomb = chance.choice((2**16, 2**20, 2**25)) if method == zipfile.ZIP_DEFLATED else 2**16
    members[name] = chance.choice((_header(chance), _header(chance) + bytes(bomb), bytes(bomb), b""))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for stem, data in members.items():
            archive.writestr(stem, data)
    return damaged(file.getvalue(), random_edits(chance) if chance.random() < 0.3 else [], sample)


_SIGNATURE = {"weights": "12", "data": "34"}
_UNIT = "losses_00001"
_FUNCTION = {"outputs": np.arange(12.0).reshape(3, 4), "losses": np.arange(3.0), "tolerance": np.array(1e-4)}


def _read_unit(path: Path) -> object:
    (path.parent / "signature.json").write_text(json.dumps(_SIGNATURE))
    found = UnitCache(path.parent, _SIGNATURE).get(_UNIT, dict)
    return digest_of(*found.values(), list(found))


def _read_signature(path: Path) -> object:
    UnitCache(path.parent, _SIGNATURE)
    return "the same"  # or it would have been refused


def _read_function(path: Path) -> object:
    (path.parent / "signature.json").write_text(json.dumps(_SIGNATURE))
    if not UnitCache(path.parent, _SIGNATURE).agrees("function", _FUNCTION, same_function):
        raise errors.CacheMismatch(f"{path} is of another function")
    return "the same"


def _crafted_text(chance: random.Random, sample: bytes) -> bytes:
    value = {**_SIGNATURE, chance.choice(("weights", "more")): hostile_value(chance)}
    return json.dumps(chance.choice((value, hostile_value(chance)))).encode()


def _samples() -> dict[str, tuple[bytes, ...]]:
    """Whole files of every format, as the library writes them."""
    net, found = network(), {}
    batches = [(torch.zeros(8, 3, 6, 6), torch.arange(8) % 12)]
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder, chance = Path(name), random.Random(0)
        networks = []
        for rule in ("layer", "(weight)", "filter", lambda name, module: "all" if "head" in name else name):
            menu = qc.Menu([qc.menu.parse(choice) for choice in CHOICES])
            table = qc.measure(net, batches, menu, "magnitude", groups=rule, progress=False)
            for _ in range(3):
                picks = zip(table.group_names, table.choices, strict=True)
                qc.save(table.plan({group: chance.choice(names) for group, names in picks}).apply(net), folder / "net")
                networks.append((folder / "net").read_bytes())
        found["networks"] = tuple(networks)
        _plan().save(folder / "plan")
        replace(_plan(), payloads={}, rule="filter").save(folder / "other")
        found["plans"] = ((folder / "plan").read_bytes(), (folder / "other").read_bytes())
        problems, older = [], []
        for problem in _problems():
            problem.save(folder / "problem")
            problems.append((folder / "problem").read_bytes())
            with np.load(folder / "problem") as stored:
                np.savez_compressed(folder / "older.npz", **dict(stored))
            older.append((folder / "older.npz").read_bytes())
        found["problems"], found["older problems"] = tuple(problems), tuple(older)
        cache = UnitCache(folder / "cache", _SIGNATURE)
        cache.get(
            _UNIT, lambda: {"linear": np.arange(9.0), "features": np.ones((9, 4), np.float32), "is": np.arange(3) == 1}
        )
        found["units"] = ((folder / "cache" / f"{_UNIT}.npz").read_bytes(),)
        cache.agrees("function", _FUNCTION, same_function)
        found["functions"] = ((folder / "cache" / "function.signature").read_bytes(),)
        found["signatures"] = ((folder / "cache" / "signature.json").read_bytes(),)
    return found


@cache
def formats() -> dict[str, Format]:
    """All formats by name."""
    samples = _samples()
    found = (
        Format("network", samples["networks"], _read_network, _crafted_network, refusals=REFUSED_NETWORKS),
        Format("plan", samples["plans"], _read_plan, _crafted_plan),
        Format("plan of 0.4", (_older_plan(),), _read_plan, _crafted_plan, checked=False),
        Format("payloads of 0.4", (_older_payloads(),), _read_pair, _crafted_tensors, name_of_file="pair.safetensors"),
        Format("problem", samples["problems"], _read_problem, _crafted_arrays),
        Format("problem of 0.4", samples["older problems"], _read_problem, _crafted_arrays, checked=False),
        Format(
            "unit of a cache",
            samples["units"],
            _read_unit,
            _crafted_arrays,
            name_of_file=f"{_UNIT}.npz",
            refusals=MISMATCH,
        ),
        Format(
            "signature",
            samples["signatures"],
            _read_signature,
            _crafted_text,
            name_of_file="signature.json",
            refusals=MISMATCH,
        ),
        Format(
            "function of a cache",
            samples["functions"],
            _read_function,
            _crafted_arrays,
            name_of_file="function.signature",
            refusals=MISMATCH,
        ),
        embeddings(),
        certificates(),
        services(),
    )
    return {form.name: form for form in found}
