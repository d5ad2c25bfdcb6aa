"""What a target consists of, from a module, which may be on the meta device, or from the header of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.parameter import is_lazy

from paramsmith.dtypes import DType, from_torch
from paramsmith.errors import InvalidInput, printable

from .rolenames import How, natural, said_deviation, traits_by_name
from .roles import traits_of
from .target import Buffer, Slot, TargetSpec, check_sizes

if TYPE_CHECKING:
    import torch

    from paramsmith.checkpoint import Checkpoint
    from paramsmith.header import TensorInfo

_BUILT_WITH_VALUES = 10**9  # numbers, up to which buffers are worth building a module a second time
_FILLS = {"running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0.0}
_TABLES = {
    "inv_freq",
    "masked_bias",
    "attn_mask",
    "causal_mask",
    "position_ids",
}  # floats that are computed, not learned
_QUANTISED = re.compile(r"(?:^|[._])(?:weight|bias)(?:$|[._])")
_INDEX = "integers are not generated; make it a buffer: register_buffer"


def spec_of(module: nn.Module, classes: int | None = None) -> TargetSpec:
    """The spec of a module, which is only looked at: parameters in its order, tied ones once, persistent buffers.

    Frozen parameters are generated like others. `classes`: how many outputs the head has, where names and order would
    take another layer for it (`roles.traits_of`); 0: it has none. InvalidInput for a module without parameters, and for
    parameters of integers or complex numbers, or without elements.

    >>> [slot.role for slot in spec_of(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3))).slots]
    ['matrix', 'bias', 'norm_scale', 'norm_shift', 'head', 'bias']
    """
    if not isinstance(module, nn.Module):
        raise InvalidInput(f"{printable(module)} is no torch.nn.Module", "give the module itself, made")
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    known = {name: (_shape(name, p), _dtype(name, p.dtype)) for name, p in module.named_parameters()}
    check_sizes({name: shape for name, (shape, _) in known.items()})
    for name, (_, dtype) in known.items():
        _check_type(name, dtype)
    copies = {same[0]: tuple(same[1:]) for same in names.values()}
    traits = traits_of(module, classes).by_name
    slots = (
        Slot(name, shape, dtype.code, t.role, t.fan_in, t.std, t.class_axis, copies[name])
        for (name, (shape, dtype)), t in ((item, traits[item[0]]) for item in known.items())
    )
    return TargetSpec(tuple(slots), tuple(_buffers(module)))


def spec_of_checkpoint(checkpoint: Checkpoint, classes: int | None = None) -> TargetSpec:
    """The spec of a checkpoint, from names and shapes alone; no data is read.

    Slots are in the natural order of names, a layer's weight before its bias; tied weights are one slot. Statistics of
    batch norms, tables that are computed, and tensors of integers are buffers; InvalidInput for weights of integers or
    complex numbers. `classes` as in `spec_of`; the order of a file says nothing of its head.
    """
    made, _ = described(checkpoint, classes)
    return made


def described(checkpoint: Checkpoint, classes: int | None = None) -> tuple[TargetSpec, How]:
    """`spec_of_checkpoint`, and how the head was found."""
    infos = {name: checkpoint.tensors[name] for name in sorted(checkpoint.tensors, key=_order)}
    buffers = tuple(
        Buffer(name, info.shape, info.dtype.code, _FILLS.get(name.rpartition(".")[2]))
        for name, info in infos.items()
        if _is_buffer(name, info)
    )
    kept = {name: info for name, info in infos.items() if not _is_buffer(name, info)}
    shapes = {name: info.shape for name, info in kept.items()}
    check_sizes(shapes)
    for name, info in kept.items():
        _check_type(name, info.dtype)
    copies: dict[str, list[str]] = {}
    for alias, name in checkpoint.aliases.items():
        copies.setdefault(name, []).append(alias)
    raw: Mapping[str, object] | None = checkpoint.config.raw if checkpoint.config else None
    traits, how = traits_by_name(shapes, classes, _deviation(checkpoint))
    slots = (
        Slot(
            name,
            shapes[name],
            kept[name].dtype.code,
            t.role,
            t.fan_in,
            t.std,
            t.class_axis,
            tuple(copies.get(name, ())),
        )
        for name, t in traits.items()
    )
    return TargetSpec(tuple(slots), buffers, config=raw), how


def lacks_values(module: nn.Module) -> bool:
    """Whether the module was built without the values of buffers, and is small enough to be built with them."""
    if all(not buffer.is_meta for buffer in module.buffers()):
        return False
    filled = {buffer.name for buffer in spec_of(module).buffers if buffer.fill is not None}
    buffers = module.named_buffers(remove_duplicate=False)
    total = sum(parameter.numel() for parameter in module.parameters())
    return total <= _BUILT_WITH_VALUES and any(b.is_meta and name not in filled for name, b in buffers)


def _shape(name: str, parameter: torch.Tensor) -> tuple[int, ...]:
    if name == "__metadata__" or any("\ud800" <= letter <= "\udfff" for letter in name):
        raise InvalidInput(f"{printable(name)}: is a name that no file of tensors can have", "give it another name")
    if is_lazy(parameter):
        fact = f"{printable(name)}: belongs to a lazy layer, which has no shape yet"
        raise InvalidInput(fact, "run the module once on an example")
    return tuple(parameter.shape)


def _dtype(name: str, dtype: torch.dtype) -> DType:
    try:
        return from_torch(dtype)
    except InvalidInput as problem:
        raise InvalidInput(f"{printable(name)}: {problem.fact}", problem.hint) from None


def _check_type(name: str, dtype: DType) -> None:
    if dtype.kind == "float":
        return
    fact = f"{printable(name)}: is of type {dtype.code}, and only floating-point parameters are generated"
    hint = {"complex": "store its real and imaginary parts", "integer": _INDEX, "bool": _INDEX}
    raise InvalidInput(fact, hint.get(dtype.kind, "dequantise the model first"))


def _buffers(module: nn.Module) -> Iterator[Buffer]:
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for leaf, value in owner._buffers.items():
            if value is not None and leaf not in owner._non_persistent_buffers_set:
                name = f"{prefix}.{leaf}" if prefix else leaf
                yield Buffer(name, _shape(name, value), _dtype(name, value.dtype).code, _FILLS.get(leaf))


def _is_buffer(name: str, info: TensorInfo) -> bool:
    leaf = name.rpartition(".")[2]
    if leaf in _FILLS or leaf in _TABLES:
        return True
    if leaf == "bias" and len(info.shape) == 4 and info.shape[:2] == (1, 1) and info.shape[2] == info.shape[3] > 1:
        return True  # the causal mask of old files of GPT-2
    return info.dtype.kind in ("integer", "bool") and not _QUANTISED.search(name.lower())


def _order(name: str) -> tuple[object, ...]:
    """Numbers as people count them, and the weight of a layer before its bias."""
    owner, _, leaf = name.rpartition(".")
    return natural(owner), leaf == "bias", leaf


def _deviation(checkpoint: Checkpoint) -> float | None:
    return said_deviation(checkpoint.config.text.get("initializer_range") if checkpoint.config else None)
