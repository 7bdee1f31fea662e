"""Plans on disk: one file, whole, typed, and nothing else touched."""

from __future__ import annotations

import base64
import hashlib
import json
import tracemalloc
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from qubo_compress import Plan
from qubo_compress._internal.checked_json import checksum_of
from qubo_compress.errors import CorruptArtifact
from qubo_compress.plan import ProvenBound

PLAN = Plan(
    choices={"0.weight": "quantize(bits=2)", "0.bias": "keep", "2.weight[0]": "compensate(bits=3)"},
    bytes=1234,
    original_bytes=9876,
    parameters=2000,
    predicted_loss=0.1 + 0.2,
    menu_names=("keep", "quantize(bits=2)", "quantize(bits=4)", "compensate(bits=3)"),
    rule="layer",
    weights="0123456789abcdef",
    payloads={"2.weight[0]": bytes(range(256))},
)


def written_by_0_4(plan: Plan, path: Path) -> None:
    """As version 0.4 wrote plans: JSON without a checksum, and a file beside it for bytes made from data."""
    described = {
        f.name: getattr(plan, f.name) for f in fields(plan) if f.name not in ("payloads", "fits", "removal", "proof")
    }
    if plan.payloads:
        arrays = {name: np.frombuffer(data, dtype=np.uint8) for name, data in plan.payloads.items()}
        path.with_suffix(".safetensors").write_bytes(safetensors.numpy.save(arrays, metadata={"weights": plan.weights}))
        digest = hashlib.sha256()
        for name in sorted(plan.payloads):
            digest.update(f"{name} {len(plan.payloads[name])} ".encode() + plan.payloads[name])
        described["payload_digest"] = digest.hexdigest()[:32]
    path.write_text(json.dumps({"format": "qubo_compress plan 1", **described}, indent=1))


@pytest.mark.parametrize(
    "plan",
    [PLAN, replace(PLAN, payloads={}), replace(PLAN, predicted_loss=float("inf")), replace(PLAN, predicted_loss=0)],
)
def test_a_plan_comes_back_from_one_file(plan: Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert [item.name for item in tmp_path.iterdir()] == ["plan.json"]


def test_what_was_proven_comes_back_and_holds_for_smaller_limits_only(tmp_path: Path) -> None:
    proof = ProvenBound("exact", 0.25, 0.125, {"bytes": 900, "macs": 50})
    replace(PLAN, proof=proof).save(tmp_path / "plan.json")
    found = Plan.load(tmp_path / "plan.json").proof
    assert found == proof
    assert proof.holds(0.25, {"bytes": 900, "macs": 50}) and proof.holds(0.25, {"bytes": 90, "macs": 5, "cells": 1})
    assert not proof.holds(0.26, {"bytes": 900, "macs": 50})
    assert not proof.holds(0.25, {"bytes": 901, "macs": 50}) and not proof.holds(0.25, {"bytes": 900})


@pytest.mark.parametrize(
    "change",
    [{"solver": 3}, {"energy": True}, {"bound": float("nan")}, {"limits": [1]}, {"limits": {"bytes": -1}}, {"more": 1}],
)
def test_a_proof_of_another_kind_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    proof = {"solver": "exact", "energy": 0.5, "bound": 0.5, "limits": {"bytes": 9}} | change
    PLAN.save(tmp_path / "plan.json")
    values = {**json.loads((tmp_path / "plan.json").read_text()), "proof": proof}
    values.pop("checksum")
    (tmp_path / "plan.json").write_text(json.dumps({**values, "checksum": checksum_of(values)}))
    with pytest.raises(CorruptArtifact):
        Plan.load(tmp_path / "plan.json")


def test_no_other_file_is_touched(tmp_path: Path) -> None:
    (tmp_path / "digits.safetensors").write_bytes(b"the network of the user")
    for name, plan in (
        ("digits.json", PLAN),
        ("net.v1", PLAN),
        ("net.v2", replace(PLAN, payloads={"0.bias": b"other"})),
    ):
        plan.save(tmp_path / name)
    assert (tmp_path / "digits.safetensors").read_bytes() == b"the network of the user"
    assert Plan.load(tmp_path / "net.v1") == PLAN and Plan.load(tmp_path / "net.v2").payloads == {"0.bias": b"other"}
    PLAN.save(tmp_path / "any.safetensors")
    assert Plan.load(tmp_path / "any.safetensors") == PLAN


@pytest.mark.parametrize("plan", [PLAN, replace(PLAN, payloads={})])
def test_plans_of_version_0_4_are_still_read(plan: Plan, tmp_path: Path) -> None:
    written_by_0_4(plan, tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def test_a_damaged_pair_of_version_0_4_is_refused(tmp_path: Path) -> None:
    path, beside = tmp_path / "plan.json", tmp_path / "plan.safetensors"
    written_by_0_4(PLAN, path)
    whole = beside.read_bytes()
    beside.write_bytes(whole[:-3] + b"abc")
    with pytest.raises(CorruptArtifact, match="altered"):
        Plan.load(path)
    beside.write_bytes(whole[:-3])
    with pytest.raises(CorruptArtifact, match=r"plan\.safetensors.*truncated"):
        Plan.load(path)
    beside.unlink()
    with pytest.raises(CorruptArtifact, match="copy both files"):
        Plan.load(path)


WRONG: dict[str, list[Any]] = {
    "bytes": ["many", -5, 0, None, True, 1.5, 2**70],
    "original_bytes": [None, -1, "1"],
    "parameters": [[], -1],
    "predicted_loss": ["low", None, True, []],
    "choices": [[1], {"0.weight": 4}, {"0.weight": "quantize(bits=8)"}, "keep", None],
    "menu_names": ["keep", [1], ["keep", "keep", "quantize(bits=2)", "compensate(bits=3)"], None],
    "rule": [None, 3],
    "weights": [None, {}],
    "payloads": [None, [], {"0.bias": 3}, {"absent": ""}, {"0.bias": "not base64"}],
    "format": ["qubo_compress plan 3", None, 1],
    "more": [1],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
@pytest.mark.parametrize("older", [False, True])
def test_fields_of_other_types_are_refused(name: str, value: Any, older: bool, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    if older and name in ("payloads", "format"):
        return
    (written_by_0_4 if older else Plan.save)(PLAN, path)
    values = {**json.loads(path.read_text()), name: value}
    if not older:  # by somebody who knows how
        values.pop("checksum")
        values["checksum"] = checksum_of(values)
    path.write_text(json.dumps(values))
    with pytest.raises(CorruptArtifact, match=r"plan\.json"):
        Plan.load(path)


def test_what_was_edited_is_refused_and_how_it_is_laid_out_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    PLAN.save(path)
    text = path.read_text()
    for old, new in (("bits=2", "bits=4"), ("1234", "1235"), ("plan 2", "plan 1"), ('"checksum"', '"checksun"')):
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(CorruptArtifact, match="checksum|not known|lacks"):
            Plan.load(path)
    path.write_bytes(json.dumps(json.loads(text)).replace("}", "}\r\n").encode())
    assert Plan.load(path) == PLAN


HOSTILE = {
    "empty": b"", "list": b"[]", "text": b'"plan"', "number": b"1", "null": b"null", "no text": b"\xff\xfe\0",
    "deep lists": b"[" * 10**6, "deep objects": b'{"a":' * 10**5, "closed": b"[" * 10**5 + b"]" * 10**5,
    "long number": b'{"format": ' + b"1" * 10**6 + b"}", "quotes": b'"\\' * 10**5, "backslashes": b'"' + b"\\" * 10**5,
    "open text": b"{[" * 40 + b'"' + b'\\"' * 10**6,
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_text_is_refused_without_memory(case: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(HOSTILE[case])
    tracemalloc.start()
    with pytest.raises(CorruptArtifact, match=r"plan\.json"):
        Plan.load(tmp_path / "plan.json")
    assert tracemalloc.get_traced_memory()[1] < 60e6
    tracemalloc.stop()


def test_a_reason_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    values = json.loads((tmp_path / "plan.json").read_text())
    values["\x1b[2Jall is well" + "x" * 10**5] = 1
    values.pop("checksum")
    (tmp_path / "plan.json").write_text(json.dumps({**values, "checksum": checksum_of(values)}))
    with pytest.raises(CorruptArtifact) as caught:
        Plan.load(tmp_path / "plan.json")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


def test_payloads_are_text_that_other_programs_understand(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    stored = json.loads((tmp_path / "plan.json").read_text())
    assert base64.b64decode(stored["payloads"]["2.weight[0]"]) == bytes(range(256))
