"""The block that the transformers of the families are made of."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), the MLP four times as wide: (n, tokens, width) -> the same."""

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-3, -2)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)  # (n, heads, tokens, d)
        x = x + self.proj(seen.transpose(-3, -2).flatten(-2))
        made: Tensor = x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))
        return made
