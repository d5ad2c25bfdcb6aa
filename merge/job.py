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
from paramsmith.params import Params, matches
from paramsmith.recipe import Recipe
from paramsmith.registry import MergeMethod, find_method
from paramsmith.statistics import Statistics
from paramsmith.ties import TIES

from .company import check_models, idle_filters, left_out
from .measured import Measured, learned, measured
from .parameters import Numbers, Scopes
from .stacking import Place, places

Model = Checkpoint | StateDict

# What tie_word_embeddings of a config.json is about.
_HEADS = {tie.alias for tie in TIES if tie.kind == "head" and tie.alias.endswith(".weight")}


@dataclass(frozen=True, slots=True)
class Part:
    """One model's tensor in an output tensor, open for reading."""

    model: Model | Statistics
    name: str
    dtype: DType
    read: Callable[[int, memoryview], None]


def part(model: Model | Statistics, name: str, info: TensorInfo) -> Part:
    """A model's tensor, or one of its statistics, opened."""
    return Part(model, name, info.dtype, model.reader(name))


@dataclass(frozen=True, slots=True)
class MergeTask:
    """One output tensor. `sources` are in model order, the base first where the method wants deltas.

    `copied`: the bytes of the first source are the result; with several sources they ought to agree. `statistics`: so
    many of the sources, the last, are what was measured. `otherwise`: the method cannot treat this tensor as its own.
    `matrix`: it is merged as a whole, with its `grams`; `transposed`: it is stored (in, out).
    """

    spec: TensorSpec
    sources: tuple[Part, ...]
    numbers: Numbers
    copied: bool = False
    statistics: int = 0
    otherwise: bool = False
    matrix: bool = False
    grams: tuple[Part, ...] = ()
    gram_shape: tuple[int, ...] = ()
    transposed: bool = False
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
    beside: object = None  # what tells the statistics and the coefficients from others, as JSON
    statistics: tuple[Statistics, ...] = ()

    @cached_property
    def merged(self) -> tuple[MergeTask, ...]:
        """The tensors that need arithmetic, element by element."""
        return tuple(task for task in self.tasks if not task.copied and not task.matrix and task.count)

    @cached_property
    def matrices(self) -> tuple[MergeTask, ...]:
        """The tensors that are merged as whole matrices."""
        return tuple(task for task in self.tasks if task.matrix)

    @cached_property
    def surveyed(self) -> tuple[MergeTask, ...]:
        """The tensors that the method's surveys are about."""
        return tuple(task for task in self.merged if not task.otherwise)

    @property
    def reference(self) -> Model:
        """The model whose names, order, config and other files the result has."""
        return self.base or self.models[0]


@dataclass(frozen=True)
class _Whole:
    """What all tensors of a job share while it is prepared."""

    method: MergeMethod
    base: Model | None
    measured: Measured
    chosen: DType | None
    missing: str
    exclude: tuple[str, ...]
    warnings: list[str]


def prepare(recipe: Recipe, models: Sequence[Model], base: Model | None, statistics: Sequence[Statistics] = ()) -> Job:
    """Hold a recipe against its opened models; InvalidInput says what does not fit."""
    method = find_method(recipe.method)
    recipe, coefficients = learned(recipe, models, base)
    deltas = base is not None and method.base != "unused"
    check_models(method, models, base, deltas=deltas, stacked=recipe.slices is not None)
    everyone = ([base] if base else []) + list(models)
    warnings = [f"{m.label}: {w}" if m.label not in w else w for m in everyone for w in m.warnings]
    warnings += left_out(everyone, recipe.exclude, stacked=recipe.slices is not None)
    warnings += idle_filters(everyone, recipe.exclude)
    if base and not deltas:
        warnings.append(f"{method.name} does not subtract the base, which only gives names, config and integers")
    listed = places(recipe, models, everyone[0], base if deltas else None, warnings)
    wanted = recipe.out_dtype or recipe.dtype
    chosen = parse_dtype(wanted) if wanted else None
    if chosen and chosen.kind != "float":
        raise InvalidInput(f"the result cannot be stored as {chosen.code}", "float64, float32, float16 or bfloat16")
    beside = measured(method, recipe, models, statistics)
    whole = _Whole(method, base if deltas else None, beside, chosen, recipe.missing, recipe.exclude, warnings)
    scopes: dict[int, Scopes] = {}
    tasks = []
    for place in listed:
        if place.part not in scopes:
            scopes[place.part] = Scopes(method, recipe, place.entries, place.parameters, coefficients)
        task = _task(place, scopes[place.part], whole)
        if task:
            tasks.append(task)
    wide = "float64" if any(p.dtype.code == "F64" for t in tasks if not t.copied for p in t.sources) else "float32"
    tied = _tied(everyone[0], {t.spec.name for t in tasks})
    layers = sum(p.sources[0].layer_range[1] - p.sources[0].layer_range[0] for p in recipe.slices or ()) or None
    options = next(iter(scopes.values())).options
    identity = [beside.fingerprint(), coefficients and coefficients.model_dump(mode="json")]
    shape = (deltas, wide, tied, layers)
    told, files = tuple(warnings), beside.statistics
    return Job(recipe, method, options, tuple(models), base, tuple(tasks), *shape, told, identity, files)


def _tied(reference: Model, written: set[str]) -> bool | None:
    """Whether the result's head is its embedding; None for a model without a head."""
    heads = [alias for alias in reference.aliases if alias in _HEADS]
    if heads:
        return not any(alias in written for alias in heads)
    return None if _HEADS.isdisjoint(written) else False


def _task(place: Place, scopes: Scopes, whole: _Whole) -> MergeTask | None:
    """The output tensor at a place; None where it is left out."""
    base, method = whole.base, whole.method
    readers = ([(base, place.reference)] if base else []) + list(zip(place.models, place.names, strict=True))
    found = [(model, name, model.info(name)) for model, name in readers]
    first = place.home.info(place.reference)
    if any(matches(wanted, place.reference, place.layer) for wanted in whole.exclude):
        return _kept(place, first, whole, "is excluded") if first else None
    lacking = next((model for model, _, info in found if info is None), None)
    if lacking is not None or first is None:
        return _lacking(place, lacking or place.home, first, whole)
    _check_alike(place, [(m, i) for m, _, i in found if i is not None], first)
    parts = tuple(part(model, name, info) for model, name, info in found if info is not None)
    if first.dtype.kind != "float":
        kept = part(place.home, place.reference, first)
        others = tuple(p for p in parts if p.model is not place.home)
        return MergeTask(TensorSpec(place.output, first.dtype, first.shape), (kept, *others), (), copied=True)
    numbers = scopes.at(place.names[0], place.layer)
    out = whole.chosen or first.dtype
    unchanged = method.unchanged is not None and method.unchanged(dict(numbers)) and out == parts[0].dtype
    spec = TensorSpec(place.output, out, first.shape)
    if unchanged:
        return MergeTask(spec, parts[:1], numbers, copied=True)
    wants_matrix, is_matrix = method.granularity == "matrix", len(first.shape) > 1 and first.count > 0
    known = whole.measured.parts(place.names, first) if is_matrix or not wants_matrix else ()
    held = tuple(part(*each) for each in known)
    if method.otherwise and ((method.statistics and not held) or (wants_matrix and not is_matrix)):
        return MergeTask(spec, parts, numbers, otherwise=True)
    if wants_matrix:
        transposed = place.names[0] in whole.measured.transposed
        gram = whole.measured.shape(place.names)
        return MergeTask(spec, parts, numbers, matrix=True, grams=held, gram_shape=gram, transposed=transposed)
    return MergeTask(spec, (*parts, *held), numbers, statistics=len(held))


def _lacking(place: Place, model: Model, first: TensorInfo | None, whole: _Whole) -> MergeTask | None:
    name, missing, warnings = printable(place.reference), whole.missing, whole.warnings
    if missing == "error" or first is None:
        fact = f"{printable(model.label)}: the tensor {name} is missing"
        raise InvalidInput(fact, "--missing base copies it from the base or first model, --missing skip leaves it out")
    if missing == "skip":
        warnings.append(f"{printable(model.label)}: {name} is missing: left out of the result")
        return None
    warnings.append(f"{printable(model.label)}: {name} is missing: copied from {place.home.label}")
    return _kept(place, first, whole, f"is missing in {printable(model.label)}")


def _kept(place: Place, first: TensorInfo, whole: _Whole, why: str) -> MergeTask:
    """The base's or first model's tensor as it is."""
    out = whole.chosen or first.dtype if first.dtype.kind == "float" else first.dtype
    if out != first.dtype:
        fact = f"{printable(place.reference)} {why} and cannot be copied as {out.code}"
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
