"""What can be said of the models of a job before their tensors are paired: do they go together, what is left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from paramsmith.errors import InvalidInput, printable
from paramsmith.memory import StateDict
from paramsmith.model_config import layer_index
from paramsmith.params import Layer, matches
from paramsmith.registry import MergeMethod

if TYPE_CHECKING:
    from .job import Model


def check_models(
    method: MergeMethod, models: Sequence[Model], base: Model | None, *, deltas: bool, stacked: bool
) -> None:
    """InvalidInput when a method cannot merge these models: too many or few, one twice, other architectures."""
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


def left_out(models: Sequence[Model], exclude: Sequence[str], *, stacked: bool) -> list[str]:
    """A sentence for every model that holds tensors the reference does not; stacking chooses its layers itself."""
    reference, told = models[0], []
    for model in models[1:]:
        extra = [n for n in model.tensors if n not in reference.tensors and n not in reference.aliases]
        extra = [n for n in extra if not stacked or layer_index(n) is None]
        extra = [n for n in extra if not any(matches(wanted, n, None) for wanted in exclude)]
        if extra:
            names = ", ".join(printable(name, 80) for name in extra[:8]) + (", ..." if len(extra) > 8 else "")
            count = f"{len(extra)} tensor{'s' * (len(extra) != 1)} left out"
            told.append(f"{printable(model.label)}: {count}, {printable(reference.label)} has none: {names}")
    return told


def idle_filters(models: Sequence[Model], exclude: Sequence[str]) -> list[str]:
    """A sentence for every filter that excludes nothing."""
    names = {name for model in models for name in (*model.tensors, *model.aliases)}
    counted = max((index for index in map(layer_index, names) if index is not None), default=-1) + 1

    def layer(name: str) -> Layer | None:
        index = layer_index(name)
        return None if index is None else Layer(index=index, count=counted)

    idle = [wanted for wanted in exclude if not any(matches(wanted, name, layer(name)) for name in names)]
    return [f"nothing is excluded by {printable(wanted)}: no tensor has such a name" for wanted in idle]


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
