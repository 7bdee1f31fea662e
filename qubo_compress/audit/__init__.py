"""What the compressed network forgot."""

from __future__ import annotations

from qubo_compress.audit.audit import AuditReport, ClassChange, audit

__all__ = ["AuditReport", "ClassChange", "audit"]
