"""Which axes of a network may be permuted together, told by names and shapes: perceptrons, VGGs, ResNets.

Activations are taken to work unit by unit, and to be the same for all units of a layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from paramsmith.errors import InvalidInput, printable
from paramsmith.matching import PermutationSpec

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Mapping[str, Shape]

_STATISTICS = ("running_mean", "running_var")
_LEAVES = ("weight", "bias", *_STATISTICS, "num_batches_tracked")
_NUMBERED = re.compile(r"(w|weight|b|bias)_?(\d+)")  # w1, b1: a layer without a name
_BLOCK = re.compile(r"((?:.*\.)?layer\d+\.\d+)\.(?:(conv|bn)(\d+)|(?:downsample|shortcut)\.([01]))\.(\w+)")
_OUTSIDE = re.compile(r"(?:.*\.)?(?:(?P<stem>conv1|bn1)|(?P<head>fc|linear|classifier|head))\.(\w+)")
_SEARCHED = 10_000  # steps of the search for the order of layers
_HINT = "give the permutations of each tensor: PermutationSpec(axes)"


def permutation_spec(shapes: Shapes, *, group_norms: bool = True) -> PermutationSpec:
    """`resnet_spec` where the names are a ResNet's, else `chain_spec`.

    Channels move only within their group where a norm has groups, and names do not tell: norms of channels without
    running statistics are refused, but where `group_norms` says that there are none.

    >>> spec = permutation_spec({"0.weight": (8, 4), "0.bias": (8,), "2.weight": (3, 8), "2.bias": (3,)})
    >>> spec.axes["0.weight"], spec.axes["2.weight"]
    (('0', None), (None, '0'))
    """
    make = resnet_spec if named_as_resnet(shapes) else chain_spec
    return make(shapes, group_norms=group_norms)


def named_as_resnet(names: Iterable[str]) -> bool:
    """Whether some name is that of a tensor in a residual block."""
    return any(_BLOCK.fullmatch(name) for name in names)


def chain_spec(shapes: Shapes, *, group_norms: bool = True) -> PermutationSpec:
    """Of linear and convolutional layers that follow each other, with norms between them: a permutation a layer.

    The order is the one in which outputs and inputs fit, layers whose names differ in numbers alone being in the order
    of these. A linear layer may follow a convolution whose channels were flattened; depthwise convolutions keep the
    permutation that they get. A connection that skips a layer leaves no trace in names and shapes: networks with such
    need a spec of their own. InvalidInput, naming a tensor, where there is no such order or several, where it is open
    which layer a norm follows, and for norms that may be of groups.
    """
    owners = _owners(shapes)
    layers = {name: owner for name, owner in owners.items() if len(owner.weight) > 1}
    if not layers:
        raise InvalidInput("no tensor is the weight of a linear layer or a convolution", _HINT)
    chain = _chained(layers)
    names = _names(chain)
    axes: dict[str, tuple[str | None, ...]] = {}
    for number, layer in enumerate(chain):
        before = names[number - 1] if number else None
        inputs = None if number and layer.depthwise_after(chain[number - 1]) else before
        outputs = names[number]
        rest = (None,) * (len(layer.weight) - 2)
        axes.update(layer.named(weight=(outputs, inputs, *rest), vector=outputs))
    for name, owner in owners.items():
        if name not in layers:
            place = _place_of(owner, chain)
            if group_norms and place > 0 and len(chain[place - 1].weight) > 2:
                _check_no_groups(owner)
            axes.update(owner.named(weight=None, vector=names[place - 1] if place > 0 else None))
    return _finished({name: axes[name] for name in _in_order(axes, chain)}, shapes)


def resnet_spec(shapes: Shapes, *, group_norms: bool = True) -> PermutationSpec:
    """Of residual networks named as torchvision names them: `conv1`, `layer2.0.conv1`, `layer2.0.downsample.0`, `fc`.

    What is added up shares a permutation, which changes with a `downsample` or `shortcut`; between two convolutions of
    a block there is one more. Norms come behind their convolution. InvalidInput, naming the tensor, for any other.
    """
    blocks = sorted({found[1] for name in shapes if (found := _BLOCK.fullmatch(name))}, key=_natural)
    axes: dict[str, tuple[str | None, ...]] = {}
    if group_norms:
        for owner in _owners(shapes).values():
            if len(owner.weight) == 1:
                _check_no_groups(owner)
    stream = "stem"
    _outside(shapes, "stem", stream, axes)
    for block in blocks:
        parts = {name: found for name in shapes if (found := _BLOCK.fullmatch(name)) and found[1] == block}
        last = max((int(found[3]) for found in parts.values() if found[2] == "conv"), default=0)
        joined = block if any(found[4] == "0" and len(shapes[name]) > 1 for name, found in parts.items()) else stream
        for name, found in sorted(parts.items(), key=lambda item: _natural(item[0])):
            number = int(found[3] or last)
            outputs = joined if number == last else f"{block}.conv{number}"
            inputs = stream if number == 1 or found[4] else f"{block}.conv{number - 1}"
            axes[name] = _axes(name, shapes[name], outputs, inputs)
        stream = joined
    _outside(shapes, "head", stream, axes)
    lost = next((name for name in shapes if name not in axes), None)
    if lost is not None:
        raise InvalidInput(f"{printable(lost)}: belongs to no part of a ResNet that is known by name", _HINT)
    return _finished(axes, shapes)


@dataclass(eq=False)
class _Owner:
    """The tensors of one layer or norm: leaf -> name, and the shape of its weight, () where it has none."""

    name: str
    leaves: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)

    @property
    def weight(self) -> Shape:
        return self.shapes.get("weight", ())

    def depthwise_after(self, before: _Owner) -> bool:
        """Whether each channel has a kernel of its own."""
        return len(self.weight) > 2 and self.weight[1] == 1 and self.weight[0] == before.weight[0] > 1

    def follows(self, before: _Owner) -> bool:
        """Whether its inputs are the outputs of a layer, or these flattened."""
        rank, units, inputs = len(before.weight), before.weight[0], self.weight[1]
        if len(self.weight) > 2:
            return rank == len(self.weight) and (inputs == units or self.depthwise_after(before))
        return inputs == units or (rank > 2 and inputs % units == 0)

    def named(self, weight: tuple[str | None, ...] | None, vector: str | None) -> dict[str, tuple[str | None, ...]]:
        """The axes of its tensors; a vector of one entry for all units has no permutation."""
        made: dict[str, tuple[str | None, ...]] = {}
        for leaf, name in self.leaves.items():
            shape = self.shapes[leaf]
            plain = (vector if shape[0] > 1 or weight else None,) if shape else ()
            made[name] = weight if weight and leaf == "weight" else plain
        return made


def _owners(shapes: Shapes) -> dict[str, _Owner]:
    owners: dict[str, _Owner] = {}
    for name, shape in shapes.items():
        owner, dot, leaf = name.rpartition(".")
        numbered = _NUMBERED.fullmatch(leaf)
        if numbered:
            owner, leaf = f"{owner}{dot}{numbered[2]}", "weight" if numbered[1][0] == "w" else "bias"
        held = owners.setdefault(owner, _Owner(owner))
        rank = len(shape)
        wrong = leaf not in _LEAVES or leaf in held.leaves or 0 in shape
        if wrong or (rank != 0 if leaf == "num_batches_tracked" else rank == 0 or (rank > 1 and leaf != "weight")):
            raise InvalidInput(f"{printable(name)}: is no part of a linear layer, a convolution or a norm", _HINT)
        held.leaves[leaf], held.shapes[leaf] = name, shape
    for held in owners.values():
        length = held.shapes.get("bias", held.weight)[:1]
        if held.weight and held.weight[:1] != length:
            fact = f"{printable(held.leaves['bias'])}: has {length[0]} entries beside a weight {list(held.weight)}"
            raise InvalidInput(fact, _HINT)
    return owners


def _chained(layers: Mapping[str, _Owner]) -> list[_Owner]:
    """The layers in the one order in which each follows the one before."""
    queues: dict[str, list[_Owner]] = {}
    for name in sorted(layers, key=_natural):
        queues.setdefault(re.sub(r"\d+", "#", name), []).append(layers[name])
    waiting = list(queues.values())
    found: list[list[_Owner]] = []
    longest: list[_Owner] = []
    stack: list[tuple[list[_Owner], list[int]]] = [([], [0] * len(waiting))]  # a chain, and how far each queue is used
    for _ in range(_SEARCHED):
        if not stack or len(found) > 1:
            break
        chain, used = stack.pop()
        longest = max(longest, chain, key=len)
        if len(chain) == len(layers):
            found.append(chain)
        for number, queue in enumerate(waiting):
            place = used[number]
            if place < len(queue) and (not chain or queue[place].follows(chain[-1])):
                stack.append(([*chain, queue[place]], [*used[:number], place + 1, *used[number + 1 :]]))
    if len(found) == 1 and not stack:
        return found[0]
    if found or stack:
        fact = f"{printable(_other(found, layers))}: it is open which layer comes before it"
        raise InvalidInput(f"{fact}: the shapes allow several orders", _HINT)
    lost = next(layer for layer in layers.values() if layer not in longest)
    last = longest[-1]
    fact = f"{printable(lost.leaves['weight'])}: the shape {list(lost.weight)} does not follow any layer's outputs"
    raise InvalidInput(f"{fact}, such as those of {printable(last.leaves['weight'])} {list(last.weight)}", _HINT)


def _other(found: Sequence[Sequence[_Owner]], layers: Mapping[str, _Owner]) -> str:
    """The first weight at which two orders part."""
    pairs = zip(*found, strict=True) if len(found) > 1 else ()
    parted = next((pair[0] for pair in pairs if pair[0] is not pair[1]), next(iter(layers.values())))
    return parted.leaves["weight"]


def _names(chain: Sequence[_Owner]) -> list[str | None]:
    """The permutation of each layer's outputs, named after it; None for the last, and a depthwise one keeps another."""
    names: list[str | None] = [layer.name or "weight" for layer in chain]
    names[-1] = None
    for number in range(len(chain) - 1, 0, -1):
        if chain[number].depthwise_after(chain[number - 1]):
            names[number - 1] = names[number]
    return names


def _place_of(norm: _Owner, chain: Sequence[_Owner]) -> int:
    """How many layers come before a norm: by its size, and by its name where several places have it."""
    name, shape = next(iter(norm.leaves.items()))[1], next((s for s in norm.shapes.values() if s), (0,))
    fitting = [number for number in range(len(chain) + 1) if shape[0] in (1, *_widths(chain, number))]
    numbers = re.findall(r"\d+", norm.name)
    same = [number for number, layer in enumerate(chain, 1) if re.findall(r"\d+", layer.name) == numbers]
    stem = re.sub(r"\d+", "#", norm.name)
    beside = [n for n, layer in enumerate(chain, 1) if re.sub(r"\d+", "#", layer.name) == stem]
    if beside:
        same = [n for n in beside if _natural(chain[n - 1].name) < _natural(norm.name)][-1:]
    place = fitting[0] if len(fitting) == 1 or shape[0] == 1 else same[0] if len(same) == 1 else -1
    if place not in fitting:
        why = "it is open which layer it follows" if len(fitting) > 1 else f"no layer has {shape[0]} outputs"
        raise InvalidInput(f"{printable(name)}: {why}", _HINT)
    return place


def _check_no_groups(norm: _Owner) -> None:
    scale = norm.leaves.get("weight")
    if scale is None or "bias" not in norm.leaves or "running_mean" in norm.leaves or norm.weight == (1,):
        return
    fact = f"{printable(scale)}: may be of a group norm, whose channels move only within their groups"
    raise InvalidInput(fact, f"add the running statistics of a batch norm; or {_HINT}")


def _widths(chain: Sequence[_Owner], place: int) -> tuple[int, ...]:
    """The sizes that a norm between two layers may have."""
    before = (chain[place - 1].weight[0],) if place else ()
    if place == len(chain) or (place and chain[place].depthwise_after(chain[place - 1])):
        return before
    return (*before, chain[place].weight[1])


def _in_order(axes: Mapping[str, object], chain: Sequence[_Owner]) -> list[str]:
    """Layer by layer, so that permutations come in the order of the data; then the norms."""
    layers = [name for layer in chain for name in layer.leaves.values()]
    known = set(layers)
    return [*layers, *(name for name in axes if name not in known)]


def _outside(shapes: Shapes, part: str, stream: str, axes: dict[str, tuple[str | None, ...]]) -> None:
    """What comes before the blocks, and after them."""
    for name, shape in shapes.items():
        found = _OUTSIDE.fullmatch(name)
        if found and found[part] and not _BLOCK.fullmatch(name):
            outputs, inputs = (stream, None) if part == "stem" else (None, stream)
            axes[name] = _axes(name, shape, outputs, inputs)


def _axes(name: str, shape: Shape, outputs: str | None, inputs: str | None) -> tuple[str | None, ...]:
    if len(shape) > 1:
        return (outputs, inputs, *(None,) * (len(shape) - 2))
    return (outputs,) if shape else ()


def _finished(axes: Mapping[str, tuple[str | None, ...]], shapes: Shapes) -> PermutationSpec:
    carried = frozenset(name for name in axes if name.rpartition(".")[2] in _STATISTICS)
    spec = PermutationSpec(dict(axes), carried)
    spec.sizes(shapes)
    return spec


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts names as people count."""
    parts = re.split(r"([0-9]{1,18})", name)
    return [(0, int(part), "") if place % 2 else (1, 0, part) for place, part in enumerate(parts) if part]
