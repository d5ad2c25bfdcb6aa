"""How far two checkpoints are apart, tensor by tensor, in blocks: memory does not depend on the size of a tensor."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from paramsmith.checkpoint import Checkpoint
    from paramsmith.dtypes import DType
    from paramsmith.header import TensorInfo

BLOCK = 1 << 18  # elements; in fp64 two blocks and their products stay within a few megabytes
Status = Literal["identical", "different", "shape", "dtype", "bytes", "only a", "only b"]


@dataclass(slots=True)
class Sums:
    """What is added up over the blocks, in fp64; entries that are not finite on either side are counted, not added."""

    count: int = 0
    delta: float = 0.0
    a: float = 0.0
    b: float = 0.0
    dot: float = 0.0
    agree: int = 0
    largest: float = 0.0
    nonfinite: int = 0

    def add(self, other: Sums) -> None:
        """Add the sums of other entries."""
        self.count += other.count
        self.delta += other.delta
        self.a += other.a
        self.b += other.b
        self.dot += other.dot
        self.agree += other.agree
        self.largest = max(self.largest, other.largest)
        self.nonfinite += other.nonfinite

    @property
    def change(self) -> float:
        """||b - a|| / ||a||; infinite where only a is zero."""
        if self.delta == 0:
            return 0.0
        return math.sqrt(self.delta / self.a) if self.a else math.inf

    @property
    def cosine(self) -> float:
        """<a, b> / (||a|| ||b||); 1 for two zeros, 0 for one."""
        norms = math.sqrt(self.a) * math.sqrt(self.b)
        if not norms:
            return 1.0 if self.a == self.b else 0.0
        return max(-1.0, min(1.0, self.dot / norms))

    @property
    def agreement(self) -> float:
        """The share of entries of the same sign; zero is a sign of its own."""
        return self.agree / self.count if self.count else 1.0


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """One tensor name in two checkpoints. `sums` means something for the states identical, different and dtype."""

    name: str
    status: Status
    a: TensorInfo | None
    b: TensorInfo | None
    sums: Sums = field(default_factory=Sums)

    @property
    def same(self) -> bool:
        """Same name, type, shape and values, bit for bit."""
        return self.status == "identical"


def compare(a: Checkpoint, b: Checkpoint) -> Iterator[TensorDiff]:
    """Every name of either checkpoint in order, compared; ties are compared once when both sides tie alike."""
    for name in sorted({*a.tensors, *a.aliases, *b.tensors, *b.aliases}):
        if name in a.aliases and a.aliases.get(name) == b.aliases.get(name):
            continue
        yield compare_tensor(a, b, name)


def compare_tensor(a: Checkpoint, b: Checkpoint, name: str) -> TensorDiff:
    """One tensor of both: equal bytes are told without arithmetic, block by block."""
    left, right = a.info(name), b.info(name)
    if left is None or right is None:
        return TensorDiff(name, "only b" if left is None else "only a", left, right)
    if left.shape != right.shape:
        return TensorDiff(name, "shape", left, right)
    sums, equal, measured = Sums(), left.dtype == right.dtype, _numeric(left.dtype) and _numeric(right.dtype)
    if not measured and not equal:
        return TensorDiff(name, "dtype", left, right)
    for x, y in _blocks(a, b, left, right, name):
        same = left.dtype == right.dtype and x == y
        equal = equal and same
        if measured:
            values = _values(x, left.dtype)
            sums.add(_sums(values, values if same else _values(y, right.dtype)))
    if equal:
        return TensorDiff(name, "identical", left, right, sums)
    status: Status = "bytes" if not measured else "different" if left.dtype == right.dtype else "dtype"
    return TensorDiff(name, status, left, right, sums)


def module_type(name: str) -> str:
    """The name with its numbers blanked, so that the same module of all layers falls together.

    >>> module_type("model.layers.12.mlp.up_proj.weight")
    'model.layers.*.mlp.up_proj.weight'
    """
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


def by_module(diffs: Iterable[TensorDiff]) -> dict[str, tuple[int, int, Sums]]:
    """Module type -> tensors, those that are not identical, the sums over all of them."""
    groups: dict[str, tuple[int, int, Sums]] = {}
    for diff in diffs:
        tensors, changed, sums = groups.get(module_type(diff.name), (0, 0, Sums()))
        sums.add(diff.sums)
        groups[module_type(diff.name)] = (tensors + 1, changed + (not diff.same), sums)
    return groups


def _numeric(dtype: DType) -> bool:
    return dtype.torch_name is not None and dtype.kind != "packed"


def _blocks(
    a: Checkpoint, b: Checkpoint, left: TensorInfo, right: TensorInfo, name: str
) -> Iterator[tuple[bytearray, bytearray]]:
    """The bytes of the same BLOCK elements of both, one block after the other."""
    sides = ((a, left), (b, right))
    unit = BLOCK * left.dtype.bits // 8, BLOCK * right.dtype.bits // 8
    for number in range(math.ceil(left.nbytes / unit[0])):
        buffers = []
        for (checkpoint, info), size in zip(sides, unit, strict=True):
            buffer = bytearray(min(size, info.nbytes - number * size))
            checkpoint.read_into(name, number * size, memoryview(buffer))
            buffers.append(buffer)
        yield buffers[0], buffers[1]


def _values(data: bytearray, dtype: DType) -> Tensor:
    """The entries in fp64; a complex number is two entries."""
    import torch

    from paramsmith.dtypes import torch_dtype

    values = torch.frombuffer(data, dtype=torch_dtype(dtype))  # (n)
    if dtype.kind == "complex":
        values = torch.view_as_real(values).flatten()
    return (values.float() if dtype.kind == "float8" else values).double()


def _sums(a: Tensor, b: Tensor) -> Sums:
    """The sums over one block of entries, a and b (n) in fp64."""
    finite = a.isfinite() if a is b else a.isfinite() & b.isfinite()
    nonfinite = a.numel() - int(finite.sum())
    if nonfinite:
        a, b = (a[finite],) * 2 if a is b else (a[finite], b[finite])
    if a is b:  # the same bytes: one product is all there is to know
        square = float(a.dot(a))
        return Sums(a.numel(), 0.0, square, square, square, a.numel(), 0.0, nonfinite)
    delta = b - a
    return Sums(
        count=a.numel(),
        delta=float(delta.dot(delta)),
        a=float(a.dot(a)),
        b=float(b.dot(b)),
        dot=float(a.dot(b)),
        agree=int((a.sign() == b.sign()).sum()),
        largest=float(delta.abs().max()) if a.numel() else 0.0,
        nonfinite=nonfinite,
    )
