"""Codes and masks chosen by the error of the layer's outputs rather than by that of its weights."""

from __future__ import annotations
