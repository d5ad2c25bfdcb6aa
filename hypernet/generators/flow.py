"""Flow matching on tokens: weights for a new task, drawn from noise."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from paramsmith.hypernet.protocols import Chosen, SamplerDesign, Site
from paramsmith.parts import generators

from .asking import Cutting, Size, learned, tokens


class Flow(Cutting):
    """Options of `flow`."""

    size: Size = Field("tiny", description="of the transformer: 128, 384 or 512 wide, 4, 8 or 12 layers")
    codec: Literal["identity", "pca", "token_vae"] = Field("identity", description="what is drawn: tokens, or less")
    rank: int = Field(128, ge=1, le=4096, description="of pca: numbers a network")
    codec_steps: int = Field(1000, ge=1, description="of token_vae: steps of training, before the others")
    steps: int = Field(10, ge=1, le=10_000, description="steps of sampling")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of the conditions that training leaves out")
    batch: int = Field(64, ge=1, le=65_536, description="networks a step")


@generators("flow", Flow, paper="arXiv:2210.02747")
def flow(options: Flow, site: Site) -> SamplerDesign:
    """A transformer over tokens learns how noise flows to weights, asked by features of classes or by numbers.

    A head's rows are tokens of their own, each with the features of its class: so any number of classes can be asked
    for, in any order. Ten Euler steps draw a sample.

    Paper: Flow Matching for Generative Modeling, arXiv:2210.02747; the tokens are this project's own.
    """
    asked = learned(options, site)
    codec_steps = options.codec_steps if options.codec == "token_vae" else 0
    # components are one token, of numbers that differ in size
    denoiser = {"denoiser": "mlp", "standardise": "number"} if options.codec == "pca" else {}
    course = {"steps": 2500 + codec_steps, "lr": 1e-3, "weight_decay": 1e-2, "warmup": 100, "schedule": "cosine"}
    return SamplerDesign(
        width=asked.width,
        tokens=tokens(options, site),
        encoder=asked.encoder,
        codec=Chosen(options.codec, {"rank": options.rank} if options.codec == "pca" else {}),
        prior=Chosen("flow", {**denoiser, "size": options.size, "dropout": options.dropout, "steps": options.steps}),
        objective=Chosen("stages", {"batch": options.batch, "codec_steps": codec_steps}),
        condition=asked.shapes,
        course={**course, "clip": 1.0, "ema": 0.995},
    )
