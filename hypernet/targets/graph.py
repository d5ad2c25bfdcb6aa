"""The graph of a target: its operations, in the order of the data, which tensors they read, how far apart they are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Source = Literal["export", "fx", "chain"]

MAX_NODES = 20_000  # distances between all pairs: 800 MB in memory at this size
_ROWS = 1024  # of the distances, found at once


@dataclass(frozen=True, slots=True)
class Node:
    """One operation, named as torch does without overload (`aten.linear`), or `input`, `bias`, `unused`.

    `bias` comes after the operation that it is added by; `unused` is a tensor that nothing reads, without edges.
    `shape` is that of the tensor it reads where it reads one, else of what it puts out without the batch axis.
    """

    op: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Graph:
    """Nodes sorted so that every edge (from, to) goes forward; `node_of` has a node for each slot of the spec.

    A tensor that is read several times belongs to the node that reads it first. `source`: how the graph was captured;
    `fx` and `chain` are the fallbacks, coarser.
    """

    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int], ...]
    node_of: tuple[int, ...]
    source: Source = "export"

    @property
    def sound(self) -> bool:
        """Whether edges go forward and `node_of` points to nodes, as everything here takes for granted."""
        count = len(self.nodes)
        forward = all(0 <= start < stop < count for start, stop in self.edges)
        return forward and all(0 <= node < count for node in self.node_of)

    @cached_property
    def in_degrees(self) -> NDArray[np.int64]:
        """How many edges end at each node, (nodes,)."""
        return np.bincount([stop for _, stop in self.edges], minlength=len(self.nodes)).astype(np.int64)

    @cached_property
    def out_degrees(self) -> NDArray[np.int64]:
        """How many edges start at each node, (nodes,)."""
        return np.bincount([start for start, _ in self.edges], minlength=len(self.nodes)).astype(np.int64)

    @cached_property
    def distances(self) -> NDArray[np.int16]:
        """Shortest paths along the edges, (nodes, nodes): 0 on the diagonal and where there is no path."""
        from scipy.sparse import csr_matrix
        from scipy.sparse.csgraph import dijkstra

        count = len(self.nodes)
        ends = np.array(self.edges, dtype=np.int64).reshape(-1, 2)  # (edges, 2)
        adjacency = csr_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
        told = np.zeros((count, count), dtype=np.int16)
        for first in range(0, count, _ROWS):
            rows = np.arange(first, min(first + _ROWS, count))
            found = dijkstra(adjacency, indices=rows, unweighted=True)  # (rows, nodes)
            told[rows] = np.where(np.isfinite(found), found, 0)
        return told

    @cached_property
    def from_input(self) -> NDArray[np.int16]:
        """The shortest path from any input to each node, (nodes,); 0 for inputs and where there is none."""
        inputs = [number for number, node in enumerate(self.nodes) if node.op == "input"]
        if not inputs:
            return np.zeros(len(self.nodes), dtype=np.int16)
        far = np.iinfo(np.int16).max
        paths = self.distances[inputs]  # (inputs, nodes)
        nearest = np.where(paths > 0, paths, far).min(0)
        return np.where(nearest == far, 0, nearest).astype(np.int16)

    @cached_property
    def siblings(self) -> NDArray[np.int64]:
        """Of the nodes with the same operation, shape and predecessors: which one in the order of the graph, (nodes,).

        Query, key and value of an attention differ in nothing else, and neither do experts.
        """
        before: list[list[int]] = [[] for _ in self.nodes]
        for start, stop in self.edges:
            before[stop].append(start)
        seen: dict[object, int] = {}
        told = np.zeros(len(self.nodes), dtype=np.int64)
        for number, node in enumerate(self.nodes):
            alike = (node, tuple(sorted(before[number])))
            told[number] = seen.get(alike, 0)
            seen[alike] = seen.get(alike, 0) + 1
        return told

    @cached_property
    def kept(self) -> dict[str, Graph]:
        """Graphs made from this one, by name, so that each is made once."""
        return {}

    def within(self, longest: int) -> NDArray[np.int16]:
        """The distances with those above `longest` left out, as if there were no path: virtual edges, and real ones."""
        return np.where(self.distances > longest, 0, self.distances)

    def without(self, dropped: Sequence[bool]) -> Graph:
        """The graph without some nodes, their neighbours joined. A node that holds a slot has to stay."""
        place, count = {}, 0
        for number in range(len(self.nodes)):
            if not dropped[number]:
                place[number], count = count, count + 1
        before: list[set[int]] = [set() for _ in self.nodes]  # kept nodes before each node, dropped ones passed over
        for start, stop in sorted(self.edges, key=lambda edge: edge[1]):
            before[stop] |= before[start] if dropped[start] else {start}
        return Graph(
            tuple(self.nodes[number] for number in place),
            tuple((place[start], place[stop]) for stop in place for start in sorted(before[stop])),
            tuple(place[node] for node in self.node_of),
            self.source,
        )


@lru_cache(maxsize=65536)
def op_id(op: str, table: int = 1024) -> int:
    """The row of an operation in a table of fixed size, by its hash: an operation never met has one as well.

    >>> op_id("aten.linear"), op_id("aten.linear", table=64), op_id("mine.wavelet")
    (92, 28, 74)
    """
    digest = hashlib.sha256(op.encode("utf-8", "backslashreplace")).digest()
    return int.from_bytes(digest[:8], "big") % table
