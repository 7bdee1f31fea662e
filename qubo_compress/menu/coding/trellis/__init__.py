"""Dependent quantization: codes of two quantizers with one step, chosen by Viterbi searches down the columns."""

from __future__ import annotations
