"""Learned initialisations: one set of weights for one target, from which every task of a kind is learned fast."""

from __future__ import annotations

from pydantic import Field

from paramsmith.hypernet.parametrizations.slot_tensors import one_target
from paramsmith.hypernet.protocols import Chosen, Design, Site
from paramsmith.params import Params
from paramsmith.parts import generators


class Maml(Params):
    """Options of `maml`."""

    lr: float = Field(0.01, gt=0, allow_inf_nan=False, description="step size of the descent inside a task")
    steps: int = Field(2, ge=1, le=10_000, description="steps of that descent")
    meta_batch: int = Field(4, ge=1, le=65_536, description="episodes a meta-step, side by side")


class Fomaml(Maml):
    """Options of `fomaml`."""

    tail: int = Field(0, ge=0, description="judge by so many examples held out of the support, instead of the query")


class Reptile(Maml):
    """Options of `reptile`."""

    steps: int = Field(10, ge=1, le=10_000, description="steps of that descent")


@generators("maml", Maml, paper="arXiv:1703.03400")
def maml(options: Maml, site: Site) -> Design:
    """Weights that do well on a task after a few steps of gradient descent on a little of its data.

    theta minimises the mean over tasks of query(theta_k), k steps on the support away; second derivatives included.

    Finn et al., 2017, arXiv:1703.03400; of signals, Tancik et al., 2021, arXiv:2012.02189.
    """
    return _learned(site, "maml", options)


@generators("fomaml", Fomaml, paper="arXiv:1703.03400")
def fomaml(options: Fomaml, site: Site) -> Design:
    """MAML without second derivatives, for many steps or large targets; `tail` judges by held-out support.

    Finn et al., 2017, arXiv:1703.03400; the tail: Hendryx et al., 2019, arXiv:1912.06290.
    """
    return _learned(site, "maml", options, first_order=True)


@generators("reptile", Reptile, paper="arXiv:1803.02999")
def reptile(options: Reptile, site: Site) -> Design:
    """Weights in the middle of those that the tasks lead to: moved towards them, again and again. Needs no query.

    Nichol et al., 2018, arXiv:1803.02999.
    """
    return _learned(site, "reptile", options)


def _learned(site: Site, objective: str, options: Maml, **further: object) -> Design:
    one_target(site, f"generator {objective!r}")
    return Design(
        width=1,  # of a code that nothing reads
        encoder=Chosen("empty"),
        decoder=Chosen("none"),
        base=Chosen("learned"),
        scale=Chosen("none"),
        objective=Chosen(objective, {**options.model_dump(), **further}),
        course={"optimizer": "adam", "lr": 1e-3},
    )
