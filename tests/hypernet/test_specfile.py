"""Specs as JSON: there and back without a loss, and nothing accepted that is no spec."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.targets.describe import spec_of
from paramsmith.hypernet.targets.graph import Graph, Node
from paramsmith.hypernet.targets.specfile import MAX_SLOTS, spec_from_json, spec_to_json
from paramsmith.hypernet.targets.target import Buffer, Slot, TargetSpec

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[2]

NAMES = st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(1, 64), max_size=4).map(tuple)
ROLES = st.sampled_from(["matrix", "kernel", "embedding", "position", "head", "bias", "norm_scale", "norm_shift"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def specs(draw: st.DrawFn) -> TargetSpec:
    names = draw(st.lists(NAMES, min_size=2, max_size=12, unique=True))
    count = draw(st.integers(1, len(names) - 1))
    slots, buffers = [], []
    for name in names[:count]:
        shape = draw(SHAPES)
        axis = draw(st.none() | st.integers(0, len(shape) - 1)) if shape else None
        std = draw(st.none() | st.floats(0, 10))
        copies = (names[count],) if not slots and draw(st.booleans()) else ()
        dtype = draw(st.sampled_from(["F32", "BF16", "F16", "F64"]))
        slots.append(Slot(name, shape, dtype, draw(ROLES), draw(st.integers(1, 10**6)), std, axis, copies))
    for name in names[count + 1 :]:
        fill = draw(st.none() | st.floats(allow_nan=False, allow_infinity=False, width=32))
        buffers.append(Buffer(name, draw(st.lists(st.integers(0, 9), max_size=3).map(tuple)), "I64", fill))
    config = draw(st.none() | st.dictionaries(st.text(max_size=5), JSON, max_size=3))
    return TargetSpec(tuple(slots), tuple(buffers), draw(st.none() | graphs(count)), config)


@st.composite
def graphs(draw: st.DrawFn, slots: int) -> Graph:
    nodes = draw(st.lists(st.builds(Node, NAMES, SHAPES), min_size=2, max_size=6))
    pairs = [(a, b) for b in range(len(nodes)) for a in range(b)]
    edges = draw(st.lists(st.sampled_from(pairs), max_size=6, unique=True))
    node_of = draw(st.lists(st.integers(0, len(nodes) - 1), min_size=slots, max_size=slots))
    return Graph(tuple(nodes), tuple(edges), tuple(node_of), draw(st.sampled_from(["export", "fx", "chain"])))


@settings(max_examples=50)
@given(specs())
def test_there_and_back(spec: TargetSpec) -> None:
    back = spec_from_json(json.loads(json.dumps(spec_to_json(spec))))
    assert (back.slots, back.buffers, back.graph, back.config) == (spec.slots, spec.buffers, spec.graph, spec.config)
    assert back == spec
    assert back.hash == spec.hash


def test_the_hash_is_the_same_in_another_process() -> None:
    code = (
        "import json, sys; from paramsmith.hypernet.targets.specfile import spec_from_json;"
        "print(spec_from_json(json.load(sys.stdin)).hash)"
    )
    spec = spec_of(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)))
    told = json.dumps(spec_to_json(spec))
    environment = {"PYTHONHASHSEED": "1"}  # sets and dicts of names in another order
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=told, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == spec.hash, done.stderr


def test_the_hash_stays_what_it_is() -> None:
    """It is in the metadata of published files."""
    spec = TargetSpec((Slot("b", (3,), "F32", "bias", 2), Slot("a", (3, 2), "F32", "matrix", 2)))
    assert spec.hash == "62e9e978b39bc5a94c4be4b49004e1713de923baebc9324f4f557c07069946a7"


def test_what_is_said_is_compact() -> None:
    spec = spec_of(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)))
    assert spec_to_json(spec)["slots"][0] == {  # type: ignore[index]
        "name": "0.weight",
        "shape": [8, 4],
        "dtype": "F32",
        "role": "matrix",
        "fan_in": 4,
        "std": spec.slots[0].std,
    }
    assert set(spec_to_json(spec)) == {"slots"}


def slot(**changes: object) -> dict[str, object]:
    told = {"name": "w", "shape": [3, 2], "dtype": "F32", "role": "matrix", "fan_in": 2, **changes}
    return {key: value for key, value in told.items() if value != "absent"}


def graph(**changes: object) -> dict[str, object]:
    told = {"nodes": [["input", []], ["aten.linear", [3, 2]]], "edges": [[0, 1]], "node_of": [1], "source": "export"}
    return {"slots": [slot()], "graph": {**told, **changes}}


BAD: dict[str, object] = {
    "a list": [],
    "no slots": {},
    "an unknown key": {"slots": [slot()], "more": 1},
    "slots that are text": {"slots": "w"},
    "none at all": {"slots": []},
    "too many slots": {"slots": [None] * (MAX_SLOTS + 1)},
    "a slot that is none": {"slots": [3]},
    "an unknown key of a slot": {"slots": [slot(colour="red")]},
    "no name": {"slots": [slot(name="absent")]},
    "an empty name": {"slots": [slot(name="")]},
    "a long name": {"slots": [slot(name="x" * 100_000)]},
    "a reserved name": {"slots": [slot(name="__metadata__")]},
    "a name that is a number": {"slots": [slot(name=3)]},
    "a name twice": {"slots": [slot(), slot()]},
    "a copy of a name": {"slots": [slot(copies=["w"])]},
    "a buffer of that name": {"slots": [slot()], "buffers": [{"name": "w", "shape": [], "dtype": "F32"}]},
    "a negative size": {"slots": [slot(shape=[-1])]},
    "an empty tensor": {"slots": [slot(shape=[0])]},
    "a fraction": {"slots": [slot(shape=[1.5])]},
    "true for a size": {"slots": [slot(shape=[True])]},
    "a shape that is a number": {"slots": [slot(shape=3)]},
    "too many axes": {"slots": [slot(shape=[1] * 65)]},
    "too large": {"slots": [slot(shape=[10**6, 10**7])]},
    "too large together": {"slots": [slot(shape=[10**12]), slot(name="v", shape=[1])]},
    "an absurd size": {"slots": [slot(shape=[10**4000])]},
    "an absurd product": {"slots": [slot(shape=[10**12] * 64)]},
    "integers": {"slots": [slot(dtype="I64")]},
    "an unknown type": {"slots": [slot(dtype="F33")]},
    "a list for a type": {"slots": [slot(dtype=["F32"])]},
    "an unknown role": {"slots": [slot(role="king")]},
    "no fan-in": {"slots": [slot(fan_in="absent")]},
    "a fan-in of zero": {"slots": [slot(fan_in=0)]},
    "a negative deviation": {"slots": [slot(std=-1.0)]},
    "a deviation without end": {"slots": [slot(std=float("inf"))]},
    "a deviation that is none": {"slots": [slot(std=float("nan"))]},
    "a deviation that is huge": {"slots": [slot(std=10**4000)]},
    "an axis too far": {"slots": [slot(class_axis=2)]},
    "an axis from the end": {"slots": [slot(class_axis=-1)]},
    "copies that are text": {"slots": [slot(copies="v")]},
    "a buffer too large": {"slots": [slot()], "buffers": [{"name": "b", "shape": [10**12, 2], "dtype": "F32"}]},
    "a buffer without type": {"slots": [slot()], "buffers": [{"name": "b", "shape": []}]},
    "a fill that is text": {"slots": [slot()], "buffers": [{"name": "b", "shape": [], "dtype": "F32", "fill": "0"}]},
    "a graph that is none": {"slots": [slot()], "graph": 3},
    "an unknown key of a graph": graph(more=1),
    "a node that is none": graph(nodes=["input", "output"]),
    "a node with a bad shape": graph(nodes=[["input", []], ["aten.linear", [-3]]]),
    "too many nodes": graph(nodes=[["x", []]] * 100_000),
    "an edge backward": graph(edges=[[1, 0]]),
    "an edge to itself": graph(edges=[[1, 1]]),
    "an edge to nowhere": graph(edges=[[0, 2]]),
    "an edge of three": graph(edges=[[0, 1, 1]]),
    "an edge that is text": graph(edges=["01"]),
    "a node too far": graph(node_of=[2]),
    "a negative node": graph(node_of=[-1]),
    "too few nodes": graph(node_of=[]),
    "an unknown source": graph(source="magic"),
    "a config that is none": {"slots": [slot()], "config": [1]},
    "a config beyond JSON": {"slots": [slot()], "config": {"a": object()}},
    "a config too large": {"slots": [slot()], "config": {"a": "x" * 10_000_001}},
}


@pytest.mark.parametrize("found", BAD.values(), ids=BAD.keys())
def test_what_is_no_spec_is_refused(found: object) -> None:
    with pytest.raises(InvalidInput) as caught:
        spec_from_json(found)  # type: ignore[arg-type]
    assert "\n" not in caught.value.fact
    assert len(caught.value.fact) < 400


def test_what_the_refusals_begin_from_is_a_spec() -> None:
    assert spec_from_json(graph()).graph is not None


def test_a_config_nested_without_end_is_refused() -> None:
    inner: dict[str, object] = {}
    outer = inner
    for _ in range(100_000):
        outer = {"a": outer}
    with pytest.raises(InvalidInput, match="config is not plain JSON"):
        spec_from_json({"slots": [slot()], "config": outer})
