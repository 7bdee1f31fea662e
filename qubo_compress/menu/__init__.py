"""Menus: what can be done to each group of weights, at exactly how many stored bytes."""

from __future__ import annotations

import importlib
import pkgutil

from qubo_compress.menu.families import choices_of, family_names, family_of
from qubo_compress.menu.groups import Group, Kept, Layout, Member, discover
from qubo_compress.menu.menu import Menu
from qubo_compress.menu.operator import Operator, Packed, choice_name, operators, parse

__all__ = [
    "Group", "Kept", "Layout", "Member", "Menu", "Operator", "Packed",
    "choice_name", "choices_of", "discover", "family_names", "family_of", "names", "operators", "parse", "register",
]  # fmt: skip

register = operators.add


def names() -> tuple[str, ...]:
    """Names of all registered operators, sorted."""
    return operators.names()


# A new operator is one new file in this folder and no edit elsewhere.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
