"""Packages that only some solvers need: imported when used, named with the command that brings them when missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from qubo_compress.errors import MissingDependency


def require(module: str, extra: str) -> ModuleType:
    """Import a module that an extra of this package brings.

    Args:
        module: its import name.
        extra: the extra that brings it.

    Raises:
        MissingDependency: when it is not installed; the message is the command that installs it.

    Example:
        >>> require("json", "genetic").dumps([1])
        '[1]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        raise MissingDependency(
            f"{module.partition('.')[0]} is needed and cannot be imported ({cause}); "
            f"run: pip install 'qubo_compress[{extra}]'"
        ) from cause
