"""A linear map from what is asked for to weights."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from paramsmith.hypernet.latents import Noise, Pairs, Places, Sampling
from paramsmith.hypernet.protocols import Site
from paramsmith.params import Params
from paramsmith.parts import priors

from .arrangement import ArrangedPrior, Arrangement, Forming, Zoo, affordable, latent_of, networks
from .equations import Equations

ALPHAS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
_USUAL = 1e-4  # where too few networks are there to choose by
_TENTH = 10


class Ridge(Params):
    """Options of the prior `ridge`."""

    alpha: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="regularisation; chosen by a held-out tenth where it is not given"
    )


@priors("ridge", Ridge)
class RidgePrior(ArrangedPrior):
    """z = W c + b of the code c of each position, by the normal equations in fp64: a linear hypernetwork.

    Each position has a map of its own, and all of them one code, where one code stands for all; where codes tell
    classes apart, the rows of all classes have one map, which serves any number of classes. `alpha` is relative to the
    mean variance of a code's numbers, and b is not held down. For the positions that share codes, as those of one
    tensor do, that one of several alphas is taken which, fitted to the others, comes nearest to every tenth network;
    the maps are then fitted to all. Nothing is random.

    A generator that does not beat this has learned nothing but a linear map.
    """

    maps: Tensor
    alpha: Tensor

    def __init__(self, options: Ridge, site: Site) -> None:
        super().__init__()
        length, numbers = latent_of(site, "ridge")
        affordable(length * numbers * (site.width + 1), "ridge", "use a codec such as pca, or shorter codes")
        self.chosen = options.alpha
        self.register_buffer("maps", torch.zeros(length, site.width + 1, numbers))
        self.register_buffer("alpha", torch.zeros(length))

    @torch.no_grad()
    def fit(self, pairs: Zoo) -> None:
        """The maps. InvalidInput for a zoo without networks."""
        every, held = _summed(pairs, len(self.maps), tenth=self.chosen is None)
        self.take_form(every.form)
        start = 0
        for number, part in enumerate(every.parts):
            alphas = _best(part, held.parts[number]) if held else _all(self.chosen or _USUAL, part)
            stop = start + len(part.group)
            self.maps[start:stop] = part.solved(alphas).to(self.maps)
            self.alpha[start:stop] = alphas.to(self.alpha)[part.group]
            start = stop

    def sample(self, asked: Tensor, places: Places, noise: Noise, how: Sampling) -> Tensor:
        """(B, L, D)."""
        here = self.arrangement(places)
        maps = self.at(self.maps, here)  # (L, d + 1, D)
        if asked.shape[1] == 1:
            drawn = torch.einsum("bd,ldn->bln", asked[:, 0], maps[:, :-1])
        else:
            drawn = torch.einsum("bld,ldn->bln", here.arranged(asked), maps[:, :-1])
        return torch.where(places.mask, here.back(drawn + maps[:, -1]), 0.0)


class _Sums:
    """The equations of the positions of no class, and those of the rows of classes."""

    def __init__(self, form: Forming, first: Pairs, here: Arrangement) -> None:
        self.form = form
        one = first.asked.shape[1] == 1
        slots = torch.zeros_like(here.order) if one else first.places.slots[here.order]
        width, numbers = first.asked.shape[2], first.latent.shape[2]

        def none(start: int, several: int) -> Equations:
            own = slots[start : start + several]
            return Equations.none(_numbered(own), width, numbers)

        self.parts = [none(0, here.fixed)] if here.fixed else []
        if here.each:
            self.parts.append(none(here.fixed, here.each * (form.classes or 1)))

    def join(self, classes: int) -> None:
        self.parts[-1] = self.parts[-1].pooled(classes)

    def add(self, codes: tuple[Tensor, Tensor], latent: tuple[Tensor, Tensor]) -> None:
        """Codes and latents, of the positions of no class (n, fixed, ·) and of classes (n, classes, each, ·)."""
        if self.form.fixed:
            self._add(self.parts[0], codes[0], latent[0])
        if self.form.each:
            together = (1, 2) if self.form.classes else (0, 1)
            self._add(self.parts[-1], codes[1].flatten(*together), latent[1].flatten(*together))

    def _add(self, part: Equations, codes: Tensor, latent: Tensor) -> None:
        own = [int((part.group == g).nonzero()[0]) for g in range(len(part.x))]  # a kind of each group
        part.add(codes[:, own], latent)


def _summed(pairs: Zoo, most: int, *, tenth: bool) -> tuple[_Sums, _Sums | None]:
    """The sums of all networks and, where `tenth` says so, those of every tenth."""
    form, sums = Forming(most), list[_Sums]()
    for batch in networks(pairs):
        here = Arrangement.of(batch.places)
        codes, latent = _split(batch.asked, here), here.split(batch.latent)
        joined = form.see(here, shared=bool((codes[1] != codes[1][:, :1]).any()))
        sums = sums or [_Sums(form, batch, here) for _ in range(1 + tenth)]
        for each in sums if joined else ():
            each.join(joined)
        sums[0].add(codes, latent)
        if tenth:
            out = torch.tensor([number % _TENTH == _TENTH - 1 for number in batch.members], device=batch.latent.device)
            sums[1].add((codes[0][out], codes[1][out]), (latent[0][out], latent[1][out]))
    return sums[0], sums[1] if tenth else None


def _split(asked: Tensor, here: Arrangement) -> tuple[Tensor, Tensor]:
    """Codes of the positions of no class (B, fixed or 1, d), and of classes (B, classes, each or 1, d)."""
    if asked.shape[1] == 1:
        return asked, asked[:, None].expand(-1, here.classes, -1, -1)
    return here.split(asked)


def _numbered(slots: Tensor) -> Tensor:
    """The same as numbers from 0 on, without gaps."""
    places: dict[int, int] = {}
    return torch.tensor([places.setdefault(slot, len(places)) for slot in slots.tolist()], device=slots.device)


def _best(every: Equations, held: Equations) -> Tensor:
    """An alpha for each group (G,), by the networks that are held out."""
    rest = every.without(held)
    if not held.count or not rest.count:
        return _all(_USUAL, every)
    found = [held.errors(rest.solved(_all(alpha, every))) for alpha in ALPHAS]
    return torch.tensor(ALPHAS, dtype=torch.float64)[torch.stack(found).argmin(0).cpu()]


def _all(alpha: float, part: Equations) -> Tensor:
    return torch.full((len(part.x),), alpha, dtype=torch.float64)
