"""The process that searches for minor embeddings."""

from __future__ import annotations

import itertools
from typing import Any

from qubo_compress.solvers.dwave import minor_embedding


def test_a_task_that_no_pipe_holds_arrives_whole(monkeypatch: Any) -> None:
    # The process is asked many times before it has started to read.
    monkeypatch.setattr(minor_embedding, "_POLL_SECONDS", 0.001)
    edges = list(itertools.combinations(range(200), 2))  # 200 kilobytes
    chains = minor_embedding.find_minor([(0, 1), (1, 2), (0, 2)], 3, edges, 0, 60.0, lambda: False)
    assert chains is not None and len(chains) == 3 and all(chains)


def test_it_stops_when_it_is_told() -> None:
    edges = list(itertools.combinations(range(12), 2))
    assert minor_embedding.find_minor([(0, 1)], 2, edges, 0, 60.0, lambda: True) is None
