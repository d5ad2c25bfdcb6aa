"""Which axes of the networks of a zoo move together: told by names and shapes, and by the graph where it is known."""

from __future__ import annotations

from paramsmith.errors import InvalidInput, printable
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.matching import PermutationSpec
from paramsmith.permutations import named_as_resnet, permutation_spec

from .member import Shapes, but_for_classes, check_same, shapes_of
from .zoo import Zoo


def permutable(zoo: Zoo, given: PermutationSpec | None = None) -> PermutationSpec:
    """The permutations of the slots; a head whose size differs from network to network moves, and is not compared.

    InvalidInput for networks of several architectures, and for one whose permutations are not known.
    """
    first = zoo.members[0]
    if zoo.site.spec is None:
        check_same(first, next(member for member in zoo.members if _differs(member.spec, first.spec)))
    specs = {member.spec.hash: member.spec for member in zoo.members}.values()
    slots = shapes_of(first.spec)
    made = _told(first.spec, first.label) if given is None else given
    varying = {name for name, shape in slots.items() if any(shapes_of(spec)[name] != shape for spec in specs)}
    axes = {name: axes for name, axes in made.axes.items() if name in slots}
    strange = next((name for name in slots if name not in axes), None)
    if strange is not None:
        raise InvalidInput(f"{printable(strange)}: is not among the tensors of the spec", "say which axes it permutes")
    return PermutationSpec(axes, made.carried | varying)


def unseen_skips(spec: TargetSpec) -> str | None:
    """What should be known of networks of several layers of one width, a connection past one of which leaves no trace.

    None where there is a graph, which would show it.
    """
    shapes = _all_shapes(spec)
    if spec.graph is not None or named_as_resnet(shapes):
        return None
    sizes = list(permutation_spec(shapes).sizes(shapes).values())
    if len(set(sizes)) == len(sizes):
        return None
    told = "layers are taken to follow each other; were one skipped, aligning would change what the networks compute"
    return f"the graph of the networks is not known: {told}"


def _differs(spec: TargetSpec, first: TargetSpec) -> bool:
    """In more than the number of classes."""
    return spec.hash != first.hash and but_for_classes(first, shapes_of(spec)) is None


def _told(spec: TargetSpec, label: str) -> PermutationSpec:
    shapes = _all_shapes(spec)
    groups = spec.graph is None or any("group_norm" in node.op for node in spec.graph.nodes)
    made = permutation_spec(shapes, group_norms=groups)
    if spec.graph is not None and bool((spec.graph.in_degrees > 1).any()) and not named_as_resnet(shapes):
        fact = f"{printable(label)}: joins what several layers put out, and its names do not tell which"
        raise InvalidInput(fact, "give the permutations of each tensor: PermutationSpec(axes)")
    return made


def _all_shapes(spec: TargetSpec) -> Shapes:
    return shapes_of(spec) | {buffer.name: buffer.shape for buffer in spec.buffers}
