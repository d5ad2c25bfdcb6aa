"""GHN-3: weights of any architecture from its graph, small kernels repeated to the size of the layer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from paramsmith.hypernet.protocols import Chosen, Design, Site
from paramsmith.params import Params
from paramsmith.parts import generators

SIZES = {"T": (64, 3, 8), "S": (128, 5, 16), "L": (256, 12, 16), "XL": (384, 24, 16)}  # width, layers, heads


class GHN3(Params):
    """Options of `ghn3`; what is not given is that of the size."""

    size: Literal["T", "S", "L", "XL"] = Field("T", description="6.9, 35.8, 214.7 or 654.4 million parameters")
    width: int | None = Field(None, ge=4, le=8192, description="width of codes, and channels of the kernel repeated")
    layers: int | None = Field(None, ge=1, le=256, description="layers over the graph")
    heads: int | None = Field(None, ge=1, le=256, description="attention heads of a layer")
    classes: int | None = Field(None, ge=1, description="classes of every target; those of the target, else 1000")
    kernel: int = Field(16, ge=1, le=256, description="largest side of a kernel (the paper: 16, 11 on CIFAR)")
    features: Literal["buckets", "log2"] = Field("buckets", description="how sizes of tensors enter the graph")
    max_distance: int = Field(50, ge=1, le=254, description="operations further apart do not know how far")
    base: str = Field("zeros", description="what is added to: zeros, standard, bank")
    scale: str = Field("fan_in", description="how raw tensors are brought to size: fan_in, std, none")
    meta_batch: int = Field(4, ge=1, le=1024, description="targets a step (the paper: 8, XL 16)")
    norm_penalty: float = Field(3e-5, ge=0, allow_inf_nan=False, description="times the norms of what is made")


@generators("ghn3", GHN3, paper="arXiv:2303.04143")
def ghn3(options: GHN3, site: Site) -> Design:
    """A Graphormer over the graph of a target gives a code a tensor, which becomes a kernel, repeated to its size.

    For any architecture, of the number of classes it was built for; `logah` has no such limit. Wide layers are copies
    of one kernel (d, d, s, s): cheap, and of little variety.

    Knyazev et al., 2023, "Can We Scale Transformers to Predict Parameters of Diverse ImageNet Models?",
    arXiv:2303.04143.
    """
    width, layers, heads = SIZES[options.size]
    classes = options.classes or (site.spec and site.spec.classes) or 1000
    graph: dict[str, object] = {
        "layers": options.layers or layers,
        "heads": options.heads or heads,
        "max_distance": options.max_distance,
        "features": options.features,
    }
    if options.features == "buckets":
        graph |= {"classes": classes, "kernel": options.kernel}
    return Design(
        width=options.width or width,
        encoder=Chosen("graph", graph),
        decoder=Chosen("conv_tile", {"kernel": options.kernel, "classes": classes}),
        base=Chosen(options.base),
        scale=Chosen(options.scale),
        objective=Chosen("tasks", {"meta_batch": options.meta_batch, "norm_penalty": options.norm_penalty}),
        fixed=False,
        course={"steps": 5000, "lr": 4e-4, "weight_decay": 1e-2, "warmup": 100, "schedule": "cosine", "clip": 5.0},
    )
