"""Generators that need no training: what an architecture begins with anyway, to compare with."""

from __future__ import annotations

from paramsmith.hypernet.protocols import Chosen, Design, Site
from paramsmith.params import Params
from paramsmith.parts import generators


class Fresh(Params):
    """Nothing to set."""


@generators("random", Fresh)
def random(options: Fresh, site: Site) -> Design:
    """The initialisation that the architecture has by itself, drawn anew for each seed; needs no training."""
    return _fresh("default")


@generators("orthogonal", Fresh, paper="arXiv:1312.6120")
def orthogonal(options: Fresh, site: Site) -> Design:
    """Orthogonal matrices and kernels, zero biases, norms that change nothing; needs no training."""
    return _fresh("orthogonal")


def _fresh(kind: str) -> Design:
    base = Chosen("standard", {"kind": kind})
    return Design(1, Chosen("empty"), Chosen("none"), base, Chosen("none"), Chosen(""), fixed=False)
