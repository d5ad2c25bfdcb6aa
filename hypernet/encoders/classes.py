"""A code for each class, of its own mean feature and of the mean over all classes."""

from __future__ import annotations

from itertools import pairwise

from pydantic import Field
from torch import Tensor, nn

from paramsmith.hypernet.encoders.examples import drawn, examples_in, examples_of
from paramsmith.hypernet.encoders.vector import Widths
from paramsmith.hypernet.protocols import Condition, Site
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.params import Params
from paramsmith.parts import encoders


class Classes(Params):
    """Options of the encoder `classes`."""

    shots: int | None = Field(None, ge=1, le=65_536, description="examples of a class that a step of training draws")
    hidden: Widths = Field((), description="widths before the code's own")


@encoders("classes", Classes, paper="arXiv:1703.06114")
class ClassesEncoder(nn.Module):
    """Codes (B, k, width), one a class: c_i = f(m_i) + g(mean_j m_j), with m the means of `classes` (B, k, n, F).

    f and g are layers with GELU, after the last of which there is none. Classes in another order have the same codes in
    that order. In training m are means of `shots` examples, drawn anew at every step; else of all. InvalidInput for
    conditions of another number of features, or of another number of classes than the target.

    Paper: Deep Sets, arXiv:1703.06114.
    """

    by_class = True

    def __init__(self, options: Classes, site: Site) -> None:
        super().__init__()
        _, _, self.features = examples_of(site, "classes", options.shots)
        self.shots = options.shots
        widths = [self.features, *options.hidden, site.width]
        self.own, self.all = _layers(widths), _layers(widths)

    def forward(self, condition: Condition, spec: TargetSpec) -> Tensor:
        """(B, k, width)."""
        examples = examples_in(condition, spec, self.features)
        means = drawn(examples, self.shots if self.training else None).mean(2)  # (B, k, F)
        code: Tensor = self.own(means) + self.all(means.mean(1, keepdim=True))
        return code


def _layers(widths: list[int]) -> nn.Sequential:
    return nn.Sequential(*[part for sizes in pairwise(widths) for part in (nn.Linear(*sizes), nn.GELU())][:-1])
