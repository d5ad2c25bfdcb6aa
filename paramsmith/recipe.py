"""Recipes: what to merge and how, as YAML. mergekit's files are read as they are; ours are written.

method: ties
base: /models/base
models:
  - {model: /models/a, weight: 0.3}
  - {model: /models/b, weight: 0.7}
parameters: {density: 0.2}
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML

from paramsmith.errors import InvalidInput, printable
from paramsmith.located_yaml import MAX_BYTES, Located, Problems, nearest, read_located
from paramsmith.params import Params
from paramsmith.recipe_schema import ROOT_KEYS, Draft, Entry, read_draft
from paramsmith.registry import MergeMethod, methods

Missing = Literal["error", "base", "skip"]


class ModelEntry(BaseModel):
    """One model, the parameters that are its own, and what was measured on it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: str
    statistics: str | None = None
    parameters: dict[str, object] = Field(default_factory=dict)


class SliceSource(ModelEntry):
    """Layers first (inclusive) to end (exclusive) of one model."""

    layer_range: tuple[int, int]


class Slice(BaseModel):
    """A run of layers of the result, merged from the same number of layers of every source."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sources: tuple[SliceSource, ...]
    parameters: dict[str, object] = Field(default_factory=dict)


class Recipe(BaseModel):
    """A whole merge, but for where the result goes and how it is run. Parameters are plain data, see params.py."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    method: str
    models: tuple[ModelEntry, ...] = ()
    base: str | None = None
    parameters: dict[str, object] = Field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    missing: Missing = "error"
    seed: int = 0
    shard_size: str | int | None = None
    coefficients: str | None = None
    exclude: tuple[str, ...] = ()
    slices: tuple[Slice, ...] | None = None
    warnings: tuple[str, ...] = Field(default=(), exclude=True)

    def with_statistics(self, files: Sequence[str]) -> Recipe:
        """The recipe with these statistics, one a model; itself when there are none."""
        if not files:
            return self
        new = entries([entry.model for entry in self.models], files)
        paired = zip(self.models, new, strict=True)
        models = tuple(old.model_copy(update={"statistics": each.statistics}) for old, each in paired)
        return self.model_copy(update={"models": models})

    def __eq__(self, other: object) -> bool:
        """Equal when they ask for the same merge; warnings belong to the text it was read from."""
        return isinstance(other, Recipe) and self.model_dump() == other.model_dump()


def entries(models: Sequence[str], statistics: Sequence[str] = ()) -> tuple[ModelEntry, ...]:
    """Entries of models, each with its statistics when there are any. InvalidInput when their numbers differ."""
    if statistics and len(statistics) != len(models):
        fact = f"{len(statistics)} statistics files for {len(models)} models"
        raise InvalidInput(fact, "give --statistics once a model, in model order; the base has none")
    paired = zip_longest(models, statistics)
    return tuple(ModelEntry(model=model, statistics=measured) for model, measured in paired)


def method_for(coefficients: str | None) -> str:
    """The method when none is named: what the coefficients are for, else linear."""
    if coefficients is None:
        return "linear"
    from paramsmith.coefficients import Coefficients

    return Coefficients.load(coefficients).method


def load_recipe(path: Path) -> Recipe:
    """Read a recipe file; InvalidInput with every mistake in it."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        return parse_recipe(data.decode("utf-8-sig"), str(path))
    except OSError as error:
        raise InvalidInput(
            f"{printable(path)}: {printable(str(error.strerror).lower())}", "a recipe is a readable file"
        ) from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{printable(path)}: not UTF-8 text", "a recipe is a YAML file") from None


def parse_recipe(text: str, source: str) -> Recipe:
    """Read a recipe, native or mergekit's; InvalidInput with every mistake, each with its line."""
    problems = Problems(source)
    root = read_located(text, problems)
    draft = read_draft(root, problems)
    method = _method(draft, problems)
    _unknown_keys(draft, method, problems)
    if method:
        _check_parameters(draft, method, problems)
    problems.raise_if_any(f"see: paramsmith methods {method.name}" if method else "see: paramsmith methods")
    return _built(draft, source)


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as native YAML: the same recipe gives the same text, and reading it gives the same recipe."""
    defaults = {"missing": "error", "seed": 0}
    keys = {k: v for k, v in recipe.model_dump(mode="json").items() if v not in (None, {}, []) and defaults.get(k) != v}
    for entry in [*keys.get("models", ()), *keys.get("slices", ())]:
        for source in [entry, *entry.get("sources", ())]:
            if not source.get("parameters", True):
                del source["parameters"]
            if source.get("statistics", "") is None:
                del source["statistics"]
    text = _yaml(keys, readable=True)
    strange = any(not c.isprintable() for line in text.split("\n") for c in line)
    return _yaml(keys, readable=False) if strange else text


def _yaml(keys: Mapping[str, object], *, readable: bool) -> str:
    """YAML in block style; `readable` leaves letters beyond ASCII as they are, else they are escaped."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 2**20
    yaml.allow_unicode = readable
    yaml.representer.ignore_aliases = lambda *_: True
    stream = io.StringIO()
    yaml.dump(dict(keys), stream)
    return stream.getvalue()


def _method(draft: Draft, problems: Problems) -> MergeMethod | None:
    from paramsmith.mergekit import translate

    known = methods()
    if draft.mergekit:
        return translate(draft, known, problems)
    name = draft.method if draft.method in known else draft.method.replace("-", "_").lower()
    if name in known:
        draft.method = name
        return known[name]
    if draft.method:
        problems.add(draft.method_line, f'unknown method "{printable(draft.method)}"{nearest(draft.method, known)}')
    return None


def _unknown_keys(draft: Draft, method: MergeMethod | None, problems: Problems) -> None:
    mine = _names(method.params) if method else {}
    for key, item in draft.unknown.items():
        if key in mine:
            message = f'"{key}" is a parameter of {draft.method}, not a key of the recipe: move it under parameters:'
            problems.add(item.line, message)
            continue
        near = nearest(key, [*ROOT_KEYS, *mine])
        inside = " under parameters:" if any(f'"{name}"' in near for name in mine) else ""
        problems.add(item.line, f'unknown key "{printable(key)}"{near}{inside}')


def _names(params: type[Params]) -> dict[str, str]:
    """What the user calls each field -> what the class calls it."""
    return {field.alias or name: name for name, field in params.model_fields.items()}


def _check_parameters(draft: Draft, method: MergeMethod, problems: Problems) -> None:
    names, settings = _names(method.params), method.params.settings()
    for scope in draft.scopes():
        for name, item in scope.items():
            if name not in names:
                known = f"{method.name} has no parameters" if not names else nearest(name, names)
                problems.add(item.line, f'unknown parameter "{printable(name)}" of {method.name}{known}')
                continue
            wrong = _wrong_value(method.params, name, item)
            if wrong:
                problems.add(item.line, f"{name}: {wrong}")
    for entry in draft.entries():
        for name in [n for n in entry.parameters if n in names and settings.get(names[n]) != "model"]:
            line = entry.parameters[name].line
            if draft.mergekit:
                draft.warnings.append(f"line {line}: {name} is not set model by model; ignored here")
                del entry.parameters[name]
            else:
                problems.add(line, f"{name} is not set model by model: move it under the recipe's parameters:")


def _wrong_value(params: type[Params], name: str, item: Located) -> str | None:
    """What pydantic says about this one value; the other fields, still missing, are not its business."""
    try:
        params.model_validate({name: item.plain()})
    except ValidationError as error:
        mine = [e for e in error.errors(include_url=False) if e["loc"][:1] == (name,)]
        if mine:
            said = str(mine[0]["msg"]).removeprefix("Value error, ")
            return f"{said[:1].lower()}{said[1:]}, found {printable(mine[0]['input'], 40)}"
    return None


def _built(draft: Draft, source: str) -> Recipe:
    def plain(parameters: Mapping[str, Located]) -> dict[str, object]:
        return {name: item.plain() for name, item in parameters.items()}

    def sourced(entry: Entry) -> SliceSource:
        return SliceSource(model=entry.model, parameters=plain(entry.parameters), layer_range=entry.layers or (0, 0))

    slices = tuple(
        Slice(sources=tuple(map(sourced, part.sources)), parameters=plain(part.parameters))
        for part in draft.slices or ()
    )
    return Recipe.model_validate(
        {
            "method": draft.method,
            "models": [
                ModelEntry(model=e.model, parameters=plain(e.parameters), statistics=e.statistics) for e in draft.models
            ],
            "exclude": tuple(draft.exclude),
            "base": draft.base,
            "parameters": plain(draft.parameters),
            "slices": slices or None,
            "warnings": tuple(f"{printable(source)}: {warning}" for warning in draft.warnings),
            **draft.fields,
        }
    )
