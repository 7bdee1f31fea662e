"""Whatever is required is used."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
ASKED_FOR = {"dwave-neal"}
"""In D-Wave's extra because users expect it: a deprecated package, whose samplers dwave.samplers has."""
SHARED = {"dwave-ocean-sdk": "dwave.system", "dwave-samplers": "dwave.samplers", "dwave-neal": "neal"}
"""Distributions that bring one module of many, and which."""


def used_modules() -> set[str]:
    """Every module that a file of the package imports, or names to be imported when it is used."""
    found = set()
    for path in (ROOT / "qubo_compress").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module)
            elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in ("require", "import_module"):
                    found.add(node.args[0].value)
    return found


def test_every_required_package_is_imported_somewhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["dwave"]
    required = {re.split(r"[^\w.-]", line)[0].lower() for line in lines}
    modules = used_modules()
    brought = packages_distributions()
    tops = {module.partition(".")[0] for module in modules} - {"dwave", "neal"}
    used = {name.lower().replace("_", "-") for top in tops for name in brought.get(top, ())}
    used |= {distribution for distribution, module in SHARED.items() if module in modules}
    assert required - used == ASKED_FOR
