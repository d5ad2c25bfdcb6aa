"""Positions in one order, however many classes there are: first those of no class, then class by class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from paramsmith.errors import Failed, InvalidInput
from paramsmith.hypernet.latents import Pairs, Places
from paramsmith.hypernet.protocols import Site

MOST = 1 << 31  # numbers in one prior: 8 GB; far more than a mistyped size should be allowed to ask for

Zoo: TypeAlias = Callable[[], Iterator[Pairs]]


@dataclass(frozen=True)
class Arrangement:
    """`order` (L,) are the positions: `fixed` of no class, then for each of `classes` classes `each` of them.

    Where classes do not have equally many positions, none can stand for another, and all count as of no class.
    """

    order: Tensor
    fixed: int
    each: int
    classes: int

    @classmethod
    def of(cls, places: Places) -> Arrangement:
        """That of these places."""
        found = places.classes
        counts = torch.bincount(found[found >= 0])
        if not len(counts) or bool((counts != counts[0]).any()):
            return cls(torch.arange(len(found), device=found.device), len(found), 0, 0)
        return cls(found.argsort(stable=True), int((found < 0).sum()), int(counts[0]), len(counts))

    def arranged(self, held: Tensor) -> Tensor:
        """(B, L, ...) in this order."""
        return held[:, self.order]

    def back(self, held: Tensor) -> Tensor:
        """(B, L, ...) from this order."""
        return held[:, self.order.argsort()]

    def split(self, held: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, n) -> (B, fixed, n) and (B, classes, each, n)."""
        ordered = self.arranged(held)
        rows = ordered[:, self.fixed :].reshape(len(held), self.classes, self.each, held.shape[-1])
        return ordered[:, : self.fixed], rows


class Forming:
    """What the arrangement of a zoo turns out to be, batch by batch.

    `classes` is 0 as soon as one row stands for that of any class: where the first batch is `shared`, where networks
    differ in their number of classes, or have more positions than `most`.
    """

    def __init__(self, most: int) -> None:
        self.most, self.fixed, self.each, self.classes = most, 0, 0, 0

    def see(self, here: Arrangement, *, shared: bool = False) -> int:
        """Over how many classes what was summed so far is to be summed: 0 where nothing has changed.

        InvalidInput for a network that differs in more than its classes.
        """
        if not self.fixed + self.each:
            self.fixed, self.each = here.fixed, here.each
            self.classes = 0 if shared or len(here.order) > self.most else here.classes
        if (here.fixed, here.each) != (self.fixed, self.each):
            fact = f"networks of the zoo have {_told(self.fixed, self.each)}, and others {_told(here.fixed, here.each)}"
            raise InvalidInput(fact, "train on networks that differ in the number of classes alone")
        before = self.classes
        if here.classes == before or not before:
            return 0
        self.classes = 0
        return before


class ArrangedPrior(nn.Module):
    """A prior whose tables have a row a position, in the order above: the rows of each class, or one for all.

    `form`: how many positions are of no class, how many each class has, and for how many classes (0: for any).
    """

    form: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("form", torch.zeros(3, dtype=torch.int64))

    def take_form(self, form: Forming) -> None:
        """Remember how the zoo was arranged."""
        self.form.copy_(torch.tensor([form.fixed, form.each, form.classes]))

    def arrangement(self, places: Places) -> Arrangement:
        """That of these places. InvalidInput where the zoo had another, or there was none."""
        here = Arrangement.of(places)
        fixed, each, _ = (int(n) for n in self.form)
        if not fixed + each:
            raise InvalidInput("this prior knows no network yet", "train the generator first")
        if (here.fixed, here.each) != (fixed, each):
            fact = f"the zoo's networks have {_told(fixed, each)}, and the target has {_told(here.fixed, here.each)}"
            raise InvalidInput(fact, "generate for the target of the zoo")
        return here

    def foreign(self, here: Arrangement) -> bool:
        """Whether classes have rows of their own, and these are not as many classes."""
        return int(self.form[2]) not in (0, here.classes)

    def at(self, table: Tensor, here: Arrangement) -> Tensor:
        """The rows of a table (K, ...) that belong to these positions, in this order: (L, ...).

        For a number of classes that no network had, each class has the mean over the rows of all.
        """
        fixed, each, classes = (int(n) for n in self.form)
        if not each or classes == here.classes:
            return table[: len(here.order)]
        rows = table[fixed : fixed + max(1, classes) * each].reshape(-1, each, *table.shape[1:])  # of classes, or of 1
        several = rows.mean(0, keepdim=True).expand(here.classes, *rows.shape[1:])
        return torch.cat([table[:fixed], several.flatten(0, 1)])


def networks(pairs: Zoo) -> Iterator[Pairs]:
    """The zoo, batch by batch. Failed for numbers that are not finite, InvalidInput where there is no network."""
    none = True
    for batch in pairs():
        none = False
        for what, held in (("latent", batch.latent), ("code of a condition", batch.asked)):
            if not bool(torch.isfinite(held).all()):
                raise Failed(f"a {what} of the zoo holds a number that is not finite", "look at its training")
        yield batch
    if none:
        raise InvalidInput("there are no networks to learn from", "give a zoo with networks to train on")


def latent_of(site: Site, prior: str) -> tuple[int, int]:
    """(L, D) of the site. InvalidInput where it has none."""
    if site.latent is None:
        raise InvalidInput(f"the prior {prior!r} wants to know the shape of a latent", "it is a part of a sampler")
    return site.latent


def affordable(numbers: int, prior: str, hint: str) -> None:
    """InvalidInput where a prior would hold more than MOST numbers; to be called before any is made."""
    if numbers > MOST:
        raise InvalidInput(f"the prior {prior!r} would hold {numbers:,} numbers; the most is {MOST:,}", hint)


def _told(fixed: int, each: int) -> str:
    return f"{fixed:,} positions" + (f" and {each:,} a class" if each else "")
