"""Mean and variance of every position over a zoo that streams by."""

from __future__ import annotations

import torch
from torch import Tensor

from paramsmith.hypernet.moments import Moments

from .arrangement import Arrangement, Forming, Zoo, networks


def zoo_moments(pairs: Zoo, most: int) -> tuple[Forming, Tensor, Tensor]:
    """How the zoo is arranged, and mean and standard deviation (K, D) of its positions, K no more than `most`.

    InvalidInput for a zoo without networks.
    """
    form = Forming(most)
    fixed: Moments | None = None
    rows: Moments | None = None
    for batch in networks(pairs):
        here = Arrangement.of(batch.places)
        joined = form.see(here)
        rows = rows.pooled(joined) if rows is not None and joined else rows
        plain, by_class = here.split(batch.latent)
        fixed = _more(fixed, Moments.of(plain))
        if here.each:
            rows = _more(rows, Moments.of(by_class.flatten(1, 2) if form.classes else by_class.flatten(0, 1)))
    parts = [part for part in (fixed, rows) if part is not None]
    return form, torch.cat([part.mean for part in parts]), torch.cat([part.std for part in parts])


def _more(held: Moments | None, found: Moments) -> Moments:
    return found if held is None else held.with_more(found)
