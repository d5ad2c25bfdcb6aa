"""From what the recipe says to the values at one tensor: model entry, then slice, then recipe, then default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from paramsmith.coefficients import Coefficients
from paramsmith.errors import InvalidInput, printable
from paramsmith.params import Layer, Params, Resolved, Setting, validated
from paramsmith.recipe import Recipe
from paramsmith.registry import MergeMethod

# {varying parameter: one value a model, or one}; hashable, as tensors with the same values share blocks
Numbers: TypeAlias = tuple[tuple[str, tuple[float, ...]], ...]


class Scopes:
    """The parameters of one list of models: the models of a recipe, or the sources of one slice."""

    def __init__(
        self,
        method: MergeMethod,
        recipe: Recipe,
        entries: Sequence[Mapping[str, object]],
        inner: Mapping[str, object],
        coefficients: Coefficients | None = None,
    ) -> None:
        self.method = method
        self.models = len(entries)
        self._learned = coefficients
        self._same: Numbers | None = None
        names = {(f.alias or n): n for n, f in method.params.model_fields.items()}
        self.options = validated(method.params, recipe.parameters, method.name)
        scopes = [validated(method.params, s, method.name) for s in (inner, recipe.parameters)]
        own = [validated(method.params, entry, method.name) for entry in entries]
        self._check_own(entries, own, names)
        self._chains: dict[str, list[list[Setting[float]]]] = {}
        for name, kind in method.params.settings().items():
            said = [s for s, plain in zip(scopes, (inner, recipe.parameters), strict=True) if _says(plain, name, names)]
            default = method.params()
            common = [getattr(scope, name) for scope in (*said, default)]
            self._check_width(name, kind, common)
            mine = [[getattr(o, name)] if _says(e, name, names) else [] for o, e in zip(own, entries, strict=True)]
            self._chains[name] = [m + common for m in mine] if kind == "model" else [common]
        self._checked: set[Numbers] = set()
        varies = any(setting.varies for chains in self._chains.values() for chain in chains for setting in chain)
        self._same = None if varies or coefficients else self.at("", None)

    def _check_own(
        self, entries: Sequence[Mapping[str, object]], own: Sequence[Params], names: Mapping[str, str]
    ) -> None:
        kinds = self.method.params.settings()
        for entry, options in zip(entries, own, strict=True):
            for key in entry:
                name = names.get(key, key)
                if kinds.get(name) != "model":
                    raise InvalidInput(f"{key} is not set model by model", "give it once, for the whole merge")
                if len(getattr(options, name).models) != 1:
                    raise InvalidInput(f"{key} of one model has several values", "a model's own entry takes one value")

    def _check_width(self, name: str, kind: str, settings: Sequence[Setting[float]]) -> None:
        shown = self.method.params.model_fields[name].alias or name
        for setting in settings:
            width = len(setting.models)
            if kind == "tensor" and width > 1:
                hint = "for values over the layers write a gradient: 0..0.5..1, in a recipe {gradient: [0, 0.5, 1]}"
                raise InvalidInput(f"{shown} takes one value, not {width}", hint)
            if width not in (1, self.models):
                fact = f"{shown} has {width} values for {self.models} models"
                raise InvalidInput(fact, "give one value, or one a model in model order; the base is not counted")

    def at(self, name: str, layer: Layer | None) -> Numbers:
        """The values at one tensor; InvalidInput when the method cannot use them together."""
        if self._same is not None:
            return self._same
        numbers = tuple(
            (field, tuple(_first(chain, model, name, layer) for model, chain in enumerate(chains)))
            for field, chains in self._chains.items()
        )
        if self._learned is not None:
            each = self.method.params.settings()[self._learned.parameter] == "model"
            values = self._learned.at(name, self.models if each else 1)
            numbers = tuple((field, values if field == self._learned.parameter else old) for field, old in numbers)
        if numbers not in self._checked:
            try:
                self.options.check(dict(numbers))
            except ValueError as problem:
                place = f" at {printable(name)}" if self._checked else ""
                fact, _, hint = str(problem).partition("; ")
                raise InvalidInput(f"{self.method.name}{place}: {fact}", hint) from None
            self._checked.add(numbers)
        return numbers


def _says(plain: Mapping[str, object], name: str, names: Mapping[str, str]) -> bool:
    return any(names.get(key, key) == name for key in plain)


def _first(chain: Sequence[Setting[float]], model: int, name: str, layer: Layer | None) -> float:
    values = (setting.at(model, name, layer) for setting in chain)
    return next(value for value in values if value is not None)


class Common(Resolved[Any]):
    """The parameters that several tensors share; InvalidInput when one is asked for that varies among them."""

    def __init__(self, method: MergeMethod, options: Params, listed: Sequence[Numbers]) -> None:
        super().__init__(options, {}, dict(listed[0]))
        self._method, self._all = method, [dict(numbers) for numbers in set(listed)]

    def values(self, name: str) -> tuple[float, ...]:
        """The values of a parameter."""
        first = super().values(name)
        if any(numbers[name] != first for numbers in self._all):
            shown = self._method.params.model_fields[name].alias or name
            fact = f"{self._method.name} looks at the whole model at once, so {shown} cannot vary from tensor to tensor"
            raise InvalidInput(fact, "give it one value a model, or a flavour that works tensor by tensor")
        return first
