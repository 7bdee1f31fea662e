"""Menus: the choices for each group of weights, with their exact stored bytes."""

from __future__ import annotations

from typing import Any

from qubo_compress._internal import older_plug_ins
from qubo_compress._internal.registry import import_plug_ins
from qubo_compress.menu.families import choices_of, family_names, family_of
from qubo_compress.menu.menu import Menu
from qubo_compress.menu.operator import Operator, choice_name, operators, parse
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.network.discovery import discover
from qubo_compress.network.groups import Group, Kept, Layout, Member

__all__ = [
    "Group", "Kept", "Layout", "Member", "Menu", "Operator", "Stored",
    "choice_name", "choices_of", "discover", "family_names", "family_of", "names", "operators", "parse", "register",
]  # fmt: skip

register = operators.register


def names() -> tuple[str, ...]:
    """Names of all registered operators, sorted."""
    return operators.names()


def __getattr__(name: str) -> Any:
    return older_plug_ins.renamed(__name__, {"Packed": Stored})(name)


import_plug_ins(__name__, __path__)
