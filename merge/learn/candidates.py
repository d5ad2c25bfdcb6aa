"""Candidates of a search: merged one at a time, into the staging folder of its output, by the engine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from paramsmith.checkpoint import Checkpoint
from paramsmith.errors import InvalidInput, printable
from paramsmith.merge.api import merge
from paramsmith.params import check_filters
from paramsmith.statistics import weights_digest

from .evaluation import load_tensors


@dataclass(frozen=True)
class Limits:
    """What a merge may take: as the flags of `paramsmith merge`."""

    memory: str | int | None = None
    device: str = "cpu"
    threads: int | None = None


@dataclass(frozen=True)
class Ingredients:
    """What candidates are made of: paths, digests of what they hold, and what a candidate is to be like."""

    models: tuple[str, ...]
    base: str | None
    statistics: tuple[str, ...]
    exclude: tuple[str, ...]
    digests: Mapping[str, str]
    bare: bool  # no folder with a config, but a file of tensors
    wide: str  # the type that arithmetic is done in
    mixed: bool  # some floats are of a narrower type

    @classmethod
    def of(
        cls,
        models: Sequence[str | os.PathLike[str]],
        base: str | os.PathLike[str] | None,
        output: Path,
        *,
        statistics: Sequence[str | os.PathLike[str]] = (),
        exclude: Sequence[str] = (),
    ) -> Ingredients:
        """Open the headers. InvalidInput when something is not there, or the output lies in a model's folder."""
        check_filters(exclude)
        paths, beside = (tuple(os.fspath(path) for path in given) for given in (models, statistics))
        if not paths:
            raise InvalidInput("no models given", "give two or more")
        named = None if base is None else os.fspath(base)
        digests: dict[str, str] = {}
        codes, bare = set(), False
        for path in (*paths, *beside, *([named] if named is not None else [])):
            if path in digests:
                continue
            with Checkpoint.open(path) as opened:
                digests[path] = weights_digest(opened)
                codes |= {i.dtype.code for i in opened.tensors.values() if i.dtype.kind == "float"}
                bare = opened.folder is None if path == (named or paths[0]) else bare
                if opened.folder is not None and opened.folder.resolve() in output.resolve().parents:
                    fact = f"the output {printable(output)} lies in the model {printable(path)}"
                    raise InvalidInput(fact, "write it elsewhere")
        wide = "F64" if "F64" in codes else "F32"
        return cls(paths, named, beside, tuple(exclude), digests, bare, wide, codes != {wide})

    @property
    def identity(self) -> list[object]:
        """What tells these from others, wherever they lie, as JSON."""
        held = [[self.digests[path] for path in paths] for paths in (self.models, self.statistics)]
        return [*held, self.base and self.digests[self.base], self.exclude]

    @property
    def stored_wide(self) -> bool:
        """Whether an intermediate result can be kept in full: what is excluded is copied in its own type only."""
        return not (self.exclude and self.mixed)


@dataclass
class Candidates:
    """Merges into `folder`; the warnings of all merges, each once."""

    folder: Path
    bare: bool
    limits: Limits
    warnings: dict[str, None] = field(default_factory=dict)

    def make(self, models: Sequence[str], **arguments: object) -> Path:
        """Merge into the candidate; there is one at a time."""
        target = self.folder / ("candidate.safetensors" if self.bare else "candidate")
        self._merge(models, target, arguments)
        return target

    def keep(self, models: Sequence[str], name: str, **arguments: object) -> Path:
        """Merge into a file of tensors that stays; what an interrupted search has made of it is taken up."""
        target = self.folder / f"{name}.safetensors"
        if not target.exists():
            self._merge(models, target, arguments)
        return target

    def _merge(self, models: Sequence[str], target: Path, arguments: Mapping[str, object]) -> None:
        how = {**asdict(self.limits), **arguments}
        report = merge(models, target, force=True, **how)
        self.warnings.update(dict.fromkeys(report.warnings))


class Scaled:
    """x_0 + lambda U in memory, from the files of x_0 and of x_0 + U: one multiply-add a candidate, nothing written."""

    def __init__(self, base: Path, whole: Path) -> None:
        self._base, added = load_tensors(base), load_tensors(whole)
        widened = (name for name, tensor in added.items() if tensor.dtype in (torch.float32, torch.float64))
        self._update = {name: added[name].sub_(self._base[name]) for name in widened}

    def at(self, factor: float) -> dict[str, Tensor]:
        """The candidate, in new tensors of the base's types; ties stay."""
        made: dict[int, Tensor] = {}
        for name, held in self._base.items():  # the names of ties come after what they are tied to
            if id(held) not in made:
                update = self._update.get(name)
                made[id(held)] = held.clone() if update is None else (held + factor * update).to(held.dtype)
        return {name: made[id(held)] for name, held in self._base.items()}
