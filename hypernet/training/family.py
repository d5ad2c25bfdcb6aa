"""A family of architectures: a pool drawn from a seed, each built without memory and captured once, when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Generic, Protocol, TypeAlias, TypeVar, cast, runtime_checkable

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.targets.calling import Target
from paramsmith.params import Params, validated
from paramsmith.parts import families

TRAIN, TEST = "train", "test"
_MISSES = 200  # draws in a row that bring nothing new, after which a family is taken for exhausted
_HELD_OUT = 0.2  # share of a small family that is not trained on

Options = TypeVar("Options", bound="FamilyOptions")
Architecture: TypeAlias = tuple[Any, ...]  # plain and hashable
Network: TypeAlias = tuple[nn.Module, tuple[Tensor, ...]]  # with inputs that it can be run on


@runtime_checkable
class Family(Protocol):
    """Architectures to draw from."""

    def sample(self, rng: torch.Generator, split: str = TRAIN) -> Target:
        """One that depends on the state of `rng`; those of "test" are not among those of "train"."""
        ...


def _ordered(bounds: tuple[int, int]) -> tuple[int, int]:
    if not 1 <= bounds[0] <= bounds[1]:
        raise ValueError("the least and the most, 1 or more")
    return bounds


Range = Annotated[tuple[int, int], AfterValidator(_ordered)]  # both ends included


class FamilyOptions(Params):
    """What all families have."""

    count: int = Field(1000, ge=1, le=1_000_000, description="most architectures to train on, all different")
    test_count: int = Field(50, ge=1, le=1_000_000, description="most to test on, which are not trained on")
    seed: int = Field(0, ge=0, lt=2**63, description="of the architectures drawn")
    most_parameters: int | None = Field(None, ge=1, description="larger architectures are left out")
    test: dict[str, Any] = Field(default_factory=dict, description="options that differ for those to test on")


class Pool(Generic[Options]):
    """The architectures of a family: `draw` gives one as plain data, `build` its network, with inputs.

    `options.test` are options that unseen architectures have instead: wider ones, or deeper.
    """

    def __init__(
        self,
        options: Options,
        draw: Callable[[Options, np.random.Generator], Architecture],
        build: Callable[[Options, Architecture], Network],
    ) -> None:
        self.options = options
        self._draw, self._build = draw, build
        unseen = {**options.model_dump(), **options.test, "test": {}}
        told = "test has options of the family itself"
        self._unseen = validated(type(options), unseen, "the architectures to test on", told)
        self._drawn: dict[str, Sequence[Architecture]] = {}
        self._targets: dict[Architecture, Target] = {}
        self._sizes: dict[Architecture, int] = {}

    def sample(self, rng: torch.Generator, split: str = TRAIN) -> Target:
        """One of the pool, by the state of `rng`."""
        drawn = self.architectures(split)
        return self.target(drawn[int(torch.randint(len(drawn), (), generator=rng))], split)

    def architectures(self, split: str = TRAIN) -> Sequence[Architecture]:
        """The pool of a split, as plain data: as many as are asked for, or as there are."""
        if not self._drawn:
            options = self.options
            own = options.test_count if not options.test else 0
            found = self._different(options, options.count + own, 0, set())
            held = own
            if len(found) < options.count + own:  # that is all of them
                held = min(own, max(len(found) > 1, int(len(found) * _HELD_OUT)))
            self._drawn[TRAIN], unseen = found[: len(found) - held], found[len(found) - held :]
            if options.test:
                unseen = self._different(self._unseen, options.test_count, 1, set(found))
            self._drawn[TEST] = unseen
        if not self._drawn[split]:
            raise InvalidInput(f"the family has no architecture to {split} on", "widen what they are drawn from")
        return self._drawn[split]

    def target(self, architecture: Architecture, split: str = TRAIN) -> Target:
        """The target of an architecture with its graph; the same object every time."""
        if architecture not in self._targets:
            module, inputs = self._built(self._unseen if split == TEST else self.options, architecture)
            self._targets[architecture] = Target.of(module, *inputs)
        return self._targets[architecture]

    def _different(self, options: Options, count: int, stream: int, known: set[Architecture]) -> list[Architecture]:
        """So many that are not known, or all there are, in the order of the draws."""
        rng = np.random.default_rng(np.random.SeedSequence((self.options.seed, stream)))
        found: dict[Architecture, None] = {}
        misses = 0
        while len(found) < count and misses < _MISSES:
            drawn = self._draw(options, rng)
            misses += 1
            if drawn not in known and drawn not in found and self._fits(options, drawn):
                found[drawn] = None
                misses = 0
        return list(found)

    def _fits(self, options: Options, architecture: Architecture) -> bool:
        if options.most_parameters is None:
            return True
        if architecture not in self._sizes:
            module, _ = self._built(options, architecture)
            self._sizes[architecture] = sum(parameter.numel() for parameter in module.parameters())
        return self._sizes[architecture] <= options.most_parameters

    def _built(self, options: Options, architecture: Architecture) -> Network:
        with torch.device("meta"):
            return self._build(options, architecture)


def family(name: str, **options: object) -> Family:
    """A registered family by its name. InvalidInput for an unknown name or option.

    >>> pool = family("mlp", count=3, inputs=4, classes=2, layers=(1, 1), widths=(8, 12))
    >>> [slot.shape for slot in pool.sample(torch.Generator().manual_seed(0)).spec.slots]
    [(12, 4), (12,), (2, 12), (2,)]
    """
    part = families.find(name)
    given: Mapping[str, object] = options
    chosen = validated(part.params, given, f"family {part.name}", "its options are those of the family's file")
    return cast(Family, part.make(chosen))


def between(rng: np.random.Generator, bounds: tuple[int, int], step: int = 1, log: bool = False) -> int:
    """A whole number from the first bound, in steps, to the second; `log` draws its logarithm evenly.

    >>> rng = np.random.default_rng(0)
    >>> [between(rng, (16, 64), 16) for _ in range(4)], [between(rng, (16, 64), 16, log=True) for _ in range(4)]
    ([64, 48, 48, 32], [16, 16, 48, 64])
    """
    low, high = bounds
    if log:
        value = float(np.exp(rng.uniform(np.log(low), np.log(high + step))))
        return low + min((high - low) // step, int((value - low) // step)) * step
    return low + step * int(rng.integers((high - low) // step + 1))
