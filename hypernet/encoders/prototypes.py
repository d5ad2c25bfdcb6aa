"""The mean feature of each class, as it is."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.encoders.examples import drawn, examples_in, examples_of
from paramsmith.hypernet.protocols import Condition, Site
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.params import Params
from paramsmith.parts import encoders


class Prototypes(Params):
    """Options of the encoder `prototypes`."""

    shots: int | None = Field(None, ge=1, le=65_536, description="examples of a class that a step of training draws")
    flat: bool = Field(False, description="one code of all means, for a fixed number of classes")


@encoders("prototypes", Prototypes, paper="arXiv:1703.05175")
class PrototypesEncoder(nn.Module):
    """Codes (B, k, F), one a class: the means of `classes` (B, k, n, F). Nothing is learned.

    In training they are the means of `shots` examples, drawn anew at every step; else of all. With `flat`, (B, 1, k F).
    InvalidInput for a site whose width is not F, or k F, and for conditions of another number of features or classes.

    Paper: Prototypical Networks for Few-shot Learning, arXiv:1703.05175.
    """

    def __init__(self, options: Prototypes, site: Site) -> None:
        super().__init__()
        classes, _, self.features = examples_of(site, "prototypes", options.shots)
        self.shots, self.by_class = options.shots, not options.flat
        self.classes = classes if options.flat else 0
        if options.flat and not classes:
            raise InvalidInput("the encoder 'prototypes' is to be flat, and may get any number of classes", "fix it")
        width = self.features * (classes if options.flat else 1)
        if site.width != width:
            fact = f"the encoder 'prototypes' has codes of width {width:,}, not {site.width:,}"
            raise InvalidInput(fact, "make the width so, or use the encoder classes")

    def forward(self, condition: Condition, spec: TargetSpec) -> Tensor:
        """(B, k, F), or (B, 1, k F)."""
        examples = examples_in(condition, spec, self.features, self.classes)
        means = drawn(examples, self.shots if self.training else None).mean(2)
        return means if self.by_class else means.flatten(1)[:, None]
