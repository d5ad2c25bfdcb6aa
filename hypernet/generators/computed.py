"""Generators that are computed from a zoo, not trained: what every trained one has to be held against."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from paramsmith.hypernet.protocols import Chosen, SamplerDesign, Site
from paramsmith.params import Params
from paramsmith.parts import generators

from .asking import Cutting, plain, tokens


class Computed(Cutting):
    """Options of what is computed."""

    codec: Literal["identity", "pca"] = Field("identity", description="what is computed: tokens, or components")
    rank: int = Field(128, ge=1, le=4096, description="of pca: numbers a network")


class Linear(Computed):
    """Options of `ridge`."""

    alpha: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="regularisation; chosen by a held-out tenth where it is not given"
    )


class Nearby(Computed):
    """Options of `nearest`."""

    members: int | None = Field(None, ge=1, le=1_000_000, description="networks that are kept; about 1024, evenly")
    neighbours: int = Field(1, ge=1, le=1024, description="how many of the nearest are averaged")


class Noisy(Nearby):
    """Options of `noise_copy`."""

    amplitude: float = Field(0.05, ge=0, allow_inf_nan=False, description="of the noise, relative to the weights")


@generators("ridge", Linear)
def ridge(options: Linear, site: Site) -> SamplerDesign:
    """A linear map from what is asked for to weights, by least squares with a penalty: computed from a zoo.

    A generator that does not beat it has learned nothing that a line does not know.
    """
    return _computed("ridge", options, site, alpha=options.alpha)


@generators("nearest", Nearby)
def nearest(options: Nearby, site: Site) -> SamplerDesign:
    """The network of the zoo that was asked for what is nearest to this; of a head, class by class."""
    return _computed("nearest", options, site, neighbours=options.neighbours, members=options.members)


@generators("mean", Computed)
def mean(options: Computed, site: Site) -> SamplerDesign:
    """The mean of the zoo, whatever is asked for: what a regressor comes to that learns nothing."""
    return _computed("mean", options, site)


@generators("noise_copy", Noisy)
def noise_copy(options: Noisy, site: Site) -> SamplerDesign:
    """A network of the zoo with noise: the bound for what is different, and still as good."""
    told = {"neighbours": options.neighbours, "members": options.members, "amplitude": options.amplitude}
    return _computed("noise_copy", options, site, **told)


@generators("gaussian", Computed, paper="arXiv:2406.09413")
def gaussian(options: Computed, site: Site) -> SamplerDesign:
    """Each number, or each component of pca, drawn from a normal distribution of its own, fitted to a zoo.

    Paper: Interpreting the Weight Space of Customized Diffusion Models, arXiv:2406.09413.
    """
    return _computed("gaussian", options, site)


@generators("kde", Computed, paper="arXiv:2406.09997")
def kde(options: Computed, site: Site) -> SamplerDesign:
    """Tokens of networks of a zoo with the noise of a kernel density estimate, as SANE samples its latents.

    Paper: Towards Scalable and Versatile Weight Space Learning, arXiv:2406.09997.
    """
    return _computed("kde", options, site)


@generators("prototype", Params)
def prototype(options: Params, site: Site) -> SamplerDesign:
    """A head whose rows are the mean features of their classes: what a few examples give by themselves."""
    return _computed("prototype", Computed.model_validate({"normaliser": "none", "layout": "row"}), site)


def _computed(prior: str, options: Computed, site: Site, **more: object) -> SamplerDesign:
    asked = plain(options, site)
    return SamplerDesign(
        width=asked.width,
        tokens=tokens(options, site),
        encoder=asked.encoder,
        codec=Chosen(options.codec, {"rank": options.rank} if options.codec == "pca" else {}),
        prior=Chosen(prior, more),
        condition=asked.shapes,
        course={"steps": 0},
    )
