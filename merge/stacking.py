"""Which input tensors make which output tensor: the same name everywhere, or layers stacked from slices."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paramsmith.errors import InvalidInput, printable
from paramsmith.model_config import layer_index
from paramsmith.params import Layer
from paramsmith.recipe import Recipe

if TYPE_CHECKING:
    from .job import Model

# Outside the layers: what stands before them comes from the first slice, the rest from the last.
_BEFORE = re.compile(r"embed|wte|wpe|tok_embeddings|word_emb|patch|position")


@dataclass(frozen=True, slots=True)
class Place:
    """An output tensor's name, the names it has in each model, and the one in its home.

    Shape, dtype and whatever is not merged are the home's: the base, or the first of the models.
    """

    output: str
    home: Model
    reference: str
    models: tuple[Model, ...]
    names: tuple[str, ...]
    layer: Layer | None
    part: int
    entries: tuple[Mapping[str, object], ...]
    parameters: Mapping[str, object]


def places(
    recipe: Recipe, models: Sequence[Model], reference: Model, base: Model | None, warnings: list[str]
) -> list[Place]:
    """Every tensor of the result, in the reference's order; `base` is what deltas are taken from."""
    names = list(reference.tensors)
    # a head tied in the reference but stored by another model is a tensor of its own
    names += [a for a in reference.aliases if any(a in m.tensors for m in models)]
    if recipe.slices is not None:
        return list(_stacked(recipe, models, base, names))
    untied = [a for a in names if a in reference.aliases]
    warnings += [f"{printable(a)} is tied in {reference.label} but not everywhere: merged by itself" for a in untied]
    indices = [layer_index(name) for name in names]
    counted = max((index for index in indices if index is not None), default=-1) + 1
    layers = {index: Layer(index=index, count=counted) for index in set(indices) if index is not None}
    entries, many = tuple(entry.parameters for entry in recipe.models), tuple(models)
    return [
        Place(
            name, reference, name, many, (name,) * len(many), None if index is None else layers[index], 0, entries, {}
        )
        for name, index in zip(names, indices, strict=True)
    ]


def _stacked(recipe: Recipe, models: Sequence[Model], base: Model | None, names: Sequence[str]) -> Iterator[Place]:
    slices = recipe.slices or ()
    by_label = {m.label: m for m in models}
    for part in slices:
        for source in part.sources:
            held = max((i for i in map(layer_index, by_label[source.model].tensors) if i is not None), default=-1) + 1
            if source.layer_range[1] > held:
                fact = f"{printable(source.model)} has {held} layers, but the recipe takes {list(source.layer_range)}"
                raise InvalidInput(fact, "layer ranges are half-open: [0, 32] is all of 32 layers")
    outside = [n for n in names if layer_index(n) is None]
    for name in outside:
        number = 0 if _BEFORE.search(name) else len(slices) - 1
        yield _place(name, [name] * len(slices[number].sources), None, number, recipe, by_label, base, name)
    put = 0
    for number, part in enumerate(slices):
        inside = [n for n in (base or by_label[part.sources[0].model]).tensors if layer_index(n) is not None]
        length = part.sources[0].layer_range[1] - part.sources[0].layer_range[0]
        for offset in range(length):
            starts = [source.layer_range[0] + offset for source in part.sources]
            for name in (n for n in inside if layer_index(n) == starts[0]):
                moved = [_renumbered(name, start) for start in starts]
                layer = Layer(index=offset, count=length)
                yield _place(_renumbered(name, put), moved, layer, number, recipe, by_label, base, name)
            put += 1


def _place(
    output: str,
    names: Sequence[str],
    layer: Layer | None,
    number: int,
    recipe: Recipe,
    by_label: Mapping[str, Model],
    base: Model | None,
    reference: str,
) -> Place:
    part = (recipe.slices or ())[number]
    chosen = tuple(by_label[source.model] for source in part.sources)
    entries = tuple(source.parameters for source in part.sources)
    return Place(output, base or chosen[0], reference, chosen, tuple(names), layer, number, entries, part.parameters)


def _renumbered(name: str, layer: int) -> str:
    parts = name.split(".")
    at = next(i for i, part in enumerate(parts) if part.isascii() and part.isdecimal())
    return ".".join([*parts[:at], str(layer), *parts[at + 1 :]])
