"""Under which names a checkpoint stores the tensors of a module of transformers, which calls some of them otherwise."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from paramsmith.errors import GenerateWarning, InvalidInput, printable

from .target import Buffer, Slot, TargetSpec

if TYPE_CHECKING:
    from paramsmith.checkpoint import Checkpoint


def as_stored(spec: TargetSpec, module: nn.Module, checkpoint: Checkpoint) -> TargetSpec:
    """The spec of a module with the names and types of a checkpoint of it.

    Where the checkpoint lacks one of its tensors, all keep the module's names, which the library loads as well. A
    GenerateWarning tells of that, and of tensors that the module knows nothing of; InvalidInput where shapes differ.
    """
    known = {*checkpoint.tensors, *checkpoint.aliases}
    spelling = _Spelling(module, known)
    stored = {slot.name: spelling.of(slot) for slot in spec.slots}
    lost = [name for name, found in stored.items() if found is None]
    slots = tuple(_matched(slot, stored[slot.name], checkpoint) for slot in spec.slots)
    if lost:
        told = f"{checkpoint.label}: has {len(lost)} of the tensors of its architecture under no name that is known, "
        told += f"{printable(lost[0])} first; all are named as in transformers"
        warnings.warn(told, GenerateWarning, stacklevel=5)
        return replace(spec, slots=tuple(replace(s, dtype=m.dtype) for s, m in zip(spec.slots, slots, strict=True)))
    _tell_of_strange(slots, module, spelling, checkpoint)
    renamed = tuple(_spelt(slot, stored[slot.name], spelling) for slot in slots)
    buffers = tuple(_buffer(buffer, spelling, checkpoint) for buffer in spec.buffers)
    return replace(spec, slots=renamed, buffers=buffers)


class _Spelling:
    """How a file spells the names of a module: as they are, as the library writes them, with a prefix or without."""

    def __init__(self, module: nn.Module, known: Container[str]) -> None:
        self._known, self._renamed = known, _renamed(module)
        base = getattr(module, "base_model_prefix", "")
        self._prefix = f"{base}." if isinstance(base, str) and base else ""

    def find(self, name: str) -> str | None:
        """The name in the file."""
        own = (name, self._renamed.get(name, name))
        spelt = [s for n in own for s in (n, n.removeprefix(self._prefix), self._prefix + n)]
        return next((s for s in [*spelt, *map(_old, spelt)] if s in self._known), None)

    def of(self, slot: Slot) -> str | None:
        """The name of a slot in the file, which may be that of one of its copies."""
        names = (slot.name, *slot.copies)
        if any(name in self._known for name in names):
            return slot.name
        return next((found for name in names if (found := self.find(name)) is not None), None)


def _matched(slot: Slot, name: str | None, checkpoint: Checkpoint) -> Slot:
    """The slot with the type that it is stored in."""
    names = (slot.name, *slot.copies) if name is None or name == slot.name else (name,)
    info = next((info for n in names if (info := checkpoint.info(n)) is not None), None)
    if info is None:
        return slot
    sizes = [(a, b) for axis, (a, b) in enumerate(zip(slot.shape, info.shape, strict=False)) if axis != slot.class_axis]
    if len(slot.shape) != len(info.shape) or any(a != b for a, b in sizes):
        fact = f"{printable(checkpoint.label)}: {printable(info.name)} has shape {list(info.shape)}, "
        raise InvalidInput(f"{fact}but config.json makes it {list(slot.shape)}", "config.json belongs to another model")
    return replace(slot, dtype=info.dtype.code) if info.dtype.kind == "float" else slot


def _spelt(slot: Slot, name: str | None, spelling: _Spelling) -> Slot:
    if name is None or name == slot.name:
        return slot
    others = (spelling.find(copy) or copy for copy in (slot.name, *slot.copies))
    return replace(slot, name=name, copies=tuple(dict.fromkeys(n for n in others if n != name and n != slot.name)))


def _buffer(buffer: Buffer, spelling: _Spelling, checkpoint: Checkpoint) -> Buffer:
    found = spelling.find(buffer.name)
    info = checkpoint.info(found) if found is not None else None
    if found is None or info is None:
        return buffer
    return replace(buffer, name=found, dtype=info.dtype.code, shape=info.shape if buffer.fill is None else buffer.shape)


def _tell_of_strange(slots: Sequence[Slot], module: nn.Module, spelling: _Spelling, checkpoint: Checkpoint) -> None:
    names = [n for slot in slots for n in (slot.name, *slot.copies)]
    names += [name for name, _ in module.named_buffers(remove_duplicate=False)]
    used = {found for name in names if (found := spelling.find(name)) is not None}
    floats = (name for name, info in checkpoint.tensors.items() if info.dtype.kind not in ("integer", "bool"))
    strange = sorted(name for name in floats if name not in used)
    if strange:
        told = (
            f"{checkpoint.label}: {len(strange)} tensors are none of its architecture, {printable(strange[0])} first; "
        )
        warnings.warn(f"{told}they are left out", GenerateWarning, stacklevel=6)


def _renamed(module: nn.Module) -> Mapping[str, str]:
    """{parameter: its name in a file of transformers}, but for those that are made of several tensors or of a part."""
    if not type(module).__module__.startswith("transformers."):
        return {}
    revert = getattr(importlib.import_module("transformers.core_model_loading"), "revert_weight_conversion", None)
    if revert is None:
        return {}
    named = {name: torch.empty_like(p, device="meta") for name, p in module.named_parameters(remove_duplicate=False)}
    own = {id(tensor): name for name, tensor in named.items()}
    return {own[id(tensor)]: name for name, tensor in revert(module, named).items() if id(tensor) in own}


def _old(name: str) -> str:
    """How TensorFlow's first checkpoints called the weights of a norm."""
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
