"""Adaptive coding of integers: probabilities learn from the codes themselves, so no models are stored."""

from __future__ import annotations
