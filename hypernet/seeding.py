"""Random tensors by name: the same for the same (seed, key) in every process and on every device, in any order.

Entry (i, j, ...) is a hash of seed, key and (i, j, ...) alone. So a small tensor is the corner of every larger one of
its key, and any rows of it can be had without the others. None of torch's generators moves.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from paramsmith.ops import mixed

BLOCK = 1 << 17  # numbers made at once: what the cache holds
Device = torch.device | str


def uniform(
    seed: int,
    key: str,
    shape: Sequence[int],
    bound: float = 1.0,
    *,
    device: Device = "cpu",
    first: int = 0,
) -> Tensor:
    """Numbers from U(-bound, bound), of 24 bits, fp32; `first` is the first row, of the leading axis, that is wanted.

    The same bits everywhere. Never 0, and never the bounds.

    >>> uniform(0, "a", (2, 2))
    tensor([[-0.5616,  0.8860],
            [ 0.2037,  0.6849]])
    >>> uniform(0, "a", (1, 1), first=1)
    tensor([[0.2037]])
    """

    def make(start: int, part: tuple[int, ...]) -> Tensor:
        return _unit(seed, key, start, part, device) * bound

    return _filled(shape, first, device, torch.float32, make)


def normal(
    seed: int,
    key: str,
    shape: Sequence[int],
    std: float = 1.0,
    *,
    device: Device = "cpu",
    first: int = 0,
) -> Tensor:
    """Numbers from N(0, std**2), fp32, none beyond 5.5 std; `first` as in `uniform`.

    sqrt(2) erfinv(u), so that devices agree as far as their erfinv does: to the last places.

    >>> normal(0, "a", (2,))
    tensor([ 0.4123, -0.2262])
    """

    def make(start: int, part: tuple[int, ...]) -> Tensor:
        return torch.erfinv(_unit(seed, key, start, part, device)) * (std * math.sqrt(2))

    return _filled(shape, first, device, torch.float32, make)


def normals(seeds: Sequence[int], key: str, shape: Sequence[int]) -> Tensor:
    """`normal` for several seeds, (seeds, *shape): the same numbers, and sooner where they are few.

    >>> torch.equal(normals([3, 4], "a", (2, 5)), torch.stack([normal(seed, "a", (2, 5)) for seed in (3, 4)]))
    True
    """
    if len(seeds) * math.prod(shape) > BLOCK:
        return torch.stack([normal(seed, key, shape) for seed in seeds])
    return torch.erfinv(_unit(seeds, key, 0, tuple(shape) or (1,), "cpu")).mul_(math.sqrt(2)).view(-1, *shape)


def bits(seed: int, key: str, shape: Sequence[int], *, device: Device = "cpu", first: int = 0) -> Tensor:
    """32 random bits an entry, as int32; `first` as in `uniform`."""

    def make(start: int, part: tuple[int, ...]) -> Tensor:
        return _hashed(seed, key, start, part, device)

    return _filled(shape, first, device, torch.int32, make)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What torch itself draws here, as modules do when they are made, comes from `seed`; then all is as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def rng_of(*numbers: int) -> torch.Generator:
    """A generator of torch's whose state is set by these numbers, each 0 or more."""
    from numpy.random import SeedSequence

    state = SeedSequence(numbers).generate_state(1, "uint64")[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def drawn_seed() -> int:
    """A seed from torch's own generator, which whoever makes a module has set: for tensors drawn in its constructor.

    0 where modules are made without memory.
    """
    found = torch.randint(2**62, ())
    return 0 if found.is_meta else int(found)


def word(seed: int, key: str) -> int:
    """32 bits, signed, that stand for a seed and a key."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=4).digest(), "little", signed=True)


def _filled(
    shape: Sequence[int],
    first: int,
    device: Device,
    dtype: torch.dtype,
    make: Callable[[int, tuple[int, ...]], Tensor],
) -> Tensor:
    """Block by block of rows, so that what lies between stays in the cache."""
    full = tuple(shape) or (1,)
    several = max(1, BLOCK // max(1, math.prod(full[1:])))
    made = torch.empty(full, dtype=dtype, device=device)
    for start in range(0, 0 if made.is_meta or not made.numel() else full[0], several):
        rows = min(several, full[0] - start)
        made[start : start + rows] = make(first + start, (rows, *full[1:]))
    return made.view(tuple(shape))


def _unit(seed: int | Sequence[int], key: str, first: int, shape: tuple[int, ...], device: Device) -> Tensor:
    """Odd multiples of 2**-24 in (-1, 1), all of them exact in fp32."""
    high = _hashed(seed, key, first, shape, device) >> 8  # the sign is kept: -2**23 to 2**23 - 1
    return (high * 2 + 1).float() * 2.0**-24


def _hashed(seed: int | Sequence[int], key: str, first: int, shape: tuple[int, ...], device: Device) -> Tensor:
    """Axis by axis: the hash so far, and that of the place on the axis, hashed together; of several seeds, (B, ...)."""
    seeds = [seed] if isinstance(seed, int) else seed
    found = torch.zeros(len(seeds), dtype=torch.int32, device=device)
    for axis, size in enumerate(shape):
        start = first if axis == 0 else 0
        words = torch.tensor([word(each, f"{axis}/{key}") for each in seeds], dtype=torch.int32, device=device)
        place = torch.arange(start, start + size, dtype=torch.int32, device=device)
        place = mixed(place ^ words[:, None])  # (B, size)
        found = mixed(found[..., None] ^ place.view(len(seeds), *(1,) * axis, size))
    return found[0] if isinstance(seed, int) else found
