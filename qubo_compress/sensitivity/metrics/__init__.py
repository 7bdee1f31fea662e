"""Metrics: ways to say what each choice and each pair of choices costs the network, one file or folder each."""

from __future__ import annotations

import importlib
import pkgutil

# A new metric is one new file or folder here and no edit elsewhere.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
