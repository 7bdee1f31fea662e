"""Methods of others, as published, to be compared with."""

from __future__ import annotations
