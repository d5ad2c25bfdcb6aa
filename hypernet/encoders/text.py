"""The embedding of a text, or of its words, as one code."""

from __future__ import annotations

from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.encoders.vector import Widths
from paramsmith.hypernet.protocols import Condition, Site
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.params import Params
from paramsmith.parts import encoders


class Text(Params):
    """Options of the encoder `text`."""

    hidden: Widths = Field((), description="widths before the code's own")
    norm: bool = Field(False, description="whether an embedding is normalised before the layers")


@encoders("text", Text)
class TextEncoder(nn.Module):
    """Codes (B, 1, width) of `text` (B, F), or (B, n, F): embeddings of a language model, which were made before.

    Of several the mean counts, over those of which `mask` (B, n) says that they are there; what it leaves out changes
    nothing, and a text without words has the mean 0. Then layers with GELU, after the last of which there is none.
    InvalidInput for a site without such a condition, and for embeddings of another width or that are not finite.
    """

    def __init__(self, options: Text, site: Site) -> None:
        super().__init__()
        shape = site.condition.get("text", ())
        if len(shape) not in (1, 2) or not shape[-1]:
            fact = "the encoder 'text' wants a condition `text` of (F,) or (n, F) numbers"
            raise InvalidInput(fact, "give embeddings of texts, or of their words")
        self.many, self.features = len(shape) == 2, shape[-1]
        widths = [self.features, *options.hidden, site.width]
        layers = [part for sizes in pairwise(widths) for part in (nn.Linear(*sizes), nn.GELU())][:-1]
        self.body = nn.Sequential(*([nn.LayerNorm(self.features)] if options.norm else []), *layers)

    def forward(self, condition: Condition, spec: TargetSpec) -> Tensor:
        """(B, 1, width)."""
        found = condition.get("text")
        dims = 3 if self.many else 2
        if found is None or found.dim() != dims or found.shape[-1] != self.features:
            told = "nothing" if found is None else "x".join(map(str, found.shape))
            wanted = f"(B, n, {self.features})" if self.many else f"(B, {self.features})"
            raise InvalidInput(f"a condition is `text`, {wanted}, and there is {told}", "was another model used?")
        held = found.float() if self.many else found.float()[:, None]  # (B, n, F)
        mask = condition.get("mask") if self.many else None
        mask = torch.ones_like(held[..., 0], dtype=torch.bool) if mask is None else mask.bool()
        if mask.shape != held.shape[:2]:
            fact = f"the mask of a condition is {'x'.join(map(str, mask.shape))}, for texts {tuple(held.shape[:2])}"
            raise InvalidInput(fact, "one number for each word, 0 where there is none")
        held = torch.where(mask[..., None], held, 0.0)
        if not bool(torch.isfinite(held).all()):
            raise InvalidInput("the condition `text` holds a number that is not finite", "give finite numbers")
        code: Tensor = self.body(held.sum(1) / mask.sum(1, keepdim=True).clamp_min(1))
        return code[:, None]
