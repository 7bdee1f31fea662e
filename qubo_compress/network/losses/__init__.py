"""Losses of a network: classification, regression, and functions of the user's own."""

from __future__ import annotations
