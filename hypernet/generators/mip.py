"""MIP: a hypernetwork that a vector of numbers is put into, which learns as fast for small numbers as for large."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from paramsmith.hypernet.encoders.vector import Encoding, Ends, Widths
from paramsmith.hypernet.objectives.tasks import Tasks
from paramsmith.hypernet.protocols import Chosen, Design, Site
from paramsmith.parts import generators


class Mip(Tasks):
    """Options of `mip`."""

    low: Ends | None = Field(None, description="lower ends of the condition's intervals: one, or one a coordinate")
    high: Ends | None = Field(None, description="upper ends; 0 to 1 where nothing is said")
    hidden: Widths = Field((16, 64, 128), min_length=1, description="widths of the hypernetwork's layers")
    encoding: Encoding = Field("cos_sin", description="how the condition enters; raw is a plain hypernetwork's")
    base: Literal["learned", "zeros", "checkpoint"] = Field(
        "learned", description="what the output is added to; zeros is a plain hypernetwork's"
    )
    checkpoint: str | None = Field(
        None, exclude=True, description="of the base checkpoint: which; it is kept and trained"
    )
    init: Literal["fan_out", "fan_in"] = Field("fan_out", description="Kaiming's, of every layer and head")


@generators("mip", Mip, paper="arXiv:2304.07645")
def mip(options: Mip, site: Site) -> Design:
    """Weights of one target from a vector of numbers, theta = theta0 + h(cos(pi g/2), sin(pi g/2)).

    g is the condition, each coordinate brought to [0, 1]; theta0 is learned, begins as the target would, and the
    network h with its heads has biases of 0 and variances 2/outputs at first, each tensor's head by its own size. So
    the size of the weights and of their gradients does not depend on that of the condition. With `encoding` raw,
    `base` zeros and `init` fan_in it is the plain hypernetwork, one option each to compare.

    Ortiz et al., 2024, arXiv:2304.07645.
    """
    bounds = {"low": options.low, "high": options.high}
    encoder = {"encoding": options.encoding, "hidden": options.hidden[:-1], "init": options.init, **bounds}
    base: dict[str, object] = {"kind": "kaiming_normal"} if options.base == "learned" else {}
    if options.base == "checkpoint":
        base = {"path": options.checkpoint, "trainable": True}
    return Design(
        width=options.hidden[-1],
        encoder=Chosen("vector", encoder),
        # theta0 is a bias of the heads already
        decoder=Chosen("dense", {"init": options.init, "bias": options.base == "zeros"}),
        base=Chosen(options.base, base),
        scale=Chosen("none"),
        objective=Chosen("tasks", options.model_dump(include=set(Tasks.model_fields))),
        course={"optimizer": "adam", "lr": 1e-3},
    )
