"""The condition that asks for nothing, which classifier-free guidance needs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paramsmith.errors import InvalidInput


class NullCondition(nn.Module):
    """A learned code that takes the place of what is asked for, in training as often as `dropout` says.

    Sampling may then be guided: null + w (asked - null). Paper: Classifier-Free Diffusion Guidance, arXiv:2207.12598.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.code = nn.Parameter(torch.zeros(width))
        self.dropout = dropout

    def dropped(self, asked: Tensor, count: int) -> Tensor:
        """(B or 1, L or 1, d) -> (B, L or 1, d), drawn from torch's global generator."""
        asked = asked.expand(count, -1, -1)
        if not self.dropout:
            return asked
        gone = torch.rand(count, 1, 1, device=asked.device) < self.dropout
        return torch.where(gone, self.code.to(asked.dtype), asked)

    def check_guidance(self, guidance: float) -> None:
        """InvalidInput for a guidance, where training never replaced a condition: the null one is as it began."""
        if guidance != 1 and not self.dropout:
            fact = "this generator was never trained without a condition: there is nothing to guide it away from"
            raise InvalidInput(fact, "leave --guidance out, or train it with a dropout of conditions: 0.1, say")

    def beside(self, asked: Tensor, guidance: float) -> Tensor:
        """(B, L or 1, d), and where there is guidance as many null ones after them."""
        return asked if guidance == 1 else torch.cat([asked, self.code.to(asked.dtype).expand_as(asked)])


def guided(found: Tensor, guidance: float) -> Tensor:
    """What was found for `NullCondition.beside`, (B or 2 B, ...), as null + w (asked - null), (B, ...)."""
    if guidance == 1:
        return found
    told, plain = found.chunk(2)
    return plain + guidance * (told - plain)
