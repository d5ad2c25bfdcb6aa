"""A causal transformer, whole or token by token with what it has read kept."""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .conditioning import Size

SIZES: Final[dict[Size, tuple[int, int, int]]] = {"tiny": (96, 3, 4), "small": (384, 6, 6), "paper": (512, 8, 8)}


class Cache:
    """Keys and values of the first tokens of B sequences, for each layer: (B, heads, room, width / heads)."""

    def __init__(self, layers: int, shape: tuple[int, int, int, int], like: Tensor) -> None:
        self.held = [(like.new_empty(shape), like.new_empty(shape)) for _ in range(layers)]
        self.filled = 0

    def extended(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep those of n more tokens, (B, heads, n, width / heads), and return all of the layer."""
        room = slice(self.filled, self.filled + key.shape[2])
        for held, found in zip(self.held[layer], (key, value), strict=True):
            held[:, :, room] = found
        keys, values = self.held[layer]
        return keys[:, :, : room.stop], values[:, :, : room.stop]


class CausalTransformer(nn.Module):
    """Layers x + attention(norm x), x + mlp(norm x), and a norm after the last; a token attends to none after it.

    Paper: Language Models are Unsupervised Multitask Learners (GPT-2), whose positions the caller adds. Width, layers,
    heads: tiny 96, 3, 4; small 384, 6, 6; paper 512, 8, 8.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.width, layers, self.heads = SIZES[size]
        self.layers = nn.ModuleList(_Layer(self.width, self.heads) for _ in range(layers))
        self.norm = nn.LayerNorm(self.width)

    def cache(self, batch: int, room: int) -> Cache:
        """An empty one, for `room` tokens of each of B sequences."""
        shape = (batch, self.heads, room, self.width // self.heads)
        return Cache(len(self.layers), shape, self.norm.weight.detach())

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """(B, n, width) -> (B, n, width). With a cache that is not empty n is 1: the token after those it holds."""
        for number, layer in enumerate(self.layers):
            tokens = layer(tokens, number, cache)
        if cache is not None:
            cache.filled += tokens.shape[1]
        found: Tensor = self.norm(tokens)
        return found


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.read, self.write = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor, number: int, cache: Cache | None) -> Tensor:
        read = self.read(self.before_attention(tokens)).unflatten(-1, (3, self.heads, -1))
        query, key, value = read.permute(2, 0, 3, 1, 4)  # (B, heads, n, width / heads)
        several = tokens.shape[1] > 1
        if cache is not None:
            key, value = cache.extended(number, key, value)
        heard = scaled_dot_product_attention(query, key, value, is_causal=several)
        tokens = tokens + self.write(heard.transpose(1, 2).flatten(2))
        after: Tensor = tokens + self.mlp(self.before_mlp(tokens))
        return after
