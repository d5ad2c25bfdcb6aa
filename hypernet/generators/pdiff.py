"""p-diff: unconditional diffusion of weights, as published."""

from __future__ import annotations

from pydantic import Field

from paramsmith.hypernet.protocols import Chosen, SamplerDesign, Site
from paramsmith.params import Params
from paramsmith.parts import generators

from .asking import Size, with_norms


class Pdiff(Params):
    """Options of `pdiff`."""

    size: Size = Field("tiny", description="of the denoiser; paper: 64 to 512 channels")
    rank: int = Field(128, ge=1, le=4096, description="numbers that a network is encoded in")
    steps: int = Field(1000, ge=1, le=1000, description="steps of sampling")
    batch: int = Field(50, ge=1, le=65_536, description="networks a step")


@generators("pdiff", Pdiff, paper="arXiv:2402.13144")
def pdiff(options: Pdiff, site: Site) -> SamplerDesign:
    """Diffusion of encoded weights by a convolution net that never gets shorter, whatever is asked for.

    Noise is predicted over 1000 linear times. Trained on few networks, as it was published, it draws copies of them. Of
    the published code the clamps and the one time for a whole batch are left out, and the encoder is linear.

    Wang et al., 2024, "Neural Network Diffusion", arXiv:2402.13144.
    """
    return SamplerDesign(
        width=1,
        tokens=with_norms({"layout": "flat", "normaliser": "center"}, site),
        encoder=Chosen("empty"),
        codec=Chosen("pca", {"rank": options.rank, "whiten": True}),
        prior=Chosen(
            "diffusion",
            {
                "denoiser": "unet1d",
                "size": options.size,
                "scheduler": "ddpm",
                "steps": options.steps,
                "prediction": "epsilon",
                "dropout": 0.0,
            },
        ),
        objective=Chosen("stages", {"batch": options.batch}),
        condition={},
        course={"steps": 2000, "lr": 1e-3, "ema": 0.995},
    )
