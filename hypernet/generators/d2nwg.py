"""D2NWG: latent diffusion of weights, asked by a data set."""

from __future__ import annotations

from pydantic import Field

from paramsmith.hypernet.protocols import Chosen, SamplerDesign, Site
from paramsmith.params import Params
from paramsmith.parts import generators

from .asking import Cutting, Size, condition_of, plain, with_norms

WIDTHS = {"tiny": 256, "small": 1024, "paper": 1024}  # of a code: the numbers of the latent
STEPS = {"tiny": (900, 600, 400), "small": (5_000, 1_000, 20_000), "paper": (30_000, 5_000, 100_000)}
BATCHES = {"tiny": 32, "small": 64, "paper": 64}
SETS: dict[Size, dict[str, int]] = {"tiny": {"hidden": 64, "inducing": 8, "between": 128}, "small": {}, "paper": {}}
SAMPLING = {"tiny": 100, "small": 1024, "paper": 1024}  # steps
QUICKLY = {
    "lr": 2e-3,
    "ema": 0.99,
    "clip": 1.0,
}  # of tiny: a longer average still holds its first steps


class D2nwg(Params):
    """Options of `d2nwg`."""

    size: Size = Field("tiny", description="of codec and denoiser; paper: the values of the small zoos")
    shots: int = Field(5, ge=1, description="examples a class that a step shows")
    scale: bool = Field(False, description="one power of two for each tensor; the paper has one constant for all")
    guidance: bool = Field(False, description="leave out a tenth of the conditions in training; the paper does not")
    align: bool = Field(True, description="bring codes of data sets near to latents before the diffusion is trained")
    steps: int | None = Field(None, ge=1, le=1024, description="steps of sampling: of tiny 100, else all 1024")
    chunk: int | None = Field(
        None, ge=1, le=1 << 20, description="cut each tensor into chunks of so many numbers; else all is one vector"
    )
    batch: int | None = Field(None, ge=1, le=65_536, description="networks, or chunks, a step: of tiny 32, else 64")


@generators("d2nwg", D2nwg, paper="arXiv:2402.18153")
def d2nwg(options: D2nwg, site: Site) -> SamplerDesign:
    """An autoencoder of networks as images, a set transformer over a data set, and a diffusion between the two.

    The whole network is one vector, in the order of its tensors; its number of classes is fixed, and the condition does
    not say which row of a head is whose. 1024 ancestral steps, noise is predicted, the condition is a second channel.
    `tiny` is for minutes of one CPU thread: small images, 100 steps, the mean of all networks subtracted, v predicted,
    and codes aligned by regression on latents: in few steps the contrastive loss leaves them too small to be heard.

    With `chunk` it goes layer by layer, as for adapters or layers of an LLM: each tensor is padded to whole chunks, and
    one autoencoder sees one at a time; nothing is aligned. The paper draws each chunk alone; here a transformer
    sees all of them, and where each stands. Of a zoo of heads, they may have any number of classes. `tiny` predicts the
    latent itself then: a chunk's has many numbers that never vary, and few steps do not find v among them.

    Soro et al., 2025, "Diffusion-Based Neural Network Weights Generation", arXiv:2402.18153.
    """
    name, _ = condition_of(site)
    asked = plain(Cutting.model_validate({"shots": options.shots}), site)
    width = WIDTHS[options.size]
    encoder = (
        Chosen("set_transformer", {"shots": options.shots, **SETS[options.size]})
        if name == "classes"
        else asked.encoder
    )
    codec, align, prior = STEPS[options.size]
    if not options.align or name != "classes" or options.chunk is not None:
        align = 0
    tiny = options.size == "tiny"
    plainly = "center" if tiny else "none"  # few steps do not find the mean of all networks
    batch = options.batch or BATCHES[options.size]
    stages: dict[str, object] = {"batch": batch, "codec_steps": codec, "align_steps": align, "align": "clip"}
    stages |= {"align": "regression", "margin": 0.05} if tiny else {}  # hundreds of networks are few for this codec
    diffusion: dict[str, object] = {
        "denoiser": "unet" if options.chunk is None else "token_dit",
        "size": options.size,
        "scheduler": "ddpm",
        "steps": options.steps or SAMPLING[options.size],
        "times": 1024,
    }
    predicted = "epsilon" if not tiny else "v_prediction" if options.chunk is None else "sample"
    diffusion |= {"prediction": predicted, "betas": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0155}
    return SamplerDesign(
        width=width if name == "classes" else asked.width,
        tokens=with_norms({**_cut(options), "normaliser": "pow2" if options.scale else plainly}, site),
        encoder=encoder,
        codec=_codec(options, batch),
        prior=Chosen("diffusion", {**diffusion, "dropout": 0.1 if options.guidance else 0.0}),
        objective=Chosen("stages", stages),
        condition=asked.shapes,
        course={"steps": codec + align + prior, **(QUICKLY if tiny else {"lr": 1e-4, "ema": 0.995})},
    )


def _cut(options: D2nwg) -> dict[str, object]:
    return {"layout": "flat"} if options.chunk is None else {"layout": "tensor", "width": options.chunk}


def _codec(options: D2nwg, batch: int) -> Chosen:
    if options.chunk is None:
        return Chosen("image_vae", {"size": options.size})
    return Chosen("chunk_vae", {"size": options.size, "batch": batch})
