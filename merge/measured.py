"""What was measured and learned about the models of a job: statistics beside each, coefficients for all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paramsmith.coefficients import Coefficients
from paramsmith.errors import InvalidInput, printable
from paramsmith.header import TensorInfo
from paramsmith.memory import StateDict
from paramsmith.params import validated
from paramsmith.recipe import Recipe
from paramsmith.registry import MergeMethod, find_method
from paramsmith.statistics import About, Statistics

if TYPE_CHECKING:
    from torch import Tensor

    from .job import Model


@dataclass(frozen=True)
class Measured:
    """The statistics of every model, in model order; nothing where the method takes none."""

    statistics: tuple[Statistics, ...]

    @property
    def transposed(self) -> frozenset[str]:
        """Weights that are stored (in, out)."""
        return frozenset(name for each in self.statistics for name in each.about.transposed)

    def fingerprint(self) -> list[dict[str, object]]:
        """What tells these files from others, as JSON."""
        return [each.fingerprint() for each in self.statistics]

    def shape(self, names: Sequence[str]) -> tuple[int, ...]:
        """The shape of one tensor's statistics."""
        return next((i.shape for each in self.statistics[:1] if (i := each.info(names[0])) is not None), ())

    def parts(self, names: Sequence[str], info: TensorInfo) -> tuple[tuple[Statistics, str, TensorInfo], ...]:
        """The statistics of one tensor, a model each; none where no model has any. InvalidInput when some have."""
        found = [(each, name, each.info(name)) for each, name in zip(self.statistics, names, strict=False)]
        known = tuple((each, name, held) for each, name, held in found if held is not None)
        if known and len(known) < len(found):
            label, other = next(each.label for each, _, held in found if held is None), known[0][0].label
            fact = f"{printable(label)}: has nothing about {printable(names[0])}, but {printable(other)} has"
            raise InvalidInput(fact, "measure all models in the same way")
        for each, name, held in known:
            wanted = _shape(each, name, info)
            if held.shape != wanted or held.shape != known[0][2].shape:
                fact = f"{printable(each.label)}: tensor {printable(name)} has shape {list(held.shape)}"
                expected = wanted if held.shape != wanted else known[0][2].shape
                raise InvalidInput(f"{fact}, not {list(expected)}", "it was measured on another model")
        return known


def measured(
    method: MergeMethod, recipe: Recipe, models: Sequence[Model], statistics: Sequence[Statistics]
) -> Measured:
    """The statistics, held against their models and read through once. InvalidInput says what does not fit."""
    if method.statistics is None:
        if statistics:
            raise InvalidInput(f"{method.name} uses no statistics", "leave them out, or see: paramsmith methods")
        return Measured(())
    kind = method.statistics
    if recipe.slices is not None:
        raise InvalidInput(f"{method.name} cannot stack slices", "its statistics are about whole models")
    if len(statistics) != len(models):
        fact = f"{method.name} needs the {kind} statistics of every model: {len(models)} files, {len(statistics)} given"
        raise InvalidInput(fact, f"make them with paramsmith measure {kind}; give --statistics once a model, in order")
    for each, model in zip(statistics, models, strict=True):
        each.check_model(model)
        each.check_values()
    return Measured(tuple(statistics))


def open_statistics(recipe: Recipe) -> Iterator[Statistics]:
    """The statistics files that a recipe names, opened. InvalidInput when only some models have one."""
    paths = [entry.statistics for entry in recipe.models]
    if not any(paths):
        return
    wanted = find_method(recipe.method).statistics
    for entry, path in zip(recipe.models, paths, strict=True):
        if path is None:
            fact = f"{printable(entry.model)} has no statistics, other models do"
            raise InvalidInput(fact, "give --statistics once a model, in model order")
        if wanted is None:
            raise InvalidInput(f"{recipe.method} uses no statistics", "leave them out, or see: paramsmith methods")
        yield Statistics.open(path, wanted)


def held_statistics(method: str, tensors: Sequence[Mapping[str, Tensor]]) -> list[Statistics]:
    """Statistics that a caller holds in memory, as float32."""
    kind = find_method(method).statistics or "fisher"
    about = About(kind=kind, estimator="given", examples=1, model="", data="")
    held = [{name: tensor.float() for name, tensor in each.items()} for each in tensors]
    return [Statistics(StateDict(each, f"statistics {i + 1}"), about) for i, each in enumerate(held)]


def learned(recipe: Recipe, models: Sequence[Model], base: Model | None) -> tuple[Recipe, Coefficients | None]:
    """The recipe as its coefficients complete it, and these."""
    if recipe.coefficients is None:
        return recipe, None
    found, path = Coefficients.load(recipe.coefficients), printable(recipe.coefficients)
    if recipe.slices is not None:
        raise InvalidInput(f"{path}: coefficients cannot go with slices", "they are about whole models")
    if found.method != recipe.method:
        fact = f"{path}: these are coefficients of {printable(found.method)}, not of {printable(recipe.method)}"
        raise InvalidInput(fact, f"leave the method out, or give {printable(found.method)}")
    if found.parameter not in find_method(found.method).params.settings():
        fact = f"{path}: {printable(found.method)} has no {printable(found.parameter)} that varies by model or tensor"
        raise InvalidInput(fact, "learn them again")
    names = {found.parameter, found.parameter.rstrip("_")}
    said = {*recipe.parameters, *(key for entry in recipe.models for key in entry.parameters)}
    again = {name for name, value in found.parameters.items() if recipe.parameters.get(name, value) != value}
    for shown in sorted([*([found.parameter.rstrip("_")] if names & said else []), *again]):
        raise InvalidInput(f"{path} already gives {printable(shown)}", "leave it out, or the coefficients")
    _check_learned(found, path)
    if recipe.seed and found.seed is not None and recipe.seed != found.seed:
        raise InvalidInput(f"{path} was learned with the seed {found.seed}, not {recipe.seed}", "leave the seed out")
    found.check_models(models, base, recipe.coefficients)
    parameters = {**found.parameters, **recipe.parameters}
    seed = found.seed if found.seed is not None else recipe.seed
    return recipe.model_copy(update={"parameters": parameters, "seed": seed}), found


def _check_learned(found: Coefficients, path: str) -> None:
    """InvalidInput for values that the parameter cannot take, or as many of them as the method has no use for."""
    params = find_method(found.method).params
    shown = params.model_fields[found.parameter].alias or found.parameter
    rows = [row for listed in (found.default, *found.values.values()) for row in listed]
    for value in {min(map(min, rows)), max(map(max, rows))}:  # what a number may be is an interval
        try:
            validated(params, {shown: value}, found.method)
        except InvalidInput as problem:
            raise InvalidInput(f"{path}: {problem.fact}", "learn them again") from None
    if len(rows[0]) not in (1, found.parameters.get("partitions", 1)):
        fact = f"{path}: {len(rows[0])} values a tensor are not one a partition of {printable(found.method)}"
        raise InvalidInput(fact, "learn them again")


def _shape(statistics: Statistics, name: str, info: TensorInfo) -> tuple[int, ...]:
    """The shape that a model's tensor wants its statistics to have."""
    if statistics.about.kind != "gram":
        return info.shape
    if name in statistics.about.transposed:
        return (info.shape[0], info.shape[0])
    inputs = info.count // info.shape[0]
    held = statistics.info(name)
    if held is not None and len(held.shape) == 3 and held.shape[0] and not info.shape[0] % held.shape[0]:
        # a convolution in groups
        return (held.shape[0], inputs, inputs)
    return (inputs, inputs)
