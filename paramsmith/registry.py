"""What can be asked for by name. Registration is the decorator; modules are found through an entry point, ours too."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from paramsmith.errors import Failed, InvalidInput, printable
from paramsmith.params import Params
from paramsmith.surveys import BlockFunction, Survey

if TYPE_CHECKING:
    from paramsmith.statistics import Kind

BaseUse: TypeAlias = Literal["required", "optional", "unused"]
Granularity: TypeAlias = Literal["element", "matrix"]
Surveys: TypeAlias = "Sequence[Survey] | Callable[[Any], Sequence[Survey]]"
F = TypeVar("F", bound=BlockFunction)

ENTRY_POINTS, OURS = "paramsmith.merge_methods", "paramsmith.merge.methods"


@dataclass(frozen=True)
class MergeMethod:
    """A merge method as declared: the function, its parameters, and what the engine and the laws need to know.

    `base` required: the block holds deltas and the function returns the update; optional: the same when a base is
    given, else models and the merged value; unused: models. `unchanged` tells from the values of one tensor that the
    result is the first model's bytes. `symmetric`: permuting models with their values changes nothing. `copies`: N
    copies of one model give that model back. `zero`: the parameter whose 0 gives the base.

    `statistics`: a statistics file of this kind comes with every model; the method finds its values in
    `seen.statistics`. `granularity` matrix: it gets whole weights as matrices, (models, out, in) -> (out, in).
    `otherwise`, (models, n) -> (n), is for the tensors that cannot be had so.
    """

    name: str
    function: BlockFunction
    params: type[Params]
    base: BaseUse
    models: tuple[int, int | None]
    surveys: Callable[[Any], Sequence[Survey]]
    random: bool
    symmetric: bool
    copies: bool
    zero: str | None
    unchanged: Callable[[Mapping[str, tuple[float, ...]]], bool] | None
    statistics: Kind | None
    granularity: Granularity
    otherwise: BlockFunction | None
    paper: str

    @property
    def doc(self) -> str:
        """The function's docstring."""
        return (self.function.__doc__ or "").strip()


_METHODS: dict[str, MergeMethod] = {}


def merge_method(
    name: str,
    params: type[Params],
    *,
    base: BaseUse,
    models: tuple[int, int | None] = (1, None),
    surveys: Surveys = (),
    random: bool = False,
    symmetric: bool = True,
    copies: bool = True,
    zero: str | None = None,
    unchanged: Callable[[Mapping[str, tuple[float, ...]]], bool] | None = None,
    statistics: Kind | None = None,
    granularity: Granularity = "element",
    otherwise: BlockFunction | None = None,
    paper: str = "",
) -> Callable[[F], F]:
    """Register a function of one block, `(block, seen, p) -> (n)`, as a merge method; the function is returned as is.

    `block` is (models, n): what the models hold, or their differences from the base (see MergeMethod.base).
    """

    def register(function: F) -> F:
        if name in _METHODS:
            both = f"{_METHODS[name].function.__module__} and {function.__module__}"
            raise ValueError(f"the merge method {name!r} is registered twice: by {both}")
        if otherwise is None and (statistics or granularity == "matrix"):
            raise TypeError(
                f"{name}: say what becomes of tensors without statistics, or that are no matrices: otherwise="
            )
        fixed: Sequence[Survey] = () if callable(surveys) else surveys
        listed = surveys if callable(surveys) else lambda _: fixed
        _METHODS[name] = MergeMethod(
            name,
            function,
            params,
            base,
            models,
            listed,
            random,
            symmetric,
            copies,
            zero,
            unchanged,
            statistics,
            granularity,
            otherwise,
            paper,
        )
        return function

    return register


def methods() -> dict[str, MergeMethod]:
    """Every merge method by name: ours and those of installed plug-ins, in order of name."""
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.value != OURS):
        load_entry_point(point)
    return dict(sorted(_METHODS.items()))


def load_entry_point(point: EntryPoint) -> None:
    """Import what registers. Failed names the plug-in that cannot be loaded, and how to be rid of it."""
    try:
        point.load()
    except Exception as problem:  # somebody else's module may fail in any way
        owner = printable(point.dist.name if point.dist else point.value)
        told = printable(f"{type(problem).__name__}: {problem}".partition("\n")[0], 300)
        fact = f"the plug-in {owner} ({point.value}) cannot be loaded: {told}"
        raise Failed(fact, f"update it, or remove it: pip uninstall {owner}") from problem


def find_method(name: str) -> MergeMethod:
    """The method of that name; InvalidInput with the nearest match otherwise."""
    known = methods()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name.replace("-", "_").lower(), known, 1)
    hint = f"did you mean {near[0]!r}?" if near else "paramsmith methods lists them"
    raise InvalidInput(f"no merge method is called {printable(name)!r}", hint)
