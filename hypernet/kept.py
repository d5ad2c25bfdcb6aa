"""Tensors that can be made again from a seed, and are remembered as long as they are few."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from torch import Tensor


class Kept:
    """A cache of the first tensors that are asked for, up to `most` bytes. Copied or pickled, it begins empty.

    >>> import torch
    >>> kept = Kept(8)
    >>> [kept.get(key, lambda: torch.ones(1)) is kept.get(key, lambda: torch.ones(1)) for key in "abc"]
    [True, True, False]
    """

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0
        self._tensors: dict[Hashable, Tensor] = {}

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of a key; made when it is not remembered. Not to be changed in place."""
        if key in self._tensors:
            return self._tensors[key]
        made = make()
        if self.held + made.nbytes <= self.most:
            self._tensors[key] = made
            self.held += made.nbytes
        return made

    def __deepcopy__(self, memo: dict[int, object]) -> Kept:
        return Kept(self.most)

    def __reduce__(self) -> tuple[type[Kept], tuple[int]]:
        return Kept, (self.most,)
