"""LoGAH: weights of any architecture and width from its graph, each tensor a product of two factors."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from paramsmith.hypernet.protocols import Chosen, Design, Site
from paramsmith.params import Params
from paramsmith.parts import generators

# width, layers, heads, rank
SIZES = {"T": (64, 3, 8, 32), "S": (128, 5, 16, 90), "B": (256, 5, 16, 128), "L": (256, 12, 16, 256)}

OURS = {"features": "log2", "base": "bank", "scale": "fan_in", "layout": "view"}
PAPER = {"features": "buckets", "base": "zeros", "scale": "fan_in", "layout": "view"}


class LoGAH(Params):
    """Options of `logah`; what is not given is that of the size, or of the paper."""

    size: Literal["T", "S", "B", "L"] = Field("T", description="2.5, 21.4, 78.2 or 289.4 million parameters")
    paper: bool = Field(False, description="the parts of the paper: features buckets, base zeros")
    width: int | None = Field(None, ge=4, le=8192, description="width of codes")
    layers: int | None = Field(None, ge=1, le=256, description="layers over the graph")
    heads: int | None = Field(None, ge=1, le=256, description="attention heads of a layer")
    rank: int | None = Field(None, ge=1, le=4096, description="rank of every matrix that is made")
    K: int = Field(2048 * 16, ge=2, le=1 << 26, description="the most that out * kh and in * kw of a tensor may be")
    layout: Literal["view", "transposed"] | None = Field(None, description="how a code becomes factors; view")
    features: Literal["buckets", "log2"] | None = Field(None, description="how sizes of tensors enter; log2")
    max_distance: int = Field(250, ge=1, le=254, description="operations further apart do not know how far")
    base: str | None = Field(None, description="what is added to: zeros, standard, bank; bank")
    scale: str | None = Field(None, description="how raw tensors are brought to size: fan_in, std, none; fan_in")
    meta_batch: int = Field(4, ge=1, le=1024, description="targets a step (the paper: 1)")
    norm_penalty: float = Field(3e-5, ge=0, allow_inf_nan=False, description="times the norms of what is made")


@generators("logah", LoGAH, paper="arXiv:2405.16287")
def logah(options: LoGAH, site: Site) -> Design:
    """A Graphormer over the graph of a target gives a code a tensor, which becomes two factors of rank r: W = A B.

    For any architecture, width up to K and number of classes. `paper` has every part as published; without it, what
    is generated is a difference from a frozen initialisation, and sizes enter the graph by their logarithms, so that
    none is unknown. The scale std learned far more slowly in short trials on small networks.

    Zhou et al., 2024, "LoGAH: Predicting 774-Million-Parameter Transformers using Graph HyperNetworks with 1/100
    Parameters", arXiv:2405.16287.
    """
    width, layers, heads, rank = SIZES[options.size]
    said = options.model_dump(include=set(OURS), exclude_none=True)
    parts = (PAPER if options.paper else OURS) | said
    graph: dict[str, object] = {
        "layers": options.layers or layers,
        "heads": options.heads or heads,
        "max_distance": options.max_distance,
        "features": parts["features"],
    }
    classes = site.spec.classes if site.spec else None
    if parts["features"] == "buckets" and classes:
        graph["classes"] = classes
    lr = 3e-4 if options.paper or options.size != "T" else 1e-3
    return Design(
        width=options.width or width,
        encoder=Chosen("graph", graph),
        decoder=Chosen("lowrank", {"rank": options.rank or rank, "K": options.K, "layout": parts["layout"]}),
        base=Chosen(parts["base"]),
        scale=Chosen(parts["scale"]),
        objective=Chosen("tasks", {"meta_batch": options.meta_batch, "norm_penalty": options.norm_penalty}),
        fixed=False,
        course={"steps": 5000, "lr": lr, "weight_decay": 1e-2, "warmup": 100, "schedule": "cosine", "clip": 5.0},
    )
