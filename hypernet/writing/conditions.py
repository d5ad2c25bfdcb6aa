"""What a generator is asked for: read from the command line or from a file, held against what it understands.

One condition has the generator's shapes; with a leading axis there are as many as that is long.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from paramsmith.errors import InvalidInput, printable
from paramsmith.header import MAX_DIMENSIONS
from paramsmith.hypernet.protocols import Condition
from paramsmith.inputs import place, read_json
from paramsmith.tensorfiles import TensorFile

Shapes = Mapping[str, Sequence[int]]

MAX_JSON = 100_000_000
_MOST_SHOWN = 64  # numbers of a condition that a record shows in full


def read_condition(given: Sequence[str]) -> dict[str, Tensor]:
    """The tensors that `name=0.3,0.7` or files name, as they stand there. InvalidInput says what cannot be read.

    >>> read_condition(["vector=0.5,1", "level=2"])
    {'vector': tensor([0.5000, 1.0000]), 'level': tensor([2.])}
    """
    found: dict[str, Tensor] = {}
    for text in given:
        named = _read_file(Path(text)) if text.endswith((".json", ".safetensors")) else _pair(text)
        twice = sorted(named.keys() & found.keys())
        if twice:
            raise InvalidInput(f"the condition gives {printable(twice[0])!r} twice", "give every name once")
        found |= named
    return found


def batched(given: Condition, shapes: Shapes) -> tuple[dict[str, Tensor], int]:
    """The condition with its leading axis, and how many conditions it holds. InvalidInput where it does not fit.

    A flat list of numbers stands for any shape with as many; 0 in `shapes` allows any length.

    >>> held, count = batched({"vector": torch.tensor([1.0, 2.0])}, {"vector": (2,)})
    >>> held["vector"].shape, count
    (torch.Size([1, 2]), 1)
    """
    _check_names(given, shapes)
    held = {name: _shaped(name, given[name], tuple(shapes[name])) for name in shapes}
    counts = {name: len(tensor) for name, tensor in held.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{count} for {printable(name)}" for name, count in counts.items())
        raise InvalidInput(f"the condition is asked for {told}", "give as many for every name")
    return held, next(iter(counts.values()), 1)


def one_of(held: Condition, index: int) -> dict[str, Tensor]:
    """One condition of several, or the only one, with a leading axis of 1, in memory of its own.

    How sums round may depend on how memory is aligned, and with it on which of several it was.
    """
    return {name: t[index : index + 1].clone() if len(t) > 1 else t.clone() for name, t in held.items()}


def condition_digest(condition: Condition) -> str:
    """sha256 over names, shapes, types and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(condition.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def shown(condition: Condition) -> dict[str, object] | None:
    """A short condition as plain data; None where it is too long to read."""
    if sum(tensor.numel() for tensor in condition.values()) > _MOST_SHOWN:
        return None
    return {name: tensor.tolist() for name, tensor in sorted(condition.items())}


def _pair(text: str) -> dict[str, Tensor]:
    name, equals, listed = text.partition("=")
    hint = "write it as name=0.3,0.7, or give a .json or .safetensors file"
    if not equals or not name:
        raise InvalidInput(f"{printable(text)!r} is no condition", hint)
    try:
        values = [float(part) for part in listed.split(",")]
    except ValueError:
        raise InvalidInput(f"{printable(text)!r}: its values are no numbers", hint) from None
    return {name: _finite(name, torch.tensor(values))}


def _read_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".json":
        plain, _ = read_json(path, MAX_JSON)
        return {name: _from_json(path, name, value) for name, value in plain.items()}
    from safetensors.torch import load_file

    file = TensorFile(path)  # strict about its header, which the library is not
    file.close()
    found: dict[str, Tensor] = load_file(path)
    return {name: _finite(name, tensor) for name, tensor in found.items()}


def _from_json(path: Path, name: str, value: object) -> Tensor:
    try:
        tensor = torch.tensor(value)
    except (ValueError, TypeError, RuntimeError, OverflowError):
        fact = f"{place(path)}: {printable(name)} is no number, and no list of equally long lists of numbers"
        raise InvalidInput(fact, "for example [[0.3, 0.7], [0.5, 0.5]]") from None
    return _finite(name, tensor if tensor.dtype == torch.bool else tensor.float())


def _finite(name: str, tensor: Tensor) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise InvalidInput(f"the condition {printable(name)} is {type(tensor).__name__}", "give torch.tensor(...)")
    if tensor.dim() > MAX_DIMENSIONS or tensor.is_complex():
        fact = f"the condition {printable(name)} is {str(tensor.dtype).removeprefix('torch.')} of {tensor.dim()} axes"
        raise InvalidInput(fact, f"give real numbers, of at most {MAX_DIMENSIONS} axes")
    short = tensor.is_floating_point() and tensor.itemsize == 1  # which torch.isfinite does not know
    if not bool(torch.isfinite(tensor.float() if short else tensor).all()):
        raise InvalidInput(f"the condition {printable(name)} holds a value that is not finite", "give finite numbers")
    return tensor


def _check_names(given: Condition, shapes: Shapes) -> None:
    wanted = ", ".join(f"{printable(name)} {_text(shape)}" for name, shape in shapes.items())
    for name in given:
        if name not in shapes:
            if not shapes:
                fact = f"this generator is asked for nothing but the target, and the condition gives {printable(name)}"
                raise InvalidInput(fact, "leave it out")
            near = difflib.get_close_matches(name, shapes, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it is asked for {wanted}"
            raise InvalidInput(f"this generator knows no condition {printable(name)!r}", hint)
    missing = [name for name in shapes if name not in given]
    if missing:
        raise InvalidInput(f"the condition lacks {printable(missing[0])!r}", f"this generator is asked for {wanted}")


def _shaped(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(B, *shape)."""
    _finite(name, tensor)
    if _fits(tensor.shape, shape):
        return tensor[None]
    if len(tensor.shape) == len(shape) + 1 and len(tensor) and _fits(tensor.shape[1:], shape):
        return tensor
    if tensor.dim() == 1 and 0 not in shape and tensor.numel() == torch.Size(shape).numel():
        return tensor.view(1, *shape)
    found = "x".join(map(str, tensor.shape)) or "a number"
    fact = f"the condition {printable(name)} has the shape {found}, expected {_text(shape)}"
    raise InvalidInput(fact, "a further axis in front makes it several conditions")


def _fits(found: Sequence[int], wanted: Sequence[int]) -> bool:
    return len(found) == len(wanted) and all(b in (0, a) for a, b in zip(found, wanted, strict=True))


def _text(shape: Sequence[int]) -> str:
    return "x".join("any" if size == 0 else str(size) for size in shape) or "a number"
