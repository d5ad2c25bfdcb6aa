"""Which tensors of a base are made anew of generated ones, and how.

head    each generated tensor replaces one of the base
delta   each is added to one of the base; low rank pairs as PEFT names them as their product, B A alpha / r
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor

from paramsmith.errors import InvalidInput, printable
from paramsmith.header import TensorInfo
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.hypernet.tokens.views import lora_pairs

from .base import Base, missing


@dataclass(frozen=True)
class Change:
    """One tensor of the base, `name`, and the slots that it is made of: one, or A and B of a low rank pair.

    `shape` is what it becomes; `factor` is alpha / r; `transposed`: the base stores it (in, out).
    """

    name: str
    shape: tuple[int, ...]
    slots: tuple[str, ...]
    how: Literal["replace", "add", "pair"]
    factor: float = 1.0
    transposed: bool = False

    def made(self, values: Mapping[str, Tensor], old: Tensor | None) -> Tensor:
        """The new tensor, fp32 or wider, of generated ones and, where it is added to, of the old one.

        >>> pair = Change("w", (1, 2), ("a", "b"), "pair", 0.5)
        >>> pair.made({"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([[4.0]])}, torch.tensor([[1.0, 1.0]]))
        tensor([[3., 5.]])
        """
        if self.how == "pair":
            down, up = (values[slot].flatten(1) for slot in self.slots)  # (r, in), (out, r)
            update = up @ down * self.factor
            update = (update.T if self.transposed else update).reshape(self.shape)
        else:
            update = values[self.slots[0]]
        if self.how == "replace" or old is None:
            return update
        wide = torch.promote_types(old.dtype, torch.float32)
        return old.to(wide) + update.to(wide)


def head_changes(spec: TargetSpec, base: Base) -> tuple[Change, ...]:
    """Each generated tensor in place of one of the base, by name or, where names say nothing, as that of its head.

    InvalidInput, naming it, for one that the base has no place for, or one of another shape in more than its classes.
    """
    made = []
    for slot in spec.slots:
        info = base.tensor(slot.name) or _in_head(slot, base)
        if info is None:
            raise missing(slot.name, base)
        if _but_class(slot.shape, slot.class_axis) != _but_class(info.shape, slot.class_axis):
            raise _misfit(slot.name, slot.shape, info)
        made.append(Change(info.name, slot.shape, (slot.name,), "replace"))
    _check_once(made)
    _check_classes(made, base)
    return tuple(made)


def delta_changes(spec: TargetSpec, base: Base, alpha: float | None) -> tuple[Change, ...]:
    """Each generated tensor, or low rank pair, as a difference. Beside pairs others are whole: modules_to_save.

    `alpha` None: that of each pair is its rank. InvalidInput, naming it, for one that does not fit.
    """
    by_name = {slot.name: slot for slot in spec.slots}
    pairs = list(lora_pairs(spec.slots))
    made = [_pair(by_name[down], by_name[up], base, alpha) for down, up in pairs]
    paired = {name for pair in pairs for name in pair}
    for slot in spec.slots:
        if slot.name in paired:
            continue
        info = base.tensor(slot.name)
        if info is None:
            raise missing(slot.name, base)
        if info.shape != slot.shape:
            raise _misfit(slot.name, slot.shape, info)
        made.append(Change(info.name, slot.shape, (slot.name,), "replace" if pairs else "add"))
    _check_once(made)
    return tuple(made)


def module_of(name: str) -> str:
    """The module that a tensor of a low rank pair belongs to.

    >>> module_of("base_model.model.h.0.q.lora_A.default.weight")
    'base_model.model.h.0.q'
    """
    parts = name.split(".")
    first = next((i for i, part in enumerate(parts) if part.startswith("lora_")), len(parts))
    return ".".join(parts[:first])


def _pair(down: Slot, up: Slot, base: Base, alpha: float | None) -> Change:
    info = base.tensor(f"{module_of(down.name)}.weight")
    if info is None:
        raise missing(f"{module_of(down.name)}.weight", base)
    rank, product = down.shape[0], (up.shape[0], prod(down.shape[1:]))
    rows, rest = info.shape[0] if info.shape else 0, prod(info.shape[1:])
    turned = (rows, rest) == product[::-1] and len(info.shape) == 2
    straight = (rows, rest) == product and (len(down.shape) == 2 or info.shape[1:] == down.shape[1:])
    if not straight and not turned:
        raise _misfit(down.name, product, info)
    transposed = turned and (not straight or base.is_transposed or "lora_embedding_A" in down.name)
    factor = 1.0 if alpha is None else alpha / rank
    return Change(info.name, info.shape, (down.name, up.name), "pair", factor, transposed)


def _in_head(slot: Slot, base: Base) -> TensorInfo | None:
    """The tensor of the base's head that has the same last name, where there is just one."""
    leaf = slot.name.rpartition(".")[2]
    found = [head.name for head in base.heads if head.name.rpartition(".")[2] == leaf]
    return base.tensors.get(found[0]) if slot.class_axis is not None and len(found) == 1 else None


def _but_class(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    """A shape with any number of classes."""
    return tuple(-1 if place == axis else size for place, size in enumerate(shape))


def _check_once(changes: Sequence[Change]) -> None:
    names = [change.name for change in changes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        fact = f"{printable(twice)}: several of the generated tensors would go there"
        raise InvalidInput(fact, "name a base that was made for this generator")


def _check_classes(changes: Sequence[Change], base: Base) -> None:
    """InvalidInput where another number of classes leaves a part of the old head."""
    replaced = {change.name for change in changes}
    if all(base.tensors[change.name].shape == change.shape for change in changes):
        return
    left = next((head.name for head in base.heads if head.name not in replaced), None)
    if left is not None:
        fact = f"{printable(left)}: would stay as it is, and the generated head has another number of classes"
        raise InvalidInput(fact, "generate for the number of classes that the base has: --classes")


def _misfit(name: str, shape: tuple[int, ...], info: TensorInfo) -> InvalidInput:
    told = f"is generated as {list(shape)}, and {printable(info.name)} of the base is {list(info.shape)}"
    return InvalidInput(f"{printable(name)}: {told}", "name the base that it was made for")
