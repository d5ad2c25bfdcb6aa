"""Generators that are computed from a zoo, not trained: what every trained one has to be held against."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from paramsmith.hypernet.protocols import Chosen, SamplerDesign, Site
from paramsmith.parts import generators

from .flow import Cutting, asking, cut


class Computed(Cutting):
    """Options of what is computed."""

    codec: Literal["identity", "pca"] = Field("identity", description="what is computed: tokens, or components")
    rank: int = Field(128, ge=1, le=4096, description="of pca: numbers a network")


class Noisy(Computed):
    """Options of `noise_copy`."""

    amplitude: float = Field(0.05, ge=0, allow_inf_nan=False, description="of the noise, relative to the weights")


@generators("ridge", Computed)
def ridge(options: Computed, site: Site) -> SamplerDesign:
    """A linear map from what is asked for to weights, by least squares with a penalty: computed from a zoo.

    A generator that does not beat it has learned nothing that a line does not know.
    """
    return _computed("ridge", options, site)


@generators("nearest", Computed)
def nearest(options: Computed, site: Site) -> SamplerDesign:
    """The network of the zoo that was asked for what is nearest to this; of a head, class by class."""
    return _computed("nearest", options, site)


@generators("mean", Computed)
def mean(options: Computed, site: Site) -> SamplerDesign:
    """The mean of the zoo, whatever is asked for: what a regressor comes to that learns nothing."""
    return _computed("mean", options, site)


@generators("noise_copy", Noisy)
def noise_copy(options: Noisy, site: Site) -> SamplerDesign:
    """A network of the zoo with noise: the bound for what is different, and still as good."""
    return _computed("noise_copy", options, site, amplitude=options.amplitude)


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


@generators("prototype", Computed)
def prototype(options: Computed, site: Site) -> SamplerDesign:
    """A head whose rows are the mean features of their classes: what a few examples give by themselves."""
    return _computed("prototype", options, site)


def _computed(prior: str, options: Computed, site: Site, **more: object) -> SamplerDesign:
    encoder, width, shapes = asking(site, options.shots)
    codec = Chosen(options.codec, {"rank": options.rank} if options.codec == "pca" else {})
    course: dict[str, object] = {"steps": 0}
    return SamplerDesign(
        width, cut(options, site), encoder, codec, Chosen(prior, more), condition=shapes, course=course
    )
