"""The last choice between plans: repaired, then with layers stored again."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
from torch import nn

import qubo_compress as qc
from qubo_compress.calibration.examples import read_examples
from qubo_compress.pipeline import finals
from qubo_compress.pipeline.compress import TRIAL
from qubo_compress.plan import compression_of
from qubo_compress.recovery import reconstruction
from tests.recovery.test_reconstruction import made_chain

MENU = qc.Menu([f"coded(of='trellis(step={step})')" for step in (0.5, 1.0, 2.0)] + ["fold(bits=16)", "cast(bits=16)"])


def compressed(model: nn.Module, batches: Any, **options: Any) -> qc.CompressionResult:
    """To about a sixth, by squared errors."""
    pairs = [(batch, model(batch).detach()) for batch in batches]
    return qc.compress(
        model, pairs, qc.Budget(bytes=1_000), menu=MENU, loss="squared-error", progress=False, solver="greedy",
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("seed", [0, 3, 8])
def test_the_network_returned_is_the_best_of_all_that_were_judged(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[float] = []
    compare = finals.HeldOut.compare

    def noted(self: Any, network: nn.Module) -> Any:
        found = compare(self, network)
        judged.append(found.measure)
        return found

    monkeypatch.setattr(finals.HeldOut, "compare", noted)
    found = compressed(*made_chain(seed))
    taken = found.recovered_comparison if found.recovery_kept else found.applied_comparison
    assert taken is not None and taken.measure <= min(judged) + 1e-9
    assert found.taken.chosen.plan == found.plan


@pytest.mark.parametrize("examples", [100, 2 * TRIAL])
def test_several_plans_are_stored_again(examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few examples, those that are tried are all; with many, the best plan is stored again with all."""
    counts: list[int] = []
    stored_again = reconstruction.reconstructed

    def counting(small: nn.Module, carried: Any, teacher: nn.Module, given: Any, *rest: Any) -> Any:
        counts.append(given.count)
        return stored_again(small, carried, teacher, given, *rest)

    monkeypatch.setattr(importlib.import_module("qubo_compress.recovery.recover"), "reconstructed", counting)
    model, batches = made_chain(0)
    many = torch.cat(batches * 4)[:examples]
    found = compressed(model, [many])
    repaired = sum(one.repaired is not None for one in found.taken.candidates)
    tried = min(1 + finals.RUNNERS_UP, repaired)
    measured = found.table.provenance.examples
    assert counts == [min(measured, TRIAL)] * tried + [measured] * (measured > TRIAL)


def test_a_plan_that_is_best_after_it_is_taken_from_behind() -> None:
    """A runner-up that reconstruction makes perfect wins over the first plan, which it ruins; ruins alone never win."""
    model, batches = made_chain(0)
    plain = compressed(model, batches, reconstruct=False)
    judge = finals.HeldOut.of(
        model, read_examples([(batch, model(batch).detach()) for batch in batches]), "squared-error"
    )
    final = finals.Final(plain.taken, plain.compressed_model, plain.model)
    ruin = copy.deepcopy(model)
    ruin.rest[0].weight.data.zero_()
    networks = [ruin, model, ruin]
    found = finals.judged_reconstructed(final, judge, lambda _: networks.pop(0))
    assert found.repaired is model and found.round.winner != plain.taken.winner
    assert found.reconstructed is not None and found.reconstructed.measure == 0
    assert compression_of(found.applied).plan == found.round.plan
    assert finals.judged_reconstructed(final, judge, lambda _: ruin) is final
