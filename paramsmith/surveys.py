"""What a method may ask about a whole tensor or a whole model before it merges: declarations only.

A survey says *what* number it needs as a pure function of blocks; how the blocks are streamed, bracketed, merged across
workers and made exact is the engine's (`merge/survey.py`, `order.py`). Surveys run in the order declared, each seeing
the values of those before it. `of` gets the same block as the method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from paramsmith.params import Resolved

if TYPE_CHECKING:
    from torch import Tensor

Scope: TypeAlias = Literal["tensor", "model"]
BlockFunction: TypeAlias = "Callable[[Tensor, Seen, Resolved[Any]], Tensor]"


class Seen(Mapping[str, "Tensor"]):
    """The values of the surveys so far, by name; the block's counter-based random numbers, and its statistics."""

    def __init__(
        self,
        values: Mapping[str, Tensor],
        uniform: Callable[[], Tensor] | None = None,
        statistics: Tensor | None = None,
    ) -> None:
        self._values = values
        self._uniform = uniform
        self._statistics = statistics

    def __getitem__(self, name: str) -> Tensor:
        return self._values[name]

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def uniform(self) -> Tensor:
        """Numbers in [0, 1), (models, n), keyed by (seed, tensor, model, element): for methods with `random=True`."""
        if self._uniform is None:
            raise TypeError("declare random=True to draw random numbers")
        return self._uniform()

    @property
    def statistics(self) -> Tensor:
        """What was measured: (models, n) beside a block; for matrices their Grams, (models, in, in)."""
        if self._statistics is None:
            raise TypeError("declare statistics= to have them")
        return self._statistics


@dataclass(frozen=True)
class OrderStatistic:
    """Exact order statistics of a score: `seen[name]` is (rows, ranks), or what `then` makes of them.

    `of` maps a block to scores (rows, n); a NaN ranks lowest. `ranks` maps (element count, parameters) to zero-based
    ascending ranks, one list a row. `then` does once what every block would do again; `notes` gives warnings by model.
    """

    name: str
    of: BlockFunction
    ranks: Callable[[int, Resolved[Any]], Sequence[Sequence[int]]]
    scope: Scope = "model"
    then: Callable[[Tensor], Tensor] | None = None
    notes: Callable[[Tensor], Mapping[int, str]] | None = None


@dataclass(frozen=True)
class Sum:
    """Sums over all elements, float64 beyond canonical cuts: `of` gives terms (t, n); `then` maps (t,) to the value."""

    name: str
    of: BlockFunction
    then: Callable[[Tensor, Resolved[Any]], Tensor]
    scope: Scope = "tensor"


@dataclass(frozen=True)
class Extremes:
    """Smallest and largest of each row: `of` gives (t, n), `seen[name]` is (t, 2)."""

    name: str
    of: BlockFunction
    scope: Scope = "model"


Survey: TypeAlias = OrderStatistic | Sum | Extremes
