"""A recipe held against the headers of its models: every output tensor, what it is made from, and with which values.

Everything that can be wrong with names, shapes, dtypes, architectures and parameters is found here, before a byte of
data is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from paramsmith.checkpoint import Checkpoint
from paramsmith.dtypes import DType, parse_dtype
from paramsmith.errors import InvalidInput, printable
from paramsmith.header import TensorInfo, TensorSpec
from paramsmith.memory import StateDict
from paramsmith.model_config import layer_index
from paramsmith.params import Params
from paramsmith.recipe import Recipe
from paramsmith.registry import MergeMethod, find_method
from paramsmith.ties import TIES

from .parameters import Numbers, Scopes
from .stacking import Place, places

Model = Checkpoint | StateDict

# What tie_word_embeddings of a config.json is about.
_HEADS = {tie.alias for tie in TIES if tie.kind == "head" and tie.alias.endswith(".weight")}


@dataclass(frozen=True, slots=True)
class Part:
    """One model's tensor in an output tensor, open for reading."""

    model: Model
    name: str
    dtype: DType
    read: Callable[[int, memoryview], None]


def part(model: Model, name: str, info: TensorInfo) -> Part:
    """A model's tensor, opened."""
    return Part(model, name, info.dtype, model.reader(name))


@dataclass(frozen=True, slots=True)
class MergeTask:
    """One output tensor. `sources` are in model order, the base first where the method wants deltas.

    `copied`: the bytes of the first source are the result; with several sources they ought to agree.
    """

    spec: TensorSpec
    sources: tuple[Part, ...]
    numbers: Numbers
    copied: bool = False
    count: int = field(init=False)

    def __post_init__(self) -> None:
        """Count the elements, once: the engine asks for every block."""
        object.__setattr__(self, "count", self.spec.count)


@dataclass(frozen=True)
class Job:
    """A merge ready to run."""

    recipe: Recipe
    method: MergeMethod
    options: Params
    models: tuple[Model, ...]
    base: Model | None
    tasks: tuple[MergeTask, ...]
    deltas: bool
    wide: str
    tied: bool | None
    layers: int | None
    warnings: tuple[str, ...] = field(default=())

    @cached_property
    def merged(self) -> tuple[MergeTask, ...]:
        """The tensors that need arithmetic."""
        return tuple(task for task in self.tasks if not task.copied and task.count)

    @property
    def reference(self) -> Model:
        """The model whose names, order, config and other files the result has."""
        return self.base or self.models[0]


def prepare(recipe: Recipe, models: Sequence[Model], base: Model | None) -> Job:
    """Hold a recipe against its opened models; InvalidInput says what does not fit."""
    method = find_method(recipe.method)
    deltas = base is not None and method.base != "unused"
    _check_models(method, models, base, deltas=deltas, stacked=recipe.slices is not None)
    everyone = ([base] if base else []) + list(models)
    warnings = [f"{m.label}: {w}" if m.label not in w else w for m in everyone for w in m.warnings]
    warnings += _left_out(everyone, stacked=recipe.slices is not None)
    if base and not deltas:
        warnings.append(f"{method.name} does not subtract the base, which only gives names, config and integers")
    listed = places(recipe, models, everyone[0], base if deltas else None, warnings)
    wanted = recipe.out_dtype or recipe.dtype
    chosen = parse_dtype(wanted) if wanted else None
    if chosen and chosen.kind != "float":
        raise InvalidInput(f"the result cannot be stored as {chosen.code}", "float64, float32, float16 or bfloat16")
    scopes: dict[int, Scopes] = {}
    tasks = []
    for place in listed:
        if place.part not in scopes:
            scopes[place.part] = Scopes(method, recipe, place.entries, place.parameters)
        inner = scopes[place.part]
        task = _task(place, base if deltas else None, method, inner, chosen, recipe.missing, warnings)
        if task:
            tasks.append(task)
    wide = "float64" if any(p.dtype.code == "F64" for t in tasks if not t.copied for p in t.sources) else "float32"
    tied = _tied(everyone[0], {t.spec.name for t in tasks})
    layers = sum(p.sources[0].layer_range[1] - p.sources[0].layer_range[0] for p in recipe.slices or ()) or None
    options = next(iter(scopes.values())).options
    return Job(recipe, method, options, tuple(models), base, tuple(tasks), deltas, wide, tied, layers, tuple(warnings))


def _check_models(
    method: MergeMethod, models: Sequence[Model], base: Model | None, *, deltas: bool, stacked: bool
) -> None:
    least, most = method.models
    if method.base == "required" and base is None:
        raise InvalidInput(f"{method.name} needs a base model", "name the model they were fine-tuned from: --base")
    if not stacked and not least <= len(models) <= (most or len(models)):
        wanted = f"{least}" if least == most else f"{least} or more"
        hint = "a copy in another dtype: --method passthrough" if len(models) == 1 else "see: paramsmith methods"
        raise InvalidInput(f"{method.name} merges {wanted} models, {len(models)} given", hint)
    seen = [_identity(model) for model in models]
    twice = next((m for i, m in enumerate(models) if seen[i] in seen[:i]), None)
    if twice is not None and not stacked:
        fact = f"{printable(twice.label)} is given twice"
        raise InvalidInput(fact, "to count a model more, give it a larger weight")
    if base and deltas and _identity(base) in seen:
        fact = f"{printable(base.label)} is both the base and one of the models: its task vector is zero"
        raise InvalidInput(fact, "leave it out of the models")
    _check_architectures([*([base] if base else []), *models])


def _identity(model: Model) -> object:
    """What makes two models the same one: the files, wherever links lead."""
    if isinstance(model, StateDict):
        return id(model.origin)
    return frozenset(file.resolve() for file in {info.file for info in model.tensors.values()})


def _check_architectures(models: Sequence[Model]) -> None:
    named = [(m, m.config.raw.get("model_type"), m.config.raw.get("architectures")) for m in models if m.config]
    for model, kind, classes in named[1:]:
        first, first_kind, first_classes = named[0]
        if kind != first_kind or (classes and first_classes and classes != first_classes and kind is None):
            fact = (
                f"{printable(model.label)}/config.json: model_type is {printable(kind)}, but "
                f"{printable(first_kind)} in {printable(first.label)}"
            )
            raise InvalidInput(fact, "only models of one architecture can be merged")


def _left_out(models: Sequence[Model], *, stacked: bool) -> list[str]:
    """A sentence for every model that holds tensors the reference does not; stacking chooses its layers itself."""
    reference, told = models[0], []
    for model in models[1:]:
        extra = [n for n in model.tensors if n not in reference.tensors and n not in reference.aliases]
        extra = [n for n in extra if not stacked or layer_index(n) is None]
        if extra:
            names = ", ".join(printable(name, 80) for name in extra[:8]) + (", ..." if len(extra) > 8 else "")
            count = f"{len(extra)} tensor{'s' * (len(extra) != 1)} left out"
            told.append(f"{printable(model.label)}: {count}, {printable(reference.label)} has none: {names}")
    return told


def _tied(reference: Model, written: set[str]) -> bool | None:
    """Whether the result's head is its embedding; None for a model without a head."""
    heads = [alias for alias in reference.aliases if alias in _HEADS]
    if heads:
        return not any(alias in written for alias in heads)
    return None if _HEADS.isdisjoint(written) else False


def _task(
    place: Place,
    base: Model | None,
    method: MergeMethod,
    scopes: Scopes,
    chosen: DType | None,
    missing: str,
    warnings: list[str],
) -> MergeTask | None:
    """The output tensor at a place; None where it is left out."""
    readers = ([(base, place.reference)] if base else []) + list(zip(place.models, place.names, strict=True))
    found = [(model, name, model.info(name)) for model, name in readers]
    first = place.home.info(place.reference)
    lacking = next((model for model, _, info in found if info is None), None)
    if lacking is not None or first is None:
        return _lacking(place, lacking or place.home, first, chosen, missing, warnings)
    _check_alike(place, [(m, i) for m, _, i in found if i is not None], first)
    parts = tuple(part(model, name, info) for model, name, info in found if info is not None)
    if first.dtype.kind != "float":
        kept = part(place.home, place.reference, first)
        others = tuple(p for p in parts if p.model is not place.home)
        return MergeTask(TensorSpec(place.output, first.dtype, first.shape), (kept, *others), (), copied=True)
    numbers = scopes.at(place.names[0], place.layer)
    out = chosen or first.dtype
    unchanged = method.unchanged is not None and method.unchanged(dict(numbers)) and out == parts[0].dtype
    spec = TensorSpec(place.output, out, first.shape)
    return MergeTask(spec, parts[:1] if unchanged else parts, numbers, copied=unchanged)


def _lacking(
    place: Place,
    model: Model,
    first: TensorInfo | None,
    chosen: DType | None,
    missing: str,
    warnings: list[str],
) -> MergeTask | None:
    name = printable(place.reference)
    if missing == "error" or first is None:
        fact = f"{printable(model.label)}: the tensor {name} is missing"
        raise InvalidInput(fact, "--missing base copies it from the base or first model, --missing skip leaves it out")
    if missing == "skip":
        warnings.append(f"{printable(model.label)}: {name} is missing: left out of the result")
        return None
    warnings.append(f"{printable(model.label)}: {name} is missing: copied from {place.home.label}")
    out = chosen or first.dtype if first.dtype.kind == "float" else first.dtype
    if out != first.dtype:
        fact = f"{name} is missing in {printable(model.label)} and cannot be copied as {out.code}"
        raise InvalidInput(fact, "leave the dtype as it is, or use --missing skip")
    return MergeTask(
        TensorSpec(place.output, out, first.shape), (part(place.home, place.reference, first),), (), copied=True
    )


def _check_alike(place: Place, found: Sequence[tuple[Model, TensorInfo]], first: TensorInfo) -> None:
    for model, info in found:
        if info.shape == first.shape and info.dtype == first.dtype:
            continue
        where = f"{printable(model.label)}: the tensor {printable(place.reference)}"
        if info.shape != first.shape:
            vocabulary = len(info.shape) == 2 and info.shape[1:] == first.shape[1:]
            hint = "the vocabularies differ" if vocabulary else "these are not fine-tunes of one model"
            raise InvalidInput(
                f"{where} has shape {list(info.shape)}, but {list(first.shape)} in {printable(place.home.label)}", hint
            )
        if info.dtype.kind != first.dtype.kind or (info.dtype.kind != "float" and info.dtype != first.dtype):
            fact = f"{where} is {info.dtype.code}, but {first.dtype.code} in {printable(place.home.label)}"
            raise InvalidInput(fact, "integers and floats cannot be mixed: convert or dequantise the model first")
