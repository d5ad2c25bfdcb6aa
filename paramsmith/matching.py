"""Weight matching: the permutation of hidden units that brings one network closest to another.

Units of a hidden layer may be put in any order, where whatever reads or follows them is reordered alike: the function
stays. A `PermutationSpec` says which axes of which tensors move together; `paramsmith.permutations` makes one from
names and shapes. `permutation[i]` is the unit of the network that is put at place i.

    A_p = sum over (tensor, axis) of p of  a b^T      (n, n), b with its other axes permuted
    permutation_p = argmax over assignments of  sum_i A_p[i, permutation(i)]

p after p until nothing improves: coordinate ascent of <a, permuted b>, which ends in a local optimum.

Ainsworth, Hayase, Srinivasa, Git Re-Basin, arXiv:2209.04836.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from paramsmith.errors import InvalidInput, printable

Tensors: TypeAlias = Mapping[str, Tensor]
Permutations: TypeAlias = Mapping[str, Tensor]  # by name: int64, (n,) or one a network (B, n)
_IMPROVED = 1e-12  # of the largest sum that an assignment could have: less is rounding


@dataclass(frozen=True)
class PermutationSpec:
    """Of every tensor of a network, axis by axis: the permutation that moves it, or None.

    An axis may be longer than its permutation where each unit has as many neighbouring entries: those of a linear
    layer behind a flattened convolution. `carried`: tensors that are permuted and not compared, such as running
    statistics.
    """

    axes: Mapping[str, tuple[str | None, ...]]
    carried: frozenset[str] = frozenset()

    @cached_property
    def places(self) -> dict[str, tuple[tuple[str, int], ...]]:
        """Of every permutation, in the order in which they first occur: the tensors and their axes.

        InvalidInput for one that occurs on two axes of a tensor, where an assignment would no longer be linear.
        """
        found: dict[str, list[tuple[str, int]]] = {}
        for tensor, axes in self.axes.items():
            named = [name for name in axes if name is not None]
            if len(named) != len(set(named)):
                fact = f"{printable(tensor)}: has the same permutation on two axes"
                raise InvalidInput(fact, "give the axes permutations of their own, or none")
            for axis, name in enumerate(axes):
                if name is not None:
                    found.setdefault(name, []).append((tensor, axis))
        return {name: tuple(places) for name, places in found.items()}

    def sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """How many units each permutation moves. InvalidInput names the tensor whose shape does not fit the others'."""
        _check_ranks(self, shapes)
        return {name: self._size(name, shapes) for name in self.places}

    def _size(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
        held = [(tensor, axis) for tensor, axis in self.places[name] if tensor in shapes]
        if not held:
            raise InvalidInput(f"no tensor has the permutation {printable(name)}", "leave it out of the spec")
        lengths = [shapes[tensor][axis] for tensor, axis in held]
        whole = [n for n, (t, axis) in zip(lengths, held, strict=True) if _is_whole(shapes[t], axis)]
        size = (whole or [min(lengths)])[0]
        for tensor, axis in held:
            _check_axis(tensor, axis, shapes[tensor], size)
        return size


def weight_matching(
    spec: PermutationSpec, a: Tensors, b: Tensors, *, seed: int = 0, max_rounds: int = 100
) -> dict[str, Tensor]:
    """The permutations, int64 (n,), that bring network b closest to a; `apply_permutation` applies them.

    `a` and `b` hold the tensors of the spec, in any floating type. The permutations are visited in the order in which
    the spec names them, after the first round in an order drawn by `seed`. InvalidInput, naming the tensor, for one
    that is missing, not finite, or of a shape that does not fit.

    >>> spec = PermutationSpec({"0.weight": ("p", None), "1.weight": (None, "p")})
    >>> a = {"0.weight": torch.tensor([[1.0], [2.0], [3.0]]), "1.weight": torch.tensor([[3.0, 2.0, 1.0]])}
    >>> b = {"0.weight": a["0.weight"][[2, 0, 1]], "1.weight": a["1.weight"][:, [2, 0, 1]]}
    >>> weight_matching(spec, a, b)["p"]
    tensor([1, 2, 0])
    """
    check_tensors(spec, a, "the first network")
    check_tensors(spec, b, "the second network", like=a)
    one, other = ({name: held[name][None] for name in spec.axes if name in held} for held in (a, b))
    found = match_all(spec, one, other, seed=seed, max_rounds=max_rounds)
    return {name: permutation[0] for name, permutation in found.items()}


def match_all(
    spec: PermutationSpec, reference: Tensors, networks: Tensors, *, seed: int = 0, max_rounds: int = 100
) -> dict[str, Tensor]:
    """`weight_matching` of many networks at once: {name: (B, *shape)} -> {permutation: (B, n)}, int64.

    `reference`: (1, *shape), or (B, *shape) for one a network. What is found for a network does not depend on the
    others, up to the rounding of fp64 sums. Tensors are taken to be finite (`check_tensors`).
    """
    compared = [name for name, axes in spec.axes.items() if any(axes) and name not in spec.carried]
    sizes = spec.sizes({name: tuple(networks[name].shape[1:]) for name in compared})
    count = len(networks[compared[0]]) if compared else 0
    found = {name: torch.arange(size).repeat(count, 1) for name, size in sizes.items()}
    moving = torch.arange(count)  # the networks that have not come to rest
    for number in range(max_rounds):
        better = torch.zeros(len(moving), dtype=torch.bool)
        # first in the order of the data: what comes from the inputs, which stay, is known before what follows from it
        for name in sorted(sizes, key=lambda name: _shuffled(seed, number, name)) if number else sizes:
            now = {other: held[moving] for other, held in found.items()}
            tensors = [tensor for tensor, _ in spec.places[name] if tensor not in spec.carried]
            there = {tensor: _rows(networks[tensor], moving) for tensor in tensors}
            wanted = {tensor: _rows(reference[tensor], moving) for tensor in tensors}
            best, gained = _assigned(similarity(spec, name, wanted, there, now).cpu(), now[name])
            found[name][moving] = best
            better |= gained
        moving = moving[better]
        if not len(moving) or len(sizes) == 1:
            break
    return found


def similarity(spec: PermutationSpec, name: str, a: Tensors, b: Tensors, permutations: Permutations) -> Tensor:
    """A_p of the module's docstring, fp64: entry (i, j) says how alike unit i of a and unit j of b are.

    {tensor: (1 or B, *shape)}, {tensor: (B, *shape)}, {permutation: (B, n)} -> (B, n, n).
    """
    others = {other: held for other, held in permutations.items() if other != name}
    total: Tensor | None = None
    count, size = permutations[name].shape
    for tensor, axis in spec.places[name]:
        if tensor not in b or tensor in spec.carried:
            continue
        one = _by_unit(a[tensor].double(), axis, size)  # (1 or B, n, entries)
        other = _by_unit(_moved(spec, tensor, b[tensor].double(), others), axis, size)
        if len(one) == 1:  # one product for all networks
            made = (other.reshape(count * size, -1) @ one[0].T).view(count, size, size).transpose(1, 2)
        else:
            made = one @ other.transpose(1, 2)
        total = made if total is None else total + made
    if total is None:
        raise InvalidInput(f"no tensor is compared for the permutation {printable(name)}", "leave it out of the spec")
    return total


def apply_permutation(spec: PermutationSpec, permutations: Permutations, tensors: Tensors) -> dict[str, Tensor]:
    """The same functions with their units reordered: {name: (*shape)} for permutations (n,), (B, *shape) for (B, n).

    Exact in every type. Some of the tensors of the spec may be absent; InvalidInput for one that the spec lacks, for
    that might have to move as well.
    """
    batched = any(permutation.ndim == 2 for permutation in permutations.values())
    held = {name: tensor if batched else tensor[None] for name, tensor in tensors.items()}
    strange = next((name for name in held if name not in spec.axes), None)
    if strange is not None:
        raise InvalidInput(f"{printable(strange)}: is not among the tensors of the spec", "say which axes it permutes")
    full = {name: p if batched else p[None] for name, p in permutations.items()}
    _check_permutations(spec, full, held)
    made = {name: _moved(spec, name, tensor, full) for name, tensor in held.items()}
    return made if batched else {name: tensor[0] for name, tensor in made.items()}


def identity_share(permutations: Permutations) -> float:
    """The share of units that stay where they are; 1 where there are none.

    >>> identity_share({"p": torch.tensor([0, 2, 1, 3])})
    0.5
    """
    total = sum(permutation.numel() for permutation in permutations.values())
    stay = sum(int((p == torch.arange(p.shape[-1])).sum()) for p in permutations.values())
    return stay / total if total else 1.0


def check_tensors(spec: PermutationSpec, tensors: Tensors, whose: str, like: Tensors | None = None) -> None:
    """InvalidInput, naming the tensor, where one is missing, not finite, or not of the shape of another network's."""
    for name, axes in spec.axes.items():
        if not any(axes) or name in spec.carried:
            continue
        held = tensors.get(name)
        if held is None:
            raise InvalidInput(f"{printable(name)}: is missing in {printable(whose)}", "match networks that are alike")
        if like is not None and like[name].shape != held.shape:
            fact = f"{printable(name)}: has the shape {list(held.shape)} in {printable(whose)}"
            raise InvalidInput(f"{fact}, not {list(like[name].shape)}", "match networks of one architecture")
        if not bool(torch.isfinite(held).all()):
            raise InvalidInput(f"{printable(name)}: is not finite in {printable(whose)}", "leave this network out")


def _shuffled(seed: int, number: int, name: str) -> bytes:
    """A key that sorts the permutations of a round: the same in every process."""
    return hashlib.blake2b(f"{seed}/{number}/{name}".encode("utf-8", "backslashreplace"), digest_size=8).digest()


def _assigned(alike: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
    """The best assignment of each network, (B, n, n), (B, n) -> (B, n), and whether it is better than that of now."""
    from scipy.optimize import linear_sum_assignment

    best, gained = now.clone(), torch.zeros(len(now), dtype=torch.bool)
    size = now.shape[1]
    least = _IMPROVED * size * alike.abs().amax((1, 2))
    held = alike.gather(2, now[:, :, None]).sum((1, 2))
    for number, matrix in enumerate(alike.numpy()):  # scipy solves one at a time
        rows, columns = linear_sum_assignment(matrix, maximize=True)
        if matrix[rows, columns].sum() - float(held[number]) > float(least[number]):
            best[number], gained[number] = torch.from_numpy(columns), True
    return best, gained


def _by_unit(tensor: Tensor, axis: int, size: int) -> Tensor:
    """(B, *shape) -> (B, n, entries of a unit)."""
    front = tensor.movedim(axis + 1, 1)
    return front.reshape(len(front), size, -1)


def _moved(spec: PermutationSpec, name: str, tensor: Tensor, permutations: Permutations) -> Tensor:
    """A tensor, (B, *shape), with each axis in the order of its permutation."""
    for axis, permuted in enumerate(spec.axes[name]):
        if permuted is None or permuted not in permutations:
            continue
        units = permutations[permuted].to(tensor.device)  # (B, n)
        several = tensor.shape[axis + 1] // units.shape[1]  # entries of a unit
        order = (units[:, :, None] * several + torch.arange(several, device=units.device)).flatten(1)
        front = tensor.movedim(axis + 1, 1)
        networks = torch.arange(len(front), device=units.device)[:, None]
        tensor = front[networks, order].movedim(1, axis + 1)
    return tensor.contiguous()


def _rows(tensor: Tensor, moving: Tensor) -> Tensor:
    """Those of the networks that are moving; a single one is for all."""
    return tensor if len(tensor) in (1, len(moving)) else tensor[moving]


def _check_ranks(spec: PermutationSpec, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for tensor, axes in spec.axes.items():
        if tensor in shapes and len(shapes[tensor]) != len(axes):
            fact = f"{printable(tensor)}: has {len(shapes[tensor])} axes, and permutations are given for {len(axes)}"
            raise InvalidInput(fact, "give one for each axis, or none")


def _is_whole(shape: tuple[int, ...], axis: int) -> bool:
    """Whether the entries of an axis are units one by one: a layer's outputs, and the inputs of a convolution."""
    return len(shape) > 2 or (len(shape) == 2 and axis == 0)


def _check_axis(tensor: str, axis: int, shape: tuple[int, ...], size: int) -> None:
    length = shape[axis]
    if size and length and (length == size or (length % size == 0 and not _is_whole(shape, axis))):
        return
    fact = f"{printable(tensor)}: has {length} entries on axis {axis}, where {size} units are permuted"
    raise InvalidInput(fact, "check which layers follow each other")


def _check_permutations(spec: PermutationSpec, permutations: Permutations, tensors: Tensors) -> None:
    _check_ranks(spec, {name: tuple(tensor.shape[1:]) for name, tensor in tensors.items()})
    for name, permutation in permutations.items():
        whole = torch.arange(permutation.shape[1]).expand_as(permutation)
        if permutation.dtype.is_floating_point or not bool((permutation.sort(1).values == whole).all()):
            fact = f"the permutation {printable(name)} does not have every number from 0 on once"
            raise InvalidInput(fact, "weight_matching gives permutations")
        for tensor, axis in spec.places.get(name, ()):
            if tensor in tensors:
                _check_axis(tensor, axis, tuple(tensors[tensor].shape[1:]), permutation.shape[1])
