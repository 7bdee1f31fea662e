"""Groups: which tensors are compressed together, and why the others are not."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import qubo_compress as qc
from qubo_compress.network.discovery import discover


def reasons(model: nn.Module, rule: Any = "layer") -> dict[str, str]:
    return {kept.name: kept.reason for kept in discover(model, rule).kept}


def test_every_tensor_is_in_a_group_or_kept_with_a_reason(any_sample: Any) -> None:
    for rule in ("layer", "filter", "weight", lambda name, module: None if "head" in name else "all"):
        layout = discover(any_sample.model, rule)
        grouped = sum(group.nbytes for group in layout.groups)
        assert grouped + sum(kept.nbytes for kept in layout.kept) == layout.original_bytes
        assert all(kept.reason for kept in layout.kept)
        unique = {id(p): p for p in any_sample.model.parameters()}
        assert layout.parameters == sum(p.numel() for p in unique.values())
        assert len({group.name for group in layout.groups}) == len(layout.groups)


def test_the_rule_as_text_makes_the_same_groups_again(any_sample: Any) -> None:
    rules: list[Any] = [
        "layer", "filter", re.compile(r"(\w+)\.weight"), re.compile("WEIGHT", re.IGNORECASE), re.compile("layer"),
        re.compile("filter"), lambda name, module: None if "head" in name else type(module).__name__,
    ]  # fmt: skip
    for rule in rules:
        layout = discover(any_sample.model, rule)
        assert discover(any_sample.model, layout.rule) == layout, rule


def test_tied_weights_are_one_group(sample: Callable[[str], Any]) -> None:
    layout = discover(sample("tied").model)
    assert [group.name for group in layout.groups if group.kind == "weight"] == ["embedding.weight", "mix.weight"]
    assert layout.aliases["head.weight"] == "embedding.weight"


def test_buffers_that_are_not_persistent_are_not_counted(sample: Callable[[str], Any]) -> None:
    kept = reasons(sample("tuple-inputs").model)
    assert kept["mask"] == "it is a buffer" and "shift" not in kept


def test_groups_by_expression_and_by_function(sample: Callable[[str], Any]) -> None:
    model = sample("twice").model
    merged = discover(model, "^(?:first|head)")
    assert ["first.weight", "head.weight"] not in [[m.name for m in g.members] for g in merged.groups]
    merged = discover(model, "weight$")
    assert [[m.name for m in g.members] for g in merged.groups if g.kind == "weight"] == [
        ["first.weight", "shared.weight", "head.weight"]
    ]
    left = discover(
        model, lambda name, module: None if isinstance(module, nn.Linear) and module.in_features == 5 else "x"
    )
    assert {kept.name: kept.reason for kept in left.kept} == {"first.weight": "the caller's grouping leaves it alone"}


def test_filters_are_rows(sample: Callable[[str], Any]) -> None:
    layout = discover(sample("grouped-view-inplace").model, "filter")
    rows = [group for group in layout.groups if group.name.startswith("grouped.weight")]
    assert [group.members[0].rows for group in rows] == [(i, i + 1) for i in range(6)]
    assert all(group.members[0].part_shape == (1, 2, 3, 3) for group in rows)


@pytest.mark.parametrize(
    "rule, said", [("(", "regular expression"), (3, "regular expression"), (lambda name, module: 4, "a name or None")]
)
def test_wrong_rules_are_refused(rule: Any, said: str) -> None:
    with pytest.raises(qc.errors.InvalidMenu, match=said):
        discover(nn.Linear(2, 2), rule)


def test_models_without_weights_are_refused() -> None:
    with pytest.raises(qc.errors.InvalidModel, match="no parameters"):
        discover(nn.ReLU())
    with pytest.raises(qc.errors.InvalidModel, match="not initialised"):
        discover(nn.LazyLinear(3))


def test_an_unknown_kind_of_normalisation_is_not_folded() -> None:
    class Shifted(nn.BatchNorm1d):
        def __init__(self) -> None:
            super().__init__(4)
            self.extra = nn.Parameter(torch.ones(4))

    layout = discover(Shifted())
    offered = qc.Menu().offered(layout.groups[0], [Shifted().state_dict()[m.name] for m in layout.groups[0].members])
    assert list(offered) == ["keep"]


def test_a_normalisation_under_two_names_is_one_group() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(4)
            self.body = nn.Sequential(nn.Linear(4, 4), self.bn)

    layout = discover(Twice())
    assert "bn.weight" in {group.name for group in layout.groups}
    assert not layout.kept


@pytest.mark.parametrize("head_first", [True, False])
def test_a_weight_shared_with_an_embedding_is_measured_without_choices_that_watch_inputs(head_first: bool) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            if head_first:
                self.head = nn.Linear(8, 12, bias=False)
                self.words = nn.Embedding(12, 8)
            else:
                self.words = nn.Embedding(12, 8)
                self.head = nn.Linear(8, 12, bias=False)
            self.head.weight = self.words.weight

        def forward(self, words: torch.Tensor) -> torch.Tensor:
            return self.head(self.words(words).mean(1))

    torch.manual_seed(0)
    menu = qc.Menu.of("quantize", "compensate", "low-rank")
    data = [(torch.randint(12, (16, 5)), torch.arange(16) % 12)]
    table = qc.measure(Tied(), data, menu=menu, progress=False)
    assert "quantize(bits=4)" in table.choices[0]
    assert not any("compensate" in name or "lattice" in name or "whitened" in name for name in table.choices[0])
