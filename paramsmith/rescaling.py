"""Positive rescaling: what goes into a ReLU may be divided by any s > 0 where what reads it is multiplied by s."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from paramsmith.errors import InvalidInput, printable
from paramsmith.matching import PermutationSpec, Tensors


def unit_rows(spec: PermutationSpec, tensors: Tensors, units: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The same functions, each unit's incoming weights and bias of length 1: one of all networks that differ in scale.

        w_in, b <- w_in / s, b / s    w_out <- w_out s    s = |(w_in, b)|

    {name: (..., *shape)} with any leading axes of networks. `units`: the permutations whose units go through a ReLU,
    leaky ones and linear ones too, in the order of the data; None: all. A unit that is zero stays. InvalidInput
    for units that a norm or several layers put out.

    >>> spec = PermutationSpec({"0.weight": ("p", None), "0.bias": ("p",), "1.weight": (None, "p")})
    >>> net = {"0.weight": torch.tensor([[3.0]]), "0.bias": torch.tensor([4.0]), "1.weight": torch.tensor([[1.0]])}
    >>> {name: tensor.tolist() for name, tensor in unit_rows(spec, net).items()}
    {'0.weight': [[0.6000000238418579]], '0.bias': [0.800000011920929], '1.weight': [[5.0]]}
    """
    made = dict(tensors)
    for name in spec.places if units is None else units:
        incoming, outgoing = _sides(spec, name)
        lead = made[incoming[0]].ndim - len(spec.axes[incoming[0]])
        squares = made[incoming[0]].double().square().flatten(lead + 1).sum(-1)  # (..., n)
        for bias in incoming[1:]:
            squares = squares + made[bias].double().square()
        scale = torch.where(squares > 0, squares.sqrt(), 1.0)
        for tensor in incoming:
            made[tensor] = _scaled(made[tensor], 1 / scale, lead)
        for tensor, axis in outgoing:
            several = made[tensor].shape[lead + axis] // scale.shape[-1]  # entries of a unit
            wide = scale.repeat_interleave(several, -1)
            made[tensor] = _scaled(made[tensor].movedim(lead + axis, lead), wide, lead).movedim(lead, lead + axis)
    return {name: tensor.contiguous() for name, tensor in made.items()}


def _sides(spec: PermutationSpec, name: str) -> tuple[list[str], list[tuple[str, int]]]:
    """The weight, and its bias, that put units out; the weights that read them."""
    places = spec.places.get(name)
    if places is None:
        raise InvalidInput(f"{printable(name)}: is no permutation of the spec", f"it has {', '.join(spec.places)}")
    weights = [tensor for tensor, axis in places if axis == 0 and len(spec.axes[tensor]) > 1]
    if len(weights) != 1:
        told = f"{len(weights)} layers put out the units {printable(name)}"
        raise InvalidInput(f"{told}, which cannot be rescaled on their own", "name the units of plain layers")
    owner = weights[0].rpartition(".")[0]
    vectors = [tensor for tensor, _ in places if len(spec.axes[tensor]) == 1]
    norm = next((tensor for tensor in vectors if tensor.rpartition(".")[0] != owner), None)
    if norm is not None:
        raise InvalidInput(f"{printable(norm)}: belongs to a norm, which undoes a rescaling", "leave these units out")
    return weights + vectors, [(tensor, axis) for tensor, axis in places if axis > 0]


def _scaled(tensor: Tensor, scale: Tensor, lead: int) -> Tensor:
    """Each unit, along the axis behind the leading ones, times its scale."""
    wide = scale.view(*scale.shape, *[1] * (tensor.ndim - lead - 1))
    return (tensor.double() * wide).to(tensor.dtype)
