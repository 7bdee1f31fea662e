"""Packages that only some features need: imported when used, named with the command that brings them when missing."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from types import ModuleType

from qubo_compress.errors import MissingDependency

_PACKAGES = {
    "dwave": "'qubo_compress[dwave]'",
    "dwave.samplers": "dwave-samplers",
    "homebase": "'qubo_compress[dwave]'",
    "matplotlib": "matplotlib",
    "minorminer": "'qubo_compress[dwave]'",
}
"""What installs modules that are imported in many places; for the rest, the importer names the extra."""


def require(module: str, extra: str = "") -> ModuleType:
    """Import a module when it is used.

    Args:
        module: its import name.
        extra: the extra of this package that brings it, where it is no dependency of the package itself.

    Raises:
        MissingDependency: when it is not installed; the message gives the command that installs it.

    Example:
        >>> require("json", "genetic").dumps([1])
        '[1]'
        >>> require("dwave.teleport")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        qubo_compress.errors.MissingDependency: dwave is needed ... run: pip install 'qubo_compress[dwave]'
    """
    try:
        with warnings.catch_warnings():
            # In notebooks, packages that import tqdm warn that ipywidgets is missing, which nothing here needs.
            warnings.filterwarnings("ignore", "IProgress not found")
            return importlib.import_module(module)
    except ImportError as cause:
        top = module.partition(".")[0]
        package = _PACKAGES.get(module) or _PACKAGES.get(top) or f"'qubo_compress[{extra}]'"
        raise MissingDependency(
            f"{top} is needed and cannot be imported ({cause}); run: pip install {package}"
        ) from cause


def installed(module: str) -> bool:
    """Whether a module can be found, without importing it.

    Example:
        >>> installed("json"), installed("jsonnnn")
        (True, False)
    """
    return importlib.util.find_spec(module) is not None
