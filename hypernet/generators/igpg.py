"""IGPG: the codes of a network, one after the other."""

from __future__ import annotations

from pydantic import Field

from paramsmith.hypernet.protocols import Chosen, SamplerDesign, Site
from paramsmith.parts import generators

from .asking import Cutting, Size, plain, tokens


class Igpg(Cutting):
    """Options of `igpg`."""

    size: Size = Field("tiny", description="of the transformer")
    chunk: int = Field(8, ge=1, le=4096, description="numbers that codes stand for together")
    levels: int = Field(2, ge=1, le=16, description="codes a chunk, each of what those before it leave")
    codes: int = Field(256, ge=2, le=65_536, description="entries of a codebook")
    context: int = Field(1024, ge=2, le=65_536, description="chunks read at once; longer networks go block by block")
    temperature: float = Field(1.0, ge=0, le=100, description="of sampling; 0 takes the likeliest code")
    batch: int | None = Field(None, ge=1, le=65_536, description="networks a step: of tiny 8, else 32")


@generators("igpg", Igpg, paper="arXiv:2504.02012")
def igpg(options: Igpg, site: Site) -> SamplerDesign:
    """Residual vector quantisation of the weights less their mean, and a causal transformer over the codes.

    The paper has one codebook behind an image autoencoder; two levels on the numbers themselves lose less at the same
    rate. Networks longer than the context are drawn in blocks, each of which reads the end of the one before.

    Soro et al., 2025, "Instruction-Guided Autoregressive Neural Network Parameter Generation", arXiv:2504.02012.
    """
    asked = plain(options, site)
    tiny = options.size == "tiny"  # for minutes of one CPU thread
    told = {"codes": options.codes, "size": options.size, "context": options.context}
    return SamplerDesign(
        width=asked.width,
        tokens=tokens(options, site),
        encoder=asked.encoder,
        codec=Chosen("rvq", {"chunk": options.chunk, "levels": options.levels, "codes": options.codes}),
        prior=Chosen("autoregressive", {**told, "temperature": options.temperature}),
        objective=Chosen("stages", {"batch": options.batch or (8 if tiny else 32)}),
        condition=asked.shapes,
        course={"steps": 1000 if tiny else 1500, "lr": 1e-3, "warmup": 100, "schedule": "cosine", "clip": 1.0},
    )
