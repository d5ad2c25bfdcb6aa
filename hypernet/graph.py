"""The graph of a target: its operations, in the order of the data, which tensors they read, how far apart they are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Source = Literal["export", "fx", "chain"]


@dataclass(frozen=True, slots=True)
class Node:
    """One operation, named as torch does without overload (`aten.linear`), or `input`, or `output`.

    `shape` is that of the tensor it reads where it reads one, else of what it puts out without the batch axis.
    """

    op: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Graph:
    """Nodes sorted so that every edge (from, to) goes forward; `node_of` has a node for each slot of the spec.

    `source`: how it was captured; `fx` and `chain` are the fallbacks, coarser.
    """

    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int], ...]
    node_of: tuple[int, ...]
    source: Source = "export"

    @cached_property
    def distances(self) -> NDArray[np.int16]:
        """Shortest paths along the edges, (nodes, nodes): 0 on the diagonal and where there is no path."""
        from scipy.sparse import csr_matrix
        from scipy.sparse.csgraph import shortest_path

        count = len(self.nodes)
        start, stop = (
            (np.array(side, dtype=np.int64) for side in zip(*self.edges, strict=True))
            if self.edges
            else (
                np.zeros(0, np.int64),
                np.zeros(0, np.int64),
            )
        )
        adjacency = csr_matrix((np.ones(len(start)), (start, stop)), shape=(count, count))
        found = shortest_path(adjacency, unweighted=True)
        return np.where(np.isfinite(found), found, 0).astype(np.int16)
