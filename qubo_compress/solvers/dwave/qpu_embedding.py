"""How encoded problems fit onto a chip: the largest clique, chains for every size, and a cache on disk.

A dense problem of n bits needs a clique of n chains, and today's chips have cliques of 130 to 185. This is checked, and
problems that are too large are refused, before any search.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qubo_compress._internal.checked_json import read_checked, with_checksum
from qubo_compress._internal.files import write_atomically
from qubo_compress._internal.optional import require
from qubo_compress._internal.reader import read_whole, refused_as
from qubo_compress.errors import CorruptArtifact, StorageError

if TYPE_CHECKING:
    import networkx as nx

logger = logging.getLogger(__name__)

Chains = list[list[int]]
"""One list of qubits for each variable 0, 1, ..."""

USER_CACHE = "user"
"""Means the user's cache folder."""


class Cliques:
    """Cliques of every size on a chip's graph, computed all at once by ``minorminer.busclique``.

    For a single size, that library (0.2.22) takes all memory on some Zephyr graphs, such as 8 chains on Z2; and it
    pickles its table of all sizes to disk, which is never read here.

    Args:
        graph: of the chip's family (``graph.graph["family"]``), with only the working qubits and couplers.

    Example:
        >>> import dwave.graphs
        >>> cliques = Cliques(dwave.graphs.zephyr_graph(2, 4))
        >>> cliques.largest, len(cliques.chains(10)), cliques.chains(200)
        (24, 10, None)
    """

    def __init__(self, graph: nx.Graph) -> None:
        busgraph_cache: Any = require("minorminer.busclique").busgraph_cache

        class InMemory(busgraph_cache):  # type: ignore[misc]
            def _fetch_cache(self, dirname: str, compute: Callable[[], Any], force_write: bool = False) -> Any:
                return compute()

        self._table = InMemory(graph, seed=0)

    @property
    def largest(self) -> int:
        """The number of chains in the largest clique."""
        return len(self._table.largest_clique())

    def chains(self, size: int) -> Chains | None:
        """Chains of a clique with the shortest known longest chain; None if the chip has none of that size."""
        found = self._table.find_clique_embedding(size)
        return [[int(qubit) for qubit in found[v]] for v in range(size)] if found else None


def qubits_needed(degrees: npt.ArrayLike, couplers_per_qubit: int) -> int:
    """A lower bound on the qubits of any minor embedding.

    A chain of c qubits is at least a tree, which leaves c d - 2 (c - 1) couplers to the outside if a qubit has at most
    d; so a variable coupled to k others needs c >= (k - 2) / (d - 2).

    Args:
        degrees: number of variables that each variable is coupled to.
        couplers_per_qubit: d, the most that a qubit has.

    Example:
        >>> qubits_needed([30, 30, 3], couplers_per_qubit=16)
        5
    """
    outside = np.asarray(degrees, dtype=np.float64) - 2.0
    return int(np.maximum(1, np.ceil(outside / max(1, couplers_per_qubit - 2))).sum())


def may_fit(graph: nx.Graph, degrees: npt.ArrayLike) -> bool:
    """Whether a search for a minor embedding may succeed: enough qubits, and not as dense as a clique.

    The first condition is necessary. The second is experience: if more than half of all pairs are coupled, no embedding
    is found that a clique of the same size would not give.
    """
    counts = np.asarray(degrees, dtype=np.int64)
    most = max((degree for _, degree in graph.degree), default=0)
    enough = qubits_needed(counts, most) <= len(graph) and counts.sum() // 2 <= graph.number_of_edges()
    return bool(enough and counts.sum() <= 0.5 * counts.size * (counts.size - 1))


def joins(graph: nx.Graph, chains: Chains, couplings: Sequence[tuple[int, int]] | None) -> bool:
    """Whether chains are an embedding: working qubits, disjoint, connected, with a coupler for every coupling.

    Args:
        graph: the chip's.
        chains: to be checked.
        couplings: pairs of variables; None for all pairs.
    """
    qubits = [qubit for chain in chains for qubit in chain]
    if len(set(qubits)) != len(qubits) or not all(chain and graph.has_node(q) for chain in chains for q in chain):
        return False
    embedding = require("dwave.embedding")
    try:
        structure = embedding.EmbeddedStructure(graph.edges, dict(enumerate(chains)))
    except embedding.exceptions.EmbeddingError:
        return False
    if couplings is None:
        couplings = [(u, v) for u in range(len(chains)) for v in range(u)]
    return all(any(True for _ in structure.interaction_edges(u, v)) for u, v in couplings)


def pattern_of(variables: int, couplings: npt.ArrayLike) -> str:
    """A short name for a pattern of couplings, whatever their strengths."""
    pairs = np.sort(np.asarray(couplings, dtype=np.int64).reshape(-1, 2), axis=1)
    ordered = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    return f"minor-{variables}-{hashlib.sha256(ordered.tobytes()).hexdigest()[:24]}"


@dataclass(frozen=True)
class EmbeddingCache:
    """A cache of embeddings: one JSON file with a checksum per working graph.

    Working graphs change under the same solver name, some a dozen times a year, so the key is ``name;graph_id``.
    Embeddings are checked against the graph before use. Files of version 0.4 had no checksum and are replaced.

    Args:
        folder: where the files are; None for no cache, :data:`USER_CACHE` for the user's cache folder.
        identity: of the working graph.

    Example:
        >>> import tempfile
        >>> cache = EmbeddingCache(tempfile.mkdtemp(), "Advantage2_system1;graph_id=01d07086e1")
        >>> cache.put("clique-2", [[0, 1], [2]])
        >>> cache.get("clique-2"), EmbeddingCache(cache.folder, "Advantage2_system1;graph_id=02").get("clique-2")
        ([[0, 1], [2]], None)
    """

    folder: str | Path | None
    identity: str

    @property
    def path(self) -> Path | None:
        """The file of this graph, or None without a cache."""
        if self.folder is None:
            return None
        folder = user_cache_folder() if self.folder == USER_CACHE else Path(self.folder)
        return folder / f"{hashlib.sha256(self.identity.encode()).hexdigest()[:32]}.json"

    def get(self, key: str) -> Any:
        """The value cached under a key for this graph, or None."""
        return self._read().get(key)

    def put(self, key: str, value: Any) -> None:
        """Add a value to the cache; if the folder cannot be written, only warn."""
        path = self.path
        if path is None:
            return
        text = with_checksum({"identity": self.identity, "entries": {**self._read(), key: value}})
        try:
            write_atomically(path, lambda handle: handle.write(text))
        except StorageError as failure:
            logger.warning("embedding not kept for the next time: %s", failure)

    def _read(self) -> Mapping[str, Any]:
        path = self.path
        if path is None or not path.exists():
            return {}
        try:
            with refused_as(path, "a file of embeddings", "they are searched again"):
                content = read_checked(read_whole(path, "a file of embeddings"))
                entries = content["entries"] if content["identity"] == self.identity else {}
                if not isinstance(entries, dict):
                    raise ValueError("it holds no entries")
                return entries
        except (CorruptArtifact, StorageError) as failure:
            logger.warning("%s", failure)
            return {}


def user_cache_folder() -> Path:
    """The user's cache folder for embeddings, by the rules of the operating system."""
    return Path(require("homebase").user_cache_dir("qubo_compress", "qubo_compress", create=False)) / "embeddings"


def is_chains(value: Any, size: int) -> bool:
    """Whether a value from a file has the form of ``size`` chains."""
    return (
        isinstance(value, list)
        and len(value) == size
        and all(isinstance(chain, list) and chain and all(isinstance(q, int) for q in chain) for chain in value)
    )


def graph_digest(graph: nx.Graph) -> str:
    """A name for an unnamed graph, from its qubits and couplers."""
    edges = np.sort(np.array(list(graph.edges), dtype=np.int64).reshape(-1, 2), axis=1)
    ordered = edges[np.lexsort((edges[:, 1], edges[:, 0]))]
    nodes = np.sort(np.array(list(graph.nodes), dtype=np.int64))
    return hashlib.sha256(nodes.tobytes() + ordered.tobytes()).hexdigest()[:16]


def longest(chains: Chains) -> int:
    """The number of qubits in the longest chain."""
    return max((len(chain) for chain in chains), default=0)
