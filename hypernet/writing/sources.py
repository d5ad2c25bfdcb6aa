"""What the user names: a generator that was saved, one in memory, or a preset that needs no training."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass

from paramsmith.errors import InvalidInput, printable
from paramsmith.hub import Reference
from paramsmith.hypernet.artifact import open_artifact
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.model import WeightModel
from paramsmith.hypernet.protocols import Design, Site
from paramsmith.params import validated
from paramsmith.parts import Part, generators
from paramsmith.progress import Progress

from .provenance import Origin, held_origin, saved_origin


@dataclass(frozen=True)
class Source:
    """A generator, and how it will be told of."""

    generator: Generator
    origin: Origin


def source_of(
    named: str | os.PathLike[str] | Generator | WeightModel | Source,
    seed: int = 0,
    progress: Progress | None = None,
) -> Source:
    """The generator that is meant: a folder, `user/name` of the Hub, or a preset, which is built anew.

    InvalidInput for anything else, and for a preset that has to be trained.
    """
    if isinstance(named, Source):
        return named
    if isinstance(named, WeightModel):
        named = Generator.of(named)
    if isinstance(named, Generator):
        return Source(named, held_origin(named.model))
    text = os.fspath(named)
    if not os.path.lexists(text) and Reference.parse(text) is None:
        made = _untrained(text, seed)
        return Source(made, held_origin(made.model))
    found = open_artifact(text, progress)
    origin = saved_origin(found)
    return Source(Generator.from_pretrained(found.folder), origin)


def _untrained(name: str, seed: int) -> Generator:
    known = generators.all()
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, 1)
        hint = f"did you mean {near[0]!r}?" if near else "give the folder of a generator, or user/name of the hub"
        raise InvalidInput(f"{printable(name)}: there is no such folder, and no generator is called so", hint)
    if not _needs_no_training(known[name]):
        hint = f"paramsmith train {name} makes a generator; give its folder"
        raise InvalidInput(f"{name} is a way to make a generator, which has to be trained first", hint)
    return Generator.build(name, seed=seed)


def _needs_no_training(part: Part) -> bool:
    """Whether it can be built without a target and without options, and has no objective."""
    try:
        design: Design = part.make(validated(part.params, {}, part.name), Site(0))
    except InvalidInput:
        return False
    return not design.objective.name
