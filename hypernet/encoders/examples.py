"""The condition `classes`: features of a few examples of each class."""

from __future__ import annotations

import torch
from torch import Tensor

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.protocols import Condition, Site
from paramsmith.hypernet.targets.target import TargetSpec


def examples_of(site: Site, encoder: str, shots: int | None = None) -> tuple[int, int, int]:
    """(k, n, F) of the site's condition, 0 being any number. InvalidInput where it has none, or fewer than `shots`."""
    shape = site.condition.get("classes", ())
    if len(shape) != 3 or not shape[2]:
        fact = f"the encoder {encoder!r} wants a condition `classes` of (k, n, F) numbers"
        raise InvalidInput(fact, "give features of n examples of each of k classes")
    if shots is not None and 0 < shape[1] < shots:
        raise InvalidInput(f"there are {shape[1]} examples of a class, and {shots} are to be drawn", "lower the shots")
    return shape[0], shape[1], shape[2]


def examples_in(condition: Condition, spec: TargetSpec, features: int, classes: int = 0) -> Tensor:
    """(B, k, n, F) of one. InvalidInput for none, and for another F or k, which `classes` or the target says."""
    found = condition.get("classes")
    if found is None or found.dim() != 4 or found.shape[3] != features or 0 in found.shape:
        told = "nothing" if found is None else "x".join(map(str, found.shape))
        fact = f"a condition is `classes`, (B, k, n, {features}), and there is {told}"
        raise InvalidInput(fact, "give features of n examples of each of k classes")
    wanted = classes or spec.classes
    if wanted is not None and found.shape[1] != wanted:
        whose = "this generator's" if classes else "the target's"
        fact = f"the condition is for {found.shape[1]} classes, and {whose} number is {wanted}"
        raise InvalidInput(fact, "give examples of each class, and the number of classes: --classes")
    if not bool(torch.isfinite(found).all()):
        raise InvalidInput("the condition `classes` holds a number that is not finite", "give finite numbers")
    return found.float()


def drawn(examples: Tensor, shots: int | None) -> Tensor:
    """`shots` of the n examples of each class (B, k, n, F), without replacement, from torch's own generator.

    InvalidInput for fewer examples than shots.
    """
    several = examples.shape[2]
    if shots is None or shots == several:
        return examples
    if shots > several:
        raise InvalidInput(f"there are {several} examples of a class, and {shots} are to be drawn", "lower the shots")
    order = torch.rand(examples.shape[:3], device=examples.device).argsort(2)[:, :, :shots]
    return examples.gather(2, order[..., None].expand(-1, -1, -1, examples.shape[3]))
