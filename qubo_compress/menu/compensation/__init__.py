"""Codes and masks chosen by the error of the layer's outputs instead of its weights."""

from __future__ import annotations
