"""Graphs: distances, degrees, contraction of nodes, ids of operations."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramsmith.hypernet.targets.graph import Graph, Node, op_id

# input -> a -> b -> d, a -> c -> d, and a source e -> d
DIAMOND = Graph(
    tuple(map(Node, ("input", "a", "b", "c", "e", "d"))), ((0, 1), (1, 2), (1, 3), (2, 5), (3, 5), (4, 5)), (1, 5)
)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    count = draw(st.integers(1, 12))
    pairs = [(a, b) for b in range(count) for a in range(b)]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    ops = draw(st.lists(st.sampled_from(["input", "x", "y"]), min_size=count, max_size=count))
    return Graph(tuple(map(Node, ops)), tuple(edges), (count - 1,))


def walked(graph: Graph) -> np.ndarray:
    """Shortest paths by relaxing every edge, in order of their ends."""
    count = len(graph.nodes)
    found = np.full((count, count), 10_000)
    np.fill_diagonal(found, 0)
    for start, stop in sorted(graph.edges, key=lambda edge: edge[1]):
        found[:, stop] = np.minimum(found[:, stop], found[:, start] + 1)
    return np.where(found == 10_000, 0, found)


def test_of_a_diamond() -> None:
    assert DIAMOND.distances[0].tolist() == [0, 1, 2, 2, 0, 3]
    assert DIAMOND.in_degrees.tolist() == [0, 1, 1, 1, 0, 3]
    assert DIAMOND.out_degrees.tolist() == [1, 2, 1, 1, 1, 0]
    assert DIAMOND.from_input.tolist() == [0, 1, 2, 2, 0, 3]
    assert DIAMOND.within(2)[0].tolist() == [0, 1, 2, 2, 0, 0]


@given(graphs())
def test_distances_are_the_shortest_paths(graph: Graph) -> None:
    assert np.array_equal(graph.distances, walked(graph))


def test_distances_found_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paramsmith.hypernet.targets.graph._ROWS", 4)
    edges = tuple((k, k + 1) for k in range(10))
    graph = Graph((Node("input"), *[Node("x")] * 10), edges, (1,))
    assert np.array_equal(graph.distances, walked(graph))


def test_the_nearest_of_several_inputs_counts() -> None:
    graph = Graph(tuple(map(Node, ("input", "a", "b", "input", "c"))), ((0, 1), (1, 2), (2, 4), (3, 4)), (1,))
    assert graph.from_input.tolist() == [0, 1, 2, 0, 1]
    assert Graph((Node("a"), Node("b")), ((0, 1),), (0,)).from_input.tolist() == [0, 0]


def test_siblings_are_told_apart() -> None:
    linear, other = Node("aten.linear", (4, 4)), Node("aten.linear", (8, 4))
    nodes = (Node("input"), linear, linear, other, linear, linear)
    graph = Graph(nodes, ((0, 1), (0, 2), (0, 3), (0, 4), (1, 5)), (1,))
    assert graph.siblings.tolist() == [0, 0, 1, 0, 2, 0]


def test_without_a_node_its_neighbours_are_joined() -> None:
    fewer = DIAMOND.without([node.op in "bc" for node in DIAMOND.nodes])
    assert [node.op for node in fewer.nodes] == ["input", "a", "e", "d"]
    assert fewer.edges == ((0, 1), (1, 3), (2, 3))
    assert fewer.node_of == (1, 3)
    assert fewer.sound


@given(graphs(), st.data())
def test_without_keeps_who_comes_before_whom(graph: Graph, data: st.DataObject) -> None:
    flags = [data.draw(st.booleans()) for _ in graph.nodes]
    flags[graph.node_of[0]] = False
    stay = [number for number, gone in enumerate(flags) if not gone]
    assert np.array_equal(graph.without(flags).distances > 0, (graph.distances > 0)[np.ix_(stay, stay)])


@pytest.mark.parametrize(
    "wrong",
    [{"edges": ((1, 0),)}, {"edges": ((1, 1),)}, {"edges": ((0, 9),)}, {"edges": ((-1, 2),)}, {"node_of": (6,)}],
)
def test_what_is_no_graph_is_seen(wrong: dict[str, object]) -> None:
    assert DIAMOND.sound
    assert not dataclasses.replace(DIAMOND, **wrong).sound  # type: ignore[arg-type]


def test_ids_of_operations_lie_in_their_table() -> None:
    ids = [op_id(f"operation {number}", 64) for number in range(1000)]
    assert set(ids) == set(range(64))
    assert op_id("\ud800", 64) in range(64)  # a name that cannot be encoded
