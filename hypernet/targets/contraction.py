"""From a trace to a graph: what only moves data is passed over, tensors go to the operation that reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .graph import Graph, Node, Source


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operations that hand on what they are given: the first tensor they read, in another shape, order or type.
VIEWS = _words("""
    alias as_strided broadcast_to channel_shuffle chunk conj contiguous detach expand expand_as flatten flip getitem
    identity lift_fresh lift_fresh_copy movedim narrow numpy_T mT mH t T adjoint permute pixel_shuffle pixel_unshuffle
    ravel real repeat repeat_interleave reshape reshape_as resolve_conj resolve_neg roll rot90 select slice split
    split_with_sizes squeeze swapaxes swapdims tensor_split tile transpose unbind unflatten unfold unsafe_chunk
    unsafe_split unsqueeze view view_as view_as_complex view_as_real _reshape_alias _unsafe_view
    clone copy to _to_copy type_as type float half bfloat16 double long int bool cpu cuda requires_grad
    dropout native_dropout alpha_dropout feature_dropout feature_alpha_dropout dropout1d dropout2d dropout3d
""")
COPIES = _words("clone copy to _to_copy contiguous repeat tile roll")  # of these, the ones with memory of their own
# Operations whose result does not depend on the values they read, or is no tensor.
MADE = _words("""
    arange constant empty eye full linspace ones rand randn randint randperm scalar_tensor tril_indices triu_indices
    zeros empty_like full_like ones_like rand_like randn_like randint_like zeros_like new_empty new_full new_ones
    new_zeros size sym_size sym_numel sym_stride shape dim numel getattr item is_floating_point _local_scalar_dense
    _assert_async _assert_scalar _assert_tensor_metadata
""")
# With one operand that is no constant, these change a scale or an offset, which says nothing of the structure.
JOINS = _words("add sub rsub mul multiply div divide true_divide neg cat concatenate stack")
BIASED = _words("linear addmm addmv baddbmm convolution")  # and all that begin with conv
NORMS = _words("batch_norm layer_norm group_norm instance_norm rms_norm sync_batch_norm")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A tensor of the target where a step reads it; `slot` is None for one that is not generated."""

    slot: int | None
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a trace: what it reads, in order, steps by number; what it puts out.

    `numbers`: it puts out floating-point numbers. `writes`: it changes the first thing it reads, in place.
    """

    op: str  # aten.linear, input, constant
    reads: tuple[int | Parameter, ...] = ()
    shape: tuple[int, ...] = ()
    numbers: bool = True
    writes: bool = False


@dataclass(frozen=True)
class Trace:
    """The steps of a run, and which of them are put out."""

    steps: tuple[Step, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Value:
    """Where a value comes from: nodes, and tensors that no node has read yet. Neither, for a constant."""

    nodes: tuple[int, ...] = ()
    tensors: tuple[Parameter, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.nodes or self.tensors)


@dataclass
class _Drawing:
    nodes: list[Node] = field(default_factory=list)
    edges: list[tuple[int, int]] = field(default_factory=list)
    node_of: dict[int, int] = field(default_factory=dict)  # slot -> node

    def add(self, node: Node, before: Sequence[int], tensors: Sequence[Parameter] = ()) -> int:
        number = len(self.nodes)
        self.nodes.append(node)
        self.edges.extend((start, number) for start in sorted(set(before)))
        for tensor in tensors:
            if tensor.slot is not None:
                self.node_of.setdefault(tensor.slot, number)
        return number


def contract(trace: Trace, shapes: Sequence[tuple[int, ...]], source: Source) -> Graph:
    """The graph of a trace; `shapes` are those of the slots, of which each gets a node."""
    drawing = _Drawing()
    values: list[_Value] = []
    memory: list[int] = []  # of each step: the step whose memory its result lies in,
    whole: list[bool] = []  # and whether it is all of it
    written: dict[int, _Value] = {}  # memory that was written to since: all views of it changed

    def read(what: int | Parameter) -> _Value:
        if isinstance(what, Parameter):
            return _Value(tensors=(what,))
        return written.get(memory[what], values[what])

    for number, step in enumerate(trace.steps):
        operands = [value for value in map(read, step.reads) if value]
        values.append(_result(drawing, step, operands))
        of = step.reads[0] if step.reads and isinstance(step.reads[0], int) and _shares(step) else None
        memory.append(number if of is None else memory[of])
        whole.append(of is None or (step.writes and whole[of]))
        if step.writes and of is not None:
            written[memory[of]] = values[-1] if whole[of] else _both([read(of), values[-1]])
    return _pruned(drawing, [node for number in trace.outputs for node in read(number).nodes], shapes, source)


def _shares(step: Step) -> bool:
    """Whether what a step puts out lies in the memory of what it reads first."""
    return step.writes or (_short(step.op) in VIEWS and _short(step.op) not in COPIES)


def _result(drawing: _Drawing, step: Step, operands: Sequence[_Value]) -> _Value:
    """What a step puts out, with its nodes drawn if it is an operation that counts."""
    short = _short(step.op)
    if step.op == "input":
        return _Value((drawing.add(Node("input", step.shape), ()),))
    if short in MADE or not operands:
        return _Value()
    if short in VIEWS and not step.writes:
        return operands[0]
    if not step.numbers or short in VIEWS or (short in JOINS and len(operands) < 2):
        return _both(operands)
    return _Value((_drawn(drawing, step, _both(operands)),))


def _drawn(drawing: _Drawing, step: Step, read: _Value) -> int:
    """The nodes of an operation, one after the other: one a tensor it reads, biases last. The last of them.

    previous -> weight -> bias -> next; the tensors of a norm share one node.
    """
    short, tensors = _short(step.op), read.tensors
    if short in NORMS:
        return drawing.add(Node(step.op, tensors[0].shape if tensors else step.shape), read.nodes, tensors)
    large = [tensor for tensor in tensors if len(tensor.shape) > 1]
    biased = bool(large) or short in BIASED or short.startswith("conv")
    first = large if biased else list(tensors)
    biases = [tensor for tensor in tensors if len(tensor.shape) < 2] if biased else []
    before: Sequence[int] = read.nodes
    for tensor in first:
        before = [drawing.add(Node(step.op, tensor.shape), before, [tensor])]
    if not first:
        before = [drawing.add(Node(step.op, step.shape), before)]
    for tensor in biases:
        before = [drawing.add(Node("bias", tensor.shape), before, [tensor])]
    return before[0]


def _pruned(drawing: _Drawing, outputs: Sequence[int], shapes: Sequence[tuple[int, ...]], source: Source) -> Graph:
    """Without what leads neither to an output nor to a slot; with a node for each slot that nothing reads."""
    needed = set(outputs) | set(drawing.node_of.values())
    for start, stop in sorted(drawing.edges, key=lambda edge: -edge[1]):
        if stop in needed:
            needed.add(start)
    inputs = [number for number, node in enumerate(drawing.nodes) if node.op == "input"]
    needed.update(inputs if not needed.intersection(inputs) else ())
    place = {old: new for new, old in enumerate(sorted(needed))}
    unread = [slot for slot in range(len(shapes)) if slot not in drawing.node_of]
    nodes = [drawing.nodes[old] for old in place] + [Node("unused", shapes[slot]) for slot in unread]
    node_of = {slot: place[old] for slot, old in drawing.node_of.items()}
    node_of |= {slot: len(place) + extra for extra, slot in enumerate(unread)}
    return Graph(
        tuple(nodes),
        tuple((place[start], place[stop]) for start, stop in drawing.edges if start in place and stop in place),
        tuple(node_of[slot] for slot in range(len(shapes))),
        source,
    )


def _both(values: Sequence[_Value]) -> _Value:
    nodes = dict.fromkeys(node for value in values for node in value.nodes)
    tensors = dict.fromkeys(tensor for value in values for tensor in value.tensors)
    return _Value(tuple(nodes), tuple(tensors))


def _short(op: str) -> str:
    """`linear` of `aten.linear`.

    >>> _short("aten.linear"), _short("input")
    ('linear', 'input')
    """
    return op.rpartition(".")[2]
