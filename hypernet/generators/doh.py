"""D'OH: one target's weights from a short learned code and random matrices that are kept as a seed."""

from __future__ import annotations

from math import prod, sqrt

from pydantic import Field

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.decoders.random import Kind
from paramsmith.hypernet.objectives.tasks import Tasks
from paramsmith.hypernet.parametrizations.slot_tensors import one_target
from paramsmith.hypernet.protocols import Chosen, Design, Site
from paramsmith.parts import generators

MOST = 65_536  # numbers in a code


class Doh(Tasks):
    """Options of `doh`."""

    meta_batch: int = Field(1, ge=1, le=65_536, description="episodes a step; all of them are for the one network")
    latents: int | None = Field(None, ge=1, le=MOST, description="numbers that are learned; else what `budget` makes")
    budget: float = Field(0.3, gt=0, le=1, description="numbers that are learned, as a share of the target's")
    kind: Kind = Field("dense", description="entries of the matrices; sparse for targets of millions of numbers")
    nonzeros: int = Field(16, ge=1, description="entries a row that are not 0, of the sparse kind")
    seed: int = Field(0, ge=0, lt=2**63, description="of the matrices")


@generators("doh", Doh, paper="arXiv:2403.19163")
def doh(options: Doh, site: Site) -> Design:
    """Few numbers z instead of many weights: theta_l = G_l z for every tensor, with fixed random matrices G_l.

    Only z is trained, and only z and the seed are saved, so that the file is a compressed network. z begins as
    U(-1, 1), and the factors on G_l give every tensor the spread that it begins with otherwise. The step size is large
    because every weight is a sum over all of z.

    Gordon et al., 2024, D'OH, arXiv:2403.19163; intrinsic dimension, arXiv:1804.08838.
    """
    numbers = sum(prod(slot.shape) for slot in one_target(site, "generator 'doh'").slots)
    latents = options.latents or max(1, round(options.budget * numbers))
    if latents > MOST:
        fact = f"a budget of {options.budget:g} of {numbers:,} numbers is a code of {latents:,}; the most is {MOST:,}"
        raise InvalidInput(fact, f"give -p latents={MOST}, or fewer")
    std = 1 / sqrt(3)
    decoder = {"seed": options.seed, "kind": options.kind, "nonzeros": options.nonzeros, "latent_std": std}
    return Design(
        width=latents,
        encoder=Chosen("empty", {"init": "uniform", "std": std}),
        decoder=Chosen("random", decoder),
        base=Chosen("zeros"),
        scale=Chosen("none"),
        objective=Chosen("tasks", options.model_dump(include=set(Tasks.model_fields))),
        course={"optimizer": "adam", "lr": 3e-2},
    )
