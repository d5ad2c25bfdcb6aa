"""What a user sets: the frozen `Params` base of every method, and settings that vary by model, layer and tensor name.

Plain data of a setting (recipe, Python call):

    0.5                                     the same for all
    [0.3, 0.5, 0.2]                         one value a model, in model order
    {gradient: [0, 0.5, 1]}                 over the layers: anchors, piecewise linear; t = 0 outside the layers
    {value: ..., filter: mlp}               only tensors whose name matches
    [{value: ..., filter: mlp}, {value: ...}]       the first match wins

A filter is a substring, `/regex/`, `layers[0:8]` (half-open, negative from the end), any of them negated by `!`, or
several joined by `&`. `*` matches everything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from paramsmith.errors import InvalidInput, printable

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
P = TypeVar("P", bound="Params")

Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]


class Layer(BaseModel):
    """Where a tensor stands in its stack of layers: 0 <= index < count."""

    model_config = ConfigDict(frozen=True)
    index: int
    count: int


class Rule(BaseModel, Generic[T]):
    """One value (or the anchors of a gradient) for the tensors a filter lets through."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    anchors: tuple[T, ...]
    filter: str | None = None

    def at(self, layer: Layer | None) -> T:
        """The value at a layer: piecewise linear over equally spaced anchors; the first anchor outside the layers."""
        if len(self.anchors) == 1 or layer is None:
            return self.anchors[0]
        t = layer.index / (layer.count - 1) if layer.count > 1 else 1.0
        if not isinstance(self.anchors[0], float):
            return self.anchors[int(t * (len(self.anchors) - 1))]
        place = t * (len(self.anchors) - 1)
        left = min(int(place), len(self.anchors) - 2)
        a, b = self.anchors[left], self.anchors[left + 1]
        return a + (place - left) * (b - a)  # type: ignore[operator, no-any-return]


class Setting(BaseModel, Generic[T]):
    """Values of one parameter: for each model (or once for all) the rules in the order they are tried."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    models: tuple[tuple[Rule[T], ...], ...]

    @model_validator(mode="before")
    @classmethod
    def _from_plain(cls, plain: object) -> object:
        if isinstance(plain, Setting) or (isinstance(plain, Mapping) and set(plain) == {"models"}):
            return plain
        return {"models": _chains(plain)}

    @property
    def varies(self) -> bool:
        """Whether tensors of one model may get different values."""
        return any(len(rules) > 1 or any(r.filter or len(r.anchors) > 1 for r in rules) for rules in self.models)

    def at(self, model: int, name: str, layer: Layer | None) -> T | None:
        """The value for one tensor of one model; None where no filter matches."""
        rules = self.models[model if len(self.models) > 1 else 0]
        return next((rule.at(layer) for rule in rules if matches(rule.filter, name, layer)), None)

    def plain(self) -> object:
        """The plain data this setting was made from, in its shortest form."""
        chains = [_plain_chain(rules) for rules in self.models]
        return chains[0] if len(chains) == 1 else chains


if TYPE_CHECKING:
    PerModel = Annotated[Setting[T] | T, "model"]  # a plain default is as good
    PerTensor = Annotated[Setting[T] | T, "tensor"]
else:  # pydantic gives Setting[T] back as Setting, which Annotated cannot subscript

    class PerModel:
        """A setting with one value a model: `PerModel[Number]`."""

        def __class_getitem__(cls, item):
            return Annotated[Setting[item], "model"]

    class PerTensor:
        """A setting with one value for all models: `PerTensor[Number]`."""

        def __class_getitem__(cls, item):
            return Annotated[Setting[item], "tensor"]


def _chains(plain: object) -> list[list[dict[str, object]]]:
    if isinstance(plain, Mapping) and "gradient" not in plain:
        values = _per_model(plain.get("value"))
        return [[_rule(value, plain)] for value in values]
    if isinstance(plain, Sequence) and plain and all(isinstance(p, Mapping) and "value" in p for p in plain):
        columns = [_chains(p) for p in plain]
        width = max(len(c) for c in columns)
        if any(len(c) not in (1, width) for c in columns):
            raise ValueError("the rules of one parameter give different numbers of models")
        return [[rule for c in columns for rule in c[m if len(c) > 1 else 0]] for m in range(width)]
    if isinstance(plain, Sequence) and not isinstance(plain, str) and any(isinstance(p, list) for p in plain):
        return [_chains(p)[0] for p in plain]
    return [[_rule(value, {})] for value in _per_model(plain)]


def _per_model(value: object) -> list[object]:
    if isinstance(value, list | tuple) and not value:
        raise ValueError("an empty list of values")
    return list(value) if isinstance(value, list | tuple) else [value]


def _rule(value: object, keys: Mapping[str, object]) -> dict[str, object]:
    unknown = set(keys) - {"value", "filter"}
    if unknown:
        raise ValueError(f"unknown key {sorted(map(str, unknown))[0]!r}: a setting has value and filter")
    anchors = value["gradient"] if isinstance(value, Mapping) and set(value) == {"gradient"} else [value]
    wanted = keys.get("filter")
    if isinstance(wanted, list):
        wanted = "&".join(map(str, wanted))
    if not isinstance(anchors, list | tuple) or not anchors:
        raise ValueError("a gradient is a list of one or more values")
    _parsed(str(wanted or "*"))
    return {"anchors": anchors, "filter": None if wanted in (None, "*") else wanted}


def _plain_chain(rules: Sequence[Rule[T]]) -> object:
    def value(rule: Rule[T]) -> object:
        return rule.anchors[0] if len(rule.anchors) == 1 else {"gradient": list(rule.anchors)}

    if len(rules) == 1 and not rules[0].filter:
        return value(rules[0])
    return [{"value": value(r)} | ({"filter": r.filter} if r.filter else {}) for r in rules]


def matches(wanted: str | None, name: str, layer: Layer | None) -> bool:
    """Whether a filter lets a tensor through.

    >>> matches("mlp&!layers[0:2]", "layers.3.mlp.up", Layer(index=3, count=8))
    True
    """
    return wanted is None or all(_term(term, name, layer) for term in _parsed(wanted))


def check_filters(filters: Sequence[str]) -> None:
    """InvalidInput for a filter that cannot be read."""
    for wanted in filters:
        try:
            _parsed(wanted)
        except ValueError as problem:
            raise InvalidInput(str(problem), "a filter is part of a name, /a regex/, layers[0:8]; ! negates") from None


def _parsed(wanted: str) -> list[str]:
    terms = [wanted] if wanted.startswith(("/", "!/")) else wanted.split("&")
    for term in terms:
        body = term.removeprefix("!")
        if not body:
            raise ValueError("an empty filter matches nothing: use * for everything")
        if body.startswith("/"):
            if not body.endswith("/") or len(body) < 3:
                raise ValueError(f"the filter {term!r} opens a regular expression without closing it: /.../")
            try:
                re.compile(body[1:-1])
            except re.error as problem:
                raise ValueError(f"the filter {term!r} is no regular expression: {problem}") from None
        elif body.startswith("layers[") and not _LAYERS.fullmatch(body):
            raise ValueError(f"the filter {term!r} is no layer range: layers[0:8]")
    return terms


_ENDING = re.compile(r"(.[0-9]+)+$")
_LAYERS = re.compile(r"layers\[(-?\d+)?:(-?\d+)?\]")


def _term(term: str, name: str, layer: Layer | None) -> bool:
    body = term.removeprefix("!")
    if body == "*":
        hit = True
    elif body.startswith("/"):
        hit = re.search(body[1:-1], name) is not None
    elif ends := _LAYERS.fullmatch(body):
        low, high = (int(e) if e else None for e in ends.groups())
        hit = layer is not None and layer.index in range(layer.count)[low:high]
    else:
        hit = body in name
    return hit != term.startswith("!")


class Params(BaseModel):
    """Base of every method's and generator's options: frozen, closed to unknown names, documented field by field."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, validate_default=True)

    def check(self, numbers: Mapping[str, tuple[float, ...]]) -> None:
        """Raise ValueError when the values of one tensor cannot be used together; called before any data is read."""

    @classmethod
    def settings(cls) -> dict[str, str]:
        """The fields that may vary: {field: "model" or "tensor"}, in order of declaration."""
        marks = {name: [m for m in f.metadata if m in ("model", "tensor")] for name, f in cls.model_fields.items()}
        return {name: mark[0] for name, mark in marks.items() if mark}


class Resolved(Generic[P]):
    """A method's parameters at one tensor: `p.options` as set; every varying one an attribute, as a tensor.

    `p.weight` is (models, 1) for a per-model parameter and (1,) for a per-tensor one, in the arithmetic's dtype, so
    that a compiled kernel serves all values. `p.values("weight")` gives Python floats, outside kernels only.
    """

    def __init__(self, options: P, tensors: Mapping[str, Tensor], numbers: Mapping[str, tuple[float, ...]]) -> None:
        self.options = options
        self._tensors = tensors
        self._numbers = numbers

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def models(self) -> int:
        """How many models there are, as far as a per-model parameter tells."""
        return max((len(values) for values in self._numbers.values()), default=1)

    def values(self, name: str) -> tuple[float, ...]:
        """The values of a parameter, one a model (or one)."""
        return self._numbers[name]


def parse_option(text: str) -> object:
    """One value of the command line as plain data.

    >>> parse_option("0.3,0.5"), parse_option("0..1"), parse_option("mlp=0.5"), parse_option("true")
    ([0.3, 0.5], {'gradient': [0, 1]}, {'value': 0.5, 'filter': 'mlp'}, True)
    """
    wanted, equals, rest = text.rpartition("=")
    if equals and wanted:
        return {"value": parse_option(rest), "filter": wanted}
    if "," in text:
        return [_atom(part) for part in text.split(",")]
    return _atom(text)


def _atom(text: str) -> object:
    if ".." in text:
        return {"gradient": [_atom(part) for part in text.split("..")]}
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text) if re.search(r"[.eEn]", text) else int(text)
    except ValueError:
        return text


def validated(params: type[P], values: Mapping[str, object], where: str, hint: str = "") -> P:
    """Validate plain values into a method's parameters; every mistake in one InvalidInput."""
    try:
        return params.model_validate(dict(values))
    except ValidationError as problem:
        found = problem.errors()
        # a list is also told to be too short for what is wrong in it
        kept = [e for e in found if e["type"] != "too_short" or not any(_is_inside(o["loc"], e["loc"]) for o in found)]
        told = [(".".join(str(p) for p in e["loc"] if p not in ("models", "anchors")), e) for e in kept]
        known = [field.alias or name for name, field in params.model_fields.items()]
        facts = [
            f"there is no parameter {printable(name)}, but {', '.join(known)}"
            if e["type"] == "extra_forbidden"
            else f"{_ENDING.sub('', name)}: {e['msg']}, found {printable(e['input'], 40)}"
            for name, e in told
        ]
        unique = "; ".join(dict.fromkeys(facts))
        raise InvalidInput(f"{where}: {unique}", hint or f"see: paramsmith methods {where}") from None


def _is_inside(inner: Sequence[object], outer: Sequence[object]) -> bool:
    return len(inner) > len(outer) and tuple(inner[: len(outer)]) == tuple(outer)
