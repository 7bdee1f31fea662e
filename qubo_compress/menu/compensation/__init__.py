"""Codes and masks chosen by the error of a layer's outputs instead of its weights."""

from __future__ import annotations
