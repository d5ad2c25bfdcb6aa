"""Flow matching on tokens: weights for a new task, drawn from noise."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from paramsmith.errors import InvalidInput, printable
from paramsmith.hypernet.protocols import Chosen, SamplerDesign, Site
from paramsmith.params import Params
from paramsmith.parts import generators

COURSE: dict[str, object] = {"lr": 1e-3, "weight_decay": 1e-2, "warmup": 100, "schedule": "cosine", "clip": 1.0}


class Cutting(Params):
    """How networks become tokens; what is not given goes by the condition."""

    layout: Literal["flat", "tensor", "row", "patch", "neuron"] = Field("row", description="how a network is cut")
    normaliser: Literal["none", "pow2", "meanstd64", "coord", "center", "token"] | None = Field(
        None, description="what is done to its numbers; coord with class features, else center"
    )
    gauge: bool = Field(True, description="subtract the mean row of a head, which no softmax sees")
    shots: int = Field(5, ge=1, description="examples a class that a step shows of those that are known")


class Flow(Cutting):
    """Options of `flow`."""

    size: Literal["tiny", "small", "paper"] = Field("tiny", description="1.3, 24 or 57 million parameters")
    codec: Literal["identity", "pca", "token_vae"] = Field("identity", description="what is drawn: tokens, or less")
    rank: int = Field(128, ge=1, le=4096, description="of pca: numbers a network")
    codec_steps: int = Field(1000, ge=1, description="of token_vae: steps of training, before the others")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of the conditions that training leaves out")
    batch: int = Field(64, ge=1, le=65_536, description="networks a step")


@generators("flow", Flow, paper="arXiv:2210.02747")
def flow(options: Flow, site: Site) -> SamplerDesign:
    """A transformer over tokens learns how noise flows to weights, asked by the features of each class or by numbers.

    A head's rows are tokens of their own, each with the features of its class: so any number of classes can be asked
    for, in any order. Ten Euler steps draw a sample.

    Paper: Flow Matching for Generative Modeling, arXiv:2210.02747; the tokens are this project's own.
    """
    encoder, width, shapes = asking(site, options.shots)
    learned = options.codec == "token_vae"
    codec = {"pca": {"rank": options.rank}}.get(options.codec, {})
    stages = {"batch": options.batch, "codec_steps": options.codec_steps if learned else 0}
    return SamplerDesign(
        width=width,
        tokens=cut(options, site),
        encoder=encoder,
        codec=Chosen(options.codec, codec),
        prior=Chosen("flow", {"size": options.size, "dropout": options.dropout}),
        objective=Chosen("stages", stages),
        condition=shapes,
        course={**COURSE, "steps": 2500 + (options.codec_steps if learned else 0), "ema": 0.995},
    )


def asking(site: Site, shots: int) -> tuple[Chosen, int, dict[str, tuple[int, ...]]]:
    """The encoder for a condition, without anything to learn, the width of its codes, and what it can be asked for."""
    if not site.condition:
        return Chosen("empty"), 1, {}
    (name, shape), *others = site.condition.items()
    if others or name not in ("classes", "vector"):
        told = ", ".join(printable(each) for each in site.condition)
        raise InvalidInput(
            f"the condition is {told}; this generator is asked by `classes` or by `vector`", "one of them"
        )
    if name == "classes":
        return Chosen("prototypes", {"shots": shots}), shape[-1], {name: (0, 0, shape[-1])}
    return Chosen("vector", {"encoding": "raw", "body": False}), shape[0], {name: shape}


def cut(options: Cutting, site: Site) -> dict[str, object]:
    """The options of the tokenizer."""
    normaliser = options.normaliser or ("coord" if "classes" in site.condition else "center")
    return {"layout": options.layout, "normaliser": normaliser, "views": ["gauge"] if options.gauge else []}
