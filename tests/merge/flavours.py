"""Every registered merge method in every one of its flavours, and models to try them on."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor

from paramsmith.memory import MemorySink, StateDict
from paramsmith.merge import merge_state_dicts
from paramsmith.merge.api import RunOptions
from paramsmith.merge.engine import run_job
from paramsmith.merge.job import prepare
from paramsmith.merge.measured import held_statistics
from paramsmith.merge.setup import prepare_setup
from paramsmith.params import validated
from paramsmith.recipe import ModelEntry, Recipe
from paramsmith.registry import MergeMethod, find_method, methods
from paramsmith.surveys import Survey


@dataclass(frozen=True)
class Flavour:
    """A method with one choice for each of its flags and Literals."""

    method: MergeMethod
    options: Mapping[str, object]

    def __str__(self) -> str:
        return "-".join([self.method.name, *(f"{k}_{v}" for k, v in self.options.items())])

    @property
    def bases(self) -> tuple[bool, ...]:
        """With a base, without, or either."""
        return {"required": (True,), "optional": (False, True), "unused": (False,)}[self.method.base]

    def count(self, wanted: int) -> int:
        """The number of models nearest to the wanted one that the method takes."""
        least, most = self.method.models
        return max(least, min(wanted, most or wanted))

    def surveys(self) -> Sequence[Survey]:
        """What it asks about the models."""
        return self.method.surveys(validated(self.method.params, self.options, self.method.name))

    def merge(self, models: Sequence[Mapping[str, Tensor]], base: Mapping[str, Tensor] | None, **more: Any) -> Any:
        """The merged dict."""
        if self.method.statistics:
            more = {"statistics": [statistics(self.method.statistics, model) for model in models], **more}
        return merge_state_dicts(models, base=base, method=self.method.name, **{**self.options, **more})


def choices(method: MergeMethod) -> list[dict[str, object]]:
    """Every combination of the method's flags and Literals."""
    found: dict[str, Sequence[object]] = {}
    for name, field in method.params.model_fields.items():
        if get_origin(field.annotation) is Literal:
            found[field.alias or name] = get_args(field.annotation)
        elif field.annotation is bool:
            found[field.alias or name] = (False, True)
    return [dict(zip(found, chosen, strict=True)) for chosen in itertools.product(*found.values())]


def covering(flavours: Sequence[Flavour], width: int) -> list[Flavour]:
    """As few flavours of every method as still contain every combination of `width` options' values."""

    def combinations(flavour: Flavour) -> set[object]:
        items = sorted(flavour.options.items())
        return {(flavour.method.name, *c) for c in itertools.combinations(items, min(width, len(items)))}

    left = set().union(*map(combinations, flavours))
    kept: list[Flavour] = []
    while left:
        kept.append(max(flavours, key=lambda flavour: len(combinations(flavour) & left)))
        left -= combinations(kept[-1])
    return sorted(kept, key=str)


EVERY = [Flavour(method, options) for method in methods().values() for options in choices(method)]
ALL = covering(EVERY, 2)  # every pair of options: all that laws need, and a tenth of the time
FEW = covering(EVERY, 1)  # every option once: for what is slow


def state_dict(
    seed: int, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Normal numbers, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def statistics(kind: str, model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Made-up statistics that depend on the model's values alone, not on its place or dtype."""
    made = {"elsewhere": torch.ones(1, 1)}
    for name, tensor in model.items():
        wide = tensor.float().nan_to_num()
        if kind == "fisher":
            made[name] = wide**2 + 0.1
        elif tensor.ndim > 1 and 0 < (inputs := tensor.shape[1:].numel()) < 1000 and tensor.numel():
            generator = torch.Generator().manual_seed(int(wide.abs().sum() * 1e4))
            drawn = torch.randn(3 * inputs, inputs, generator=generator)
            made[name] = drawn.T @ drawn / len(drawn)
    return made


def run(
    models: Sequence[Mapping[str, Tensor]], base: Mapping[str, Tensor] | None, method: str, **parameters: object
) -> tuple[dict[str, Tensor], list[str]]:
    """The merged dict and the warnings that only the data gave."""
    entries = tuple(ModelEntry(model=f"model {i + 1}") for i in range(len(models)))
    recipe = Recipe(method=method, models=entries, parameters=parameters)
    held = [StateDict(m, e.model) for m, e in zip(models, entries, strict=True)]
    kind = find_method(method).statistics
    measured = held_statistics(method, [statistics(kind, model) for model in models] if kind else [])
    job = prepare(recipe, held, None if base is None else StateDict(base, "the base"), measured)
    setup, _ = prepare_setup(job, RunOptions(memory=1 << 40, threads=1, compile="never"))
    sink = MemorySink(task.spec for task in job.tasks)
    return sink.tensors, run_job(job, setup, sink, None)
