"""Plans that remove channels, from decisions and the choices of layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qubo_compress.plan import Plan
from qubo_compress.sensitivity.coupled.choices import RemovalChoices

if TYPE_CHECKING:
    from qubo_compress.sensitivity.table import SensitivityTable


def plan_of_channels(table: SensitivityTable, removals: RemovalChoices, chosen: Mapping[str, str]) -> Plan:
    """A plan that removes channels, with the layers' choices made for what is left of them.

    Args:
        table: with the layers in front of the decisions.
        removals: of that table.
        chosen: group -> choice, of all groups.
    """
    remainder = removals.without(removals.gone(table.group_names, chosen))
    asked = {name: chosen[name] for name in removals.layers}
    menu_names = tuple(name for name in table.menu_names if name == "keep" or name in asked.values())
    used, payloads, size = remainder.stored(asked, menu_names)
    decisions = {name: choice for name, choice in chosen.items() if name not in asked}
    return Plan(
        choices={**{name: used[name] for name in asked if name in used}, **decisions},
        bytes=size,
        original_bytes=table.layout.original_bytes,
        parameters=table.layout.parameters,
        predicted_loss=table.predict(chosen),
        menu_names=(*menu_names, *({*decisions.values()} - {*menu_names})),
        rule=table.layout.rule,
        weights=table.provenance.weights,
        payloads=payloads,
        removal=remainder.removal,
    )
