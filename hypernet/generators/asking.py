"""What a sampler is asked by, and how networks become tokens: the same for every preset that learns from a zoo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from pydantic import Field

from paramsmith.errors import InvalidInput, printable
from paramsmith.hypernet.protocols import Chosen, Site
from paramsmith.hypernet.targets.statistics import is_statistic
from paramsmith.params import Params

Size = Literal["tiny", "small", "paper"]
_START = 128  # width of the codes of what one begins with


class Cutting(Params):
    """Options of whatever learns from a zoo; what is not given goes by the condition."""

    layout: Literal["flat", "tensor", "row", "patch", "neuron"] = Field("row", description="how a network is cut")
    normaliser: Literal["none", "pow2", "meanstd64", "coord", "center", "token"] | None = Field(
        None, description="what is done to its numbers; coord with class features, else center"
    )
    gauge: bool = Field(True, description="subtract the mean row of a head, which no softmax sees")
    components: int | None = Field(
        None, ge=1, le=1 << 20, description="write matrices as so many of their singular components, a token each"
    )
    statistics: Literal["generate", "template"] = Field(
        "generate", description="running mean and variance of norms: made with the weights, or of the first network"
    )
    shots: int = Field(5, ge=1, description="examples a class that a step shows of those that are known")


@dataclass(frozen=True)
class Asking:
    """The encoder for a site's condition, the width of its codes, and the shapes that can be asked for."""

    encoder: Chosen
    width: int
    shapes: dict[str, tuple[int, ...]]


def with_norms(told: Mapping[str, object], site: Site) -> dict[str, object]:
    """Options of a tokenizer, so that running statistics, where networks have them, are made with the weights."""
    slots = () if site.spec is None else site.spec.slots
    if not any(is_statistic(slot.name) for slot in slots):
        return dict(told)
    views = [*cast(list[str], told.get("views", [])), "log_var"]
    return {**told, "views": views, "policies": [{"policy": "generate", "name": "running_"}]}


def tokens(options: Cutting, site: Site) -> dict[str, object]:
    """The options of the tokenizer."""
    normaliser = options.normaliser or ("coord" if "classes" in site.condition else "center")
    views = ["gauge"] if options.gauge else []
    rank = {} if options.components is None else {"rank": options.components}
    views += ["svd"] if rank else []
    told: dict[str, object] = {"layout": options.layout, "normaliser": normaliser, "views": views, **rank}
    return with_norms(told, site) if options.statistics == "generate" else told


def plain(options: Cutting, site: Site) -> Asking:
    """The condition as it is, with nothing to learn: mean features of classes, a code each, or a row of numbers.

    Where the target has other tensors than its head and one number of classes, all means are one code: what its first
    layers are depends on the order of the classes too.
    """
    name, shape = condition_of(site)
    if name == "":
        return Asking(Chosen("empty"), 1, {})
    if name == "vector":
        return Asking(Chosen("vector", {"encoding": "raw", "body": False}), shape[0], {name: shape})
    classes, _, features = shape
    inner = site.spec is not None and any(slot.class_axis is None for slot in site.spec.slots)
    flat = bool(classes) and inner
    width = classes * features if flat else features
    chosen = Chosen("prototypes", {"shots": options.shots, "flat": flat})
    return Asking(chosen, width, {name: (classes if flat else 0, 0, features)})


def learned(options: Cutting, site: Site) -> Asking:
    """As `plain`; of weights that one begins with, `start`, a code a token is learned."""
    if set(site.condition) == {"start"}:
        return Asking(Chosen("start"), _START, dict(site.condition))
    return plain(options, site)


def condition_of(site: Site) -> tuple[str, tuple[int, ...]]:
    """The name and the shape of the one condition; the name is empty where nothing is asked. Else InvalidInput."""
    if not site.condition:
        return "", ()
    (name, shape), *others = site.condition.items()
    if others or (name, len(shape)) not in (("classes", 3), ("vector", 1)):
        told = ", ".join(printable(each) for each in site.condition)
        fact = f"the condition is {told}; this generator is asked by `classes` (k, n, F), or by `vector`"
        raise InvalidInput(fact, "give one of the two to each network of the zoo")
    return name, shape
