"""Samples: the seed of each, and generated values as tensors of a checkpoint; the same for files and for memory."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from paramsmith.device import one_thread_an_operation
from paramsmith.dtypes import DTYPES, DType, torch_dtype
from paramsmith.errors import Failed, InvalidInput, printable
from paramsmith.hypernet.model import CHUNK, Decodes, chunks, streamed
from paramsmith.hypernet.protocols import Condition
from paramsmith.hypernet.targets.target import Buffer, Slot, TargetSpec


def sample_seed(seed: int, index: int) -> int:
    """The seed of sample number `index`: the same however many samples there are.

    >>> sample_seed(0, 0) == sample_seed(0, 1)
    False
    """
    if not 0 <= seed < 2**63:
        raise InvalidInput(f"the seed {seed} is out of range", "give a number from 0 to 2**63 - 1")
    state = np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(1, np.uint64)
    return int(state[0]) >> 1  # torch takes what fits into a signed number


def count_samples(n: int, conditions: int) -> int:
    """How many samples are made. InvalidInput for many of each of several conditions."""
    if n < 1:
        raise InvalidInput(f"{n} samples are none", "give 1 or more")
    if n > 1 and conditions > 1:
        raise InvalidInput(f"{conditions} conditions make a sample each, and {n} are asked for", "leave -n out")
    return max(n, conditions)


def stored_dtype(slot: Slot | Buffer, dtype: DType | None) -> DType:
    """How a tensor is stored. InvalidInput where that is no floating-point type and no other is asked for."""
    own = DTYPES[slot.dtype]
    if isinstance(slot, Buffer) and own.kind != "float":
        return own
    chosen = dtype or own
    if chosen.kind != "float":
        fact = f"tensor {printable(slot.name)} would be stored as {chosen.code}, which generated weights cannot be"
        raise InvalidInput(fact, "give --dtype float32, bfloat16 or float16")
    return chosen


def finished(slot: Slot, values: Tensor, dtype: DType) -> Tensor:
    """Generated values, (*shape), as they are stored: on the CPU, contiguous. Failed where one is not finite.

    >>> finished(Slot("w", (2,), "F32", "bias", 1), torch.tensor([1.0, 2.0]), DTYPES["BF16"]).dtype
    torch.bfloat16
    """
    if tuple(values.shape) != slot.shape:
        raise ValueError(f"{slot.name}: {tuple(values.shape)} was generated for {slot.shape}")
    made = values.to("cpu", torch_dtype(dtype)).contiguous()
    if made.numel():
        least, most = torch.aminmax(made)  # one pass, and NaN is both
        if not bool(torch.isfinite(least) & torch.isfinite(most)):
            count = int((~torch.isfinite(made)).sum())
            fact = f"tensor {printable(slot.name)}: {count:,} of the values generated for it are not finite"
            raise Failed(fact, f"the generator is broken, or its values are beyond {dtype.code}: try --dtype float32")
    return made


def filled(buffer: Buffer, dtype: DType | None) -> Tensor | None:
    """A tensor that is not generated; None where it is the target's own."""
    if buffer.fill is None:
        return None
    return torch.full(buffer.shape, buffer.fill, dtype=torch_dtype(stored_dtype(buffer, dtype)))


def state_dicts(
    model: Decodes, spec: TargetSpec, condition: Condition, seeds: list[int], dtype: DType | None, first: int = 0
) -> list[dict[str, Tensor]]:
    """A state dict a seed, all of one condition (leading axis 1): tied tensors under all their names, buffers filled.

    Of a hypernetwork the base alone depends on the seed, so that one decoding serves several. A sampler may be asked
    for another condition with each seed. Every sample has the bytes it would have by itself; `first` is the number of
    the first.
    """
    made: list[dict[str, Tensor]] = [{} for _ in seeds]
    most = max(1, CHUNK // max(1, max((numbers(spec, group) for group in chunks(spec)), default=1)))
    with one_thread_an_operation():
        for start in range(0, len(seeds), most):
            chosen = range(start, min(start + most, len(seeds)))
            asked = {name: t[start : chosen.stop] if len(t) > 1 else t for name, t in condition.items()}
            for slot, values in streamed(model, asked, spec, [seeds[i] for i in chosen], first + start):
                for place, i in enumerate(chosen):
                    # a base that no seed changes leaves one tensor for all
                    own = values[place if len(values) > 1 else 0]
                    made[i][slot.name] = finished(slot, own.clone(), stored_dtype(slot, dtype))
    return [_ordered(found, spec, dtype) for found in made]


def numbers(spec: TargetSpec, group: Sequence[int]) -> int:
    """How many numbers a group of equal slots holds."""
    return len(group) * prod(spec.slots[group[0]].shape)


def _ordered(found: dict[str, Tensor], spec: TargetSpec, dtype: DType | None) -> dict[str, Tensor]:
    """In the order of the module, with the further names of tied tensors."""
    whole = {name: found[slot.name] for slot in spec.slots for name in (slot.name, *slot.copies)}
    for buffer in spec.buffers:
        held = filled(buffer, dtype)
        if held is not None:
            whole[buffer.name] = held
    return whole
