"""Attention between the members of sets, in no order: the blocks of the Set Transformer, arXiv:1810.00825."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attending(nn.Module):
    """MAB: what x (B, n, width) finds in y (B, m, inputs), (B, n, hidden).

    h = norm(Wq x + attention(Wq x, Wk y, Wv y)); norm(h + relu(Wo h)). Products are divided by √hidden. Without `norm`
    nothing is normalised.
    """

    def __init__(self, width: int, inputs: int, hidden: int, heads: int, *, norm: bool) -> None:
        super().__init__()
        self.heads, self.hidden = heads, hidden
        self.query = nn.Linear(width, hidden)
        self.key = nn.Linear(inputs, hidden)
        self.value = nn.Linear(inputs, hidden)
        self.out = nn.Linear(hidden, hidden)
        self.first = nn.LayerNorm(hidden) if norm else nn.Identity()
        self.last = nn.LayerNorm(hidden) if norm else nn.Identity()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(B or 1, n, width) and (B, m, inputs) -> (B, n, hidden)."""
        query = self.query(x).expand(len(y), -1, -1)
        q, k, v = (self._by_head(held) for held in (query, self.key(y), self.value(y)))
        found = functional.scaled_dot_product_attention(q, k, v, scale=self.hidden**-0.5)  # (B, heads, n, hidden/heads)
        h = self.first(query + found.transpose(1, 2).flatten(2))
        code: Tensor = self.last(h + functional.relu(self.out(h)))
        return code

    def _by_head(self, held: Tensor) -> Tensor:
        return held.reshape(*held.shape[:2], self.heads, -1).transpose(1, 2)


class SelfAttending(nn.Module):
    """SAB: a set that attends to itself."""

    def __init__(self, width: int, hidden: int, heads: int, *, norm: bool) -> None:
        super().__init__()
        self.attending = Attending(width, width, hidden, heads, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, width) -> (B, n, hidden)."""
        code: Tensor = self.attending(x, x)
        return code


class Induced(nn.Module):
    """ISAB: the same by way of `points` learned members, at a cost of n · points."""

    def __init__(self, width: int, hidden: int, heads: int, points: int, *, norm: bool) -> None:
        super().__init__()
        self.points = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, points, hidden)))
        self.gather = Attending(hidden, width, hidden, heads, norm=norm)
        self.spread = Attending(width, hidden, hidden, heads, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, width) -> (B, n, hidden)."""
        code: Tensor = self.spread(x, self.gather(self.points, x))
        return code


class Pooled(nn.Module):
    """PMA: what one learned member finds in a set."""

    def __init__(self, hidden: int, heads: int, *, norm: bool) -> None:
        super().__init__()
        self.seed = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, 1, hidden)))
        self.attending = Attending(hidden, hidden, hidden, heads, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, hidden) -> (B, 1, hidden)."""
        code: Tensor = self.attending(self.seed, x)
        return code
