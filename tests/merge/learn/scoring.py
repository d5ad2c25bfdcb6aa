"""Small models whose best merge is known, and evaluations of them in Python and by a command."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.merge.folders import llama, save

SHAPES = {"layers.0.w": (6, 5), "layers.1.w": (40,), "head.b": (3,)}

# The same score as `Field.score`, without torch, whose import takes seconds.
SCRIPT = """
import json, struct, sys
from pathlib import Path

def values(path):
    path = Path(path)
    data = (path / "model.safetensors" if path.is_dir() else path).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    head = json.loads(data[8:8 + size])
    head.pop("__metadata__", None)
    found = {}
    for name, info in head.items():
        start, end = info["data_offsets"]
        found[name] = struct.unpack(f"<{(end - start) // 4}f", data[8 + size + start:8 + size + end])
    return found

wanted, found = values(sys.argv[1]), values(sys.argv[2])
print("working on it")
print(-sum((a - b) ** 2 for name in wanted for a, b in zip(wanted[name], found[name])))
"""


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


@dataclass(frozen=True)
class Field:
    """A base and models as files; `wanted` is base + sum of `shares` of the task vectors, which scores 0, the best."""

    folder: Path
    base: Path
    models: list[Path]
    wanted: dict[str, Tensor]

    def score(self, model: dict[str, Tensor]) -> float:
        return -sum(float((model[name].float() - self.wanted[name]).square().sum()) for name in self.wanted)

    def command(self) -> str:
        """`score` as a shell command."""
        script, target = self.folder / "score it.py", self.folder / "wanted.safetensors"
        script.write_text(SCRIPT)
        save_file(self.wanted, target)
        return f"{shlex.quote(sys.executable)} -S -E {shlex.quote(str(script))} {shlex.quote(str(target))} {{model}}"

    def inputs(self) -> list[Path]:
        """What was there before a search."""
        return [self.base, *self.models]


def field(folder: Path, shares: Sequence[float]) -> Field:
    """Files of tensors."""
    base, models = tensors(0), [tensors(seed) for seed in range(1, len(shares) + 1)]
    paths = [folder / f"{name}.safetensors" for name in ("base", *"abcdefgh"[: len(shares)])]
    for path, held in zip(paths, [base, *models], strict=True):
        save_file(held, path)
    return Field(folder, paths[0], paths[1:], mixed(base, models, shares))


def mixed(base: dict[str, Tensor], models: Sequence[dict[str, Tensor]], shares: Sequence[float]) -> dict[str, Tensor]:
    pairs = list(zip(shares, models, strict=True))
    return {name: base[name] + sum(s * (m[name] - base[name]) for s, m in pairs) for name in base}


def folders(folder: Path, shares: Sequence[float], dtype: torch.dtype = torch.float32) -> Field:
    """Model folders of tiny Llamas."""
    held = [llama(seed, dtype) for seed in range(len(shares) + 1)]
    paths = [save(folder / name, each) for name, each in zip(("base", *"abcdefgh"), held, strict=False)]
    whole = [{name: tensor.float() for name, tensor in each.items()} for each in held]
    return Field(folder, paths[0], paths[1:], mixed(whole[0], whole[1:], shares))


class Counted:
    """A function that counts its calls, and may stop at one of them."""

    def __init__(self, score: Callable[[dict[str, Tensor]], float], stop: int | None = None) -> None:
        self.score, self.stop, self.calls = score, stop, 0

    def __call__(self, model: dict[str, Tensor]) -> float:
        self.calls += 1
        if self.calls == self.stop:
            raise KeyboardInterrupt
        return self.score(model)
