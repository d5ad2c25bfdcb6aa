"""What a tensor is for, told by its name, its shape and what stands beside it: for checkpoints without a module."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from paramsmith.errors import InvalidInput

from .target import Role

How = Literal["classes", "name", "last", "none"]
Shape = tuple[int, ...]

_POSITION = re.compile(
    r"(?:^|_)(?:pos|position|positions|positional|posemb|wpe)(?:_|$)"
    r"|(?:^|_)(?:cls|class|dist|distillation|mask|register|query|prefix|latent)_(?:tokens?|embedding)$|^relative_"
)
_EMBEDDING = re.compile(r"(?:^|_)(?:embed|embedding|embeddings|emb|wte|embed_tokens|embed_in|shared)$")
_NORM = re.compile(r"norm|(?:^|_)(?:ln|bn|gn|rms)(?:_|\d|$)")
_SHIFT = re.compile(r"(?:^|_)(?:bias|beta|shift)(?:_|\d|$)|bias$|^b\d*$")
_SCALING = re.compile(r"(?:^|_)(?:weight|gamma|scale|gain|g|lambda\d?|original0)$")
_HEAD = re.compile(r"(?:.*_)?(?:head|heads|classifier|logits)|fc|score|output_layer|embed_out|qa_outputs|unembed")

_NO_HEAD = re.compile(r"pool|proj")  # the last layer of many a model that has none


@dataclass(frozen=True, slots=True)
class Trait:
    """What a slot says of its tensor beside name, shape and type."""

    role: Role
    fan_in: int
    std: float | None = None
    class_axis: int | None = None


def uniform_std(fan_in: int) -> float:
    """The standard deviation of U(-1/sqrt(fan_in), 1/sqrt(fan_in)), which torch draws linear layers from.

    >>> uniform_std(12)
    0.16666666666666666
    """
    return 1.0 / math.sqrt(3.0 * max(1, fan_in))


def traits_by_name(
    shapes: Mapping[str, Shape], classes: int | None = None, deviation: float | None = None
) -> tuple[dict[str, Trait], How]:
    """The trait of every tensor of a checkpoint, and how the head was found (see `head_among`).

    `deviation`: the standard deviation that the architecture draws its weights with (`initializer_range`), its biases
    being zero. Without it, that of torch's layers.
    """
    found = {name: trait_by_name(name, shapes) for name in shapes}
    matrices = {name: shapes[name] for name, trait in found.items() if trait.role == "matrix"}
    matrices = {name: matrices[name] for name in sorted(matrices, key=natural)}
    alike = {re.sub(r"\d+", "0", name) for name in matrices}
    head, how = head_among(matrices, classes, ordered=len(alike) == 1)  # 0.weight, 2.weight, 4.weight
    if head is not None:
        found.update(as_head(head, found, shapes))
    return {name: drawn_with(trait, deviation) for name, trait in found.items()}, how


def trait_by_name(name: str, shapes: Mapping[str, Shape]) -> Trait:
    """The trait of one tensor among the shapes of all.

    >>> trait_by_name("layers.0.norm.weight", {"layers.0.norm.weight": (8,)}).role
    'norm_scale'
    """
    shape = shapes[name]
    layer, _, leaf = name.lower().rpartition(".")
    layer = layer.rpartition(".")[2]
    spoken = layer if leaf == "weight" else leaf
    # a table that is looked up in has no bias beside it
    alone = f"{name.rpartition('.')[0]}.bias" not in shapes or leaf != "weight"
    if _POSITION.search(spoken) and alone and (leaf != "weight" or len(shape) == 2):
        return Trait("position", 1)
    if len(shape) < 2 or _is_norm(name, layer, shapes) or _is_gain(name, shapes):
        return _short(name, layer, leaf, shapes)
    if len(shape) == 2 and alone and _EMBEDDING.search(spoken):
        return Trait("embedding", 1, 1.0)
    if _SHIFT.search(leaf):
        return Trait("bias", 1)
    fan_in = summed_over(name, shapes)
    return Trait("matrix" if len(shape) == 2 else "kernel", fan_in, uniform_std(fan_in))


def summed_over(name: str, shapes: Mapping[str, Shape]) -> int:
    """The fan-in of a matrix or kernel, whose first axis is that of the outputs.

    But the last is where only that has the length of the bias, and experts are stacked along the first.
    """
    shape = shapes[name]
    if len(shape) == 2:
        beside = shapes.get(name.rpartition(".")[0] + ".bias")
        transposed = beside is not None and beside == shape[1:] != shape[:1]
        return max(1, shape[0] if transposed else shape[1])
    return max(1, shape[-1] if "expert" in name else math.prod(shape[1:]))


def head_among(matrices: Mapping[str, Shape], classes: int | None, *, ordered: bool) -> tuple[str | None, How]:
    """The matrix whose outputs are the classes, of weights in order; and how it was found.

    `classes`: the last with so many outputs; for 0 there is none. Without it, the last that is called head, classifier,
    fc or the like, else, where the order is that of the data, the last of all. A layer that is repeated in equal
    blocks is never taken for the head.
    """
    blocks = Counter(block for name in matrices for block in _blocks(name, matrices[name]))
    free = [name for name in matrices if all(blocks[block] == 1 for block in _blocks(name, matrices[name]))]
    if classes == 0:
        return None, "classes"
    if classes is not None:
        free = [name for name in free if matrices[name][0] == classes]
        if not free:
            raise InvalidInput(f"no layer of the target has {classes} outputs", "give the number of its classes, or 0")
    called = [name for name in free if any(_HEAD.fullmatch(part) for part in name.lower().split(".")[:-1])]
    if classes is not None:
        return (called or free)[-1], "classes"
    if called:
        return called[-1], "name"
    if ordered and free and free[-1] == [*matrices][-1] and not _NO_HEAD.search(free[-1].lower()):
        return free[-1], "last"
    return None, "none"


def as_head(head: str, traits: Mapping[str, Trait], shapes: Mapping[str, Shape]) -> dict[str, Trait]:
    """The traits of the head's weight and of its bias, whose first axes are the classes. A kernel stays one."""
    weight = traits[head]
    made = {head: replace(weight, role="head" if weight.role == "matrix" else weight.role, class_axis=0)}
    owner, dot, _ = head.rpartition(".")
    bias = f"{owner}{dot}bias"  # of a layer that is the whole target there is no owner
    if bias in traits and shapes[bias] == shapes[head][:1]:
        made[bias] = replace(traits[bias], class_axis=0)
    return made


def drawn_with(trait: Trait, deviation: float | None) -> Trait:
    """The trait for an architecture that draws its weights with this standard deviation and sets its biases to zero."""
    if deviation is None or trait.role.startswith("norm"):
        return trait
    return replace(trait, std=0.0 if trait.role == "bias" else deviation)


def said_deviation(said: object) -> float | None:
    """A config's `initializer_range` as a standard deviation; None where it is no finite number above 0."""
    return float(said) if isinstance(said, int | float) and math.isfinite(said) and said > 0 else None


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts names as people count: 2 before 10.

    >>> sorted(["layers.10", "layers.2"], key=natural)
    ['layers.2', 'layers.10']
    """
    parts = re.split(r"([0-9]{1,18})", name)
    return [(0, int(part), "") if place % 2 else (1, 0, part) for place, part in enumerate(parts) if part]


def _short(name: str, layer: str, leaf: str, shapes: Mapping[str, Shape]) -> Trait:
    """What has one axis, or belongs to a norm."""
    if leaf in ("bias", "beta") and _is_norm(name, layer, shapes):
        return Trait("norm_shift", 1)
    owner, dot, own = name.rpartition(".")
    weight = f"{owner}{dot}{own.replace('bias', 'weight')}"  # weight, in_proj_weight, weight_ih_l0
    if _SHIFT.search(leaf) and len(shapes.get(weight, ())) > 1:
        fan_in = summed_over(weight, shapes)
        return Trait("bias", fan_in, uniform_std(fan_in))
    slope = "act" in layer or "relu" in layer  # of a PReLU, of which 1 would make nothing
    if not _SHIFT.search(leaf) and not slope and (_SCALING.search(leaf) or _NORM.search(leaf)):
        return Trait("norm_scale", 1)
    return Trait("bias", 1)


def _is_norm(name: str, layer: str, shapes: Mapping[str, Shape]) -> bool:
    owner, _, leaf = name.rpartition(".")
    if leaf not in ("weight", "bias", "gamma", "beta"):
        return False
    beside = next((shapes[s] for s in (f"{owner}.weight", f"{owner}.gamma") if s in shapes), None)
    if beside is None:
        return bool(_NORM.search(layer))
    return len(beside) == 1 or (bool(_NORM.search(layer)) and shapes.get(f"{owner}.bias") == beside)


def _is_gain(name: str, shapes: Mapping[str, Shape]) -> bool:
    """Whether it is the length, a row, of a weight that is stored as length and direction."""
    other = f"{name[:-1]}{'1' if name.endswith('original0') else 'v'}"
    return name.endswith(("weight_g", "original0")) and other in shapes


def _blocks(name: str, shape: Shape) -> Iterator[tuple[str, str, Shape]]:
    """The numbered blocks that a matrix is inside of, as what stands before and after the number."""
    parts = name.split(".")
    for place, part in enumerate(parts[:-2]):
        if part.isdecimal():
            yield ".".join(parts[:place]), ".".join(parts[place + 1 :]), shape
